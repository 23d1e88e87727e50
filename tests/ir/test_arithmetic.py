"""The integer arithmetic against exact rationals, ONNX Runtime and the ONNX reference evaluator."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlc.ir import arithmetic as ar

INT32 = np.iinfo(np.int32)
DTYPES = [np.uint8, np.int8, np.uint16, np.int16]
TYPES = {
    np.uint8: TensorProto.UINT8,
    np.int8: TensorProto.INT8,
    np.uint16: TensorProto.UINT16,
    np.int16: TensorProto.INT16,
}

models = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
numbers = settings(max_examples=300, deadline=None)

int32s = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([-(2**31), -(2**31) + 1, -1, 0, 1, 2**24 + 1, -(2**24) - 1, 2**31 - 1]),
    st.integers(-300, 300),
)
# Log-uniform, the usual range of a layer and far beyond it on the small side.
ordinary = st.builds(lambda e, f: f * 2.0**e, st.integers(-24, 3), st.floats(1, 2, exclude_max=True))
extreme = st.builds(lambda e, f: f * 2.0**e, st.integers(-100, 25), st.floats(1, 2, exclude_max=True))
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(DTYPES)


def bounds(dtype: Any) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def model(op: str, inputs: dict[str, NDArray[Any]], fixed: dict[str, Any], output: Any, **attributes: Any) -> Any:
    """A one-node model: `inputs` are fed, `fixed` are initialisers; the node takes all in this order."""
    kinds = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in inputs.items()
    ]
    result = helper.make_tensor_value_info("y_", output, None)
    node = helper.make_node(op, [*inputs, *fixed], ["y_"], **attributes)
    graph = helper.make_graph([node], "g", kinds, [result], [numpy_helper.from_array(v, k) for k, v in fixed.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    made.ir_version = 10
    return made


def run(made: Any, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


@cache
def weight_limit() -> int:
    """The largest |weight| for which ONNX Runtime's sums are exact here.

    Its u8 x s8 kernels for AVX2 without VNNI add pairs of products with `vpmaddubsw`, which saturates at int16.
    """
    a, b = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
    one, zero = np.float32(1), np.uint8(0)
    fixed = {"as": one, "az": zero, "b": b, "bs": one, "bz": np.int8(0), "ys": np.float32(64 * 127), "yz": zero}
    exact = run(model("QLinearMatMul", {"a": a}, fixed, TensorProto.UINT8), {"a": a})[0, 0] == 255
    return 127 if exact else 63


def difference(a: NDArray[Any], b: NDArray[Any]) -> int:
    return int(np.max(np.abs(a.astype(np.int64) - b.astype(np.int64)), initial=0))


# --- fixed ----------------------------------------------------------------------------------------------------------


def exact_fixed(terms: Sequence[int], ms: Sequence[int], s: int, z: int, lo: int, hi: int) -> int:
    total = Fraction(sum(t * m for t, m in zip(terms, ms, strict=True)), 2**s)
    half_up = (total + Fraction(1, 2)).__floor__()
    return min(max(half_up + z, lo), hi)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Any, int, int, int]:
    dtype = draw(dtypes)
    low, high = bounds(dtype)
    z = draw(st.integers(low, high))
    lo, hi = sorted((draw(st.sampled_from([low, z, low + 3])), draw(st.sampled_from([high, high - 5, z]))))
    return dtype, z, lo, hi


@numbers
@given(st.lists(st.tuples(int32s, extreme), min_size=1, max_size=5), outputs())
def test_fixed_is_the_exact_sum_rounded_half_up(
    pairs: list[tuple[int, float]], output: tuple[Any, int, int, int]
) -> None:
    dtype, z, lo, hi = output
    terms, reals = [t for t, _ in pairs], [r for _, r in pairs]
    fixed = ar.fixed_multiplier(reals)
    ms, s = [int(m) for m in fixed.multipliers], int(fixed.shift)
    got = ar.requantize_fixed([np.int32(t) for t in terms], fixed, z, lo, hi, dtype)
    assert got.dtype == dtype
    assert int(got) == exact_fixed(terms, ms, s, z, lo, hi)
    # The same through the real multipliers: within half a step and the multipliers' own rounding.
    real = sum((Fraction(r) * t for t, r in zip(terms, reals, strict=True)), Fraction(z))
    slack = Fraction(1, 2) + Fraction(sum(abs(t) for t in terms), 2 ** (s + 1)) * (2 if len(terms) == 1 else 1)
    clamped = min(max(real, Fraction(lo)), Fraction(hi))
    assert abs(int(got) - clamped) <= slack


@numbers
@given(st.lists(extreme, min_size=1, max_size=9))
def test_the_largest_multiplier_fills_its_bits(reals: list[float]) -> None:
    fixed = ar.fixed_multiplier(reals)
    bits = 31 - (len(reals) - 1).bit_length()
    ms, s = [int(m) for m in fixed.multipliers], int(fixed.shift)
    assert max(ms) < 2**bits
    assert max(ms) >= 2 ** (bits - 1) or s == 62
    assert all(
        abs(Fraction(m, 2**s) - Fraction(r)) <= Fraction(1, 2 ** (s + 1)) or (len(ms) == 1 and m == 1)
        for m, r in zip(ms, reals, strict=True)
    )
    # The proof's bound: any int32 terms, plus the rounding term, stay in int64.
    assert 2**31 * sum(ms) + 2 ** max(s - 1, 0) < 2**63


@pytest.mark.parametrize("count", range(1, 10))
def test_the_extremes_of_int32_do_not_overflow(count: int) -> None:
    # All the same and just below a power of two: the largest sums there are, at a small and at the largest shift.
    for real in (np.nextafter(1.0, 0), 1.0, 2.0**20 - 1, 2.0**-31, 2.0**-33, 3e-20):
        fixed = ar.fixed_multiplier([real] * count)
        for t in (INT32.min, INT32.max):
            got = int(ar.requantize_fixed([np.int32(t)] * count, fixed, 7, -128, 127, np.int8))
            assert got == exact_fixed([t] * count, [int(m) for m in fixed.multipliers], int(fixed.shift), 7, -128, 127)


def test_a_tiny_multiplier_gives_the_zero_point_for_every_term() -> None:
    terms = np.array([INT32.min, -1, 0, 1, INT32.max], np.int32)
    for real in (np.nextafter(2.0**-32, 0), 1e-20, 5e-324):
        fixed = ar.fixed_multiplier([real])
        assert int(fixed.multipliers[0]) >= 1 and int(fixed.shift) == 62
        assert np.all(ar.requantize_fixed([terms], fixed, 9, 0, 255, np.uint8) == 9)


@numbers
@given(ordinary, ordinary, ordinary)
def test_real_multiplier_is_rounded_once(x: float, w: float, y: float) -> None:
    exact = Fraction(float(np.float32(x))) * Fraction(float(np.float32(w))) / Fraction(float(np.float32(y)))
    assert float(ar.real_multiplier(x, w, y)) == float(exact)


def test_rounding_up_to_the_next_power_moves_the_shift() -> None:
    fixed = ar.fixed_multiplier([np.nextafter(1.0, 0)])
    assert (int(fixed.multipliers[0]), int(fixed.shift)) == (2**30, 30)
    largest = ar.fixed_multiplier([2.0**31 - 1])
    assert (int(largest.multipliers[0]), int(largest.shift)) == (2**31 - 1, 0)


def test_identity_multiplier_is_the_identity() -> None:
    codes = np.arange(256, dtype=np.uint8)
    term = codes.astype(np.int32) - 100
    fixed = ar.fixed_multiplier([1.0])
    assert np.array_equal(ar.requantize_fixed([term], fixed, 100, 0, 255, np.uint8), codes)
    assert np.array_equal(ar.requantize_float([term], [1.0], 100, 0, 255, np.uint8), codes)


def test_per_channel_parameters_broadcast_along_any_axis() -> None:
    rng = np.random.default_rng(0)
    terms = [rng.integers(-5000, 5000, (2, 3, 4), dtype=np.int32) for _ in range(2)]
    reals: list[Any] = [rng.uniform(1e-3, 1e-1, (3, 1)), np.float64(0.02)]
    fixed = ar.fixed_multiplier(reals)
    assert fixed.shift.shape == (3, 1)
    got = ar.requantize_fixed(terms, fixed, 10, 0, 255, np.uint8)
    for c in range(3):
        one = ar.fixed_multiplier([reals[0][c, 0], reals[1]])
        assert np.array_equal(got[:, c], ar.requantize_fixed([t[:, c] for t in terms], one, 10, 0, 255, np.uint8))


@numbers
@given(st.lists(st.tuples(int32s, st.integers(-40, 20)), min_size=1, max_size=4), outputs())
def test_shift_is_exact_for_powers_of_two(pairs: list[tuple[int, int]], output: tuple[Any, int, int, int]) -> None:
    dtype, z, lo, hi = output
    terms, exponents = [t for t, _ in pairs], [e for _, e in pairs]
    fixed = ar.shift_multiplier([2.0**e for e in exponents])
    ms = [int(m) for m in fixed.multipliers]
    assert all(m & (m - 1) == 0 for m in ms)
    if len(ms) == 1 and exponents[0] <= 0:
        assert (ms[0], int(fixed.shift)) == (1, -exponents[0])
    if max(exponents) - min(exponents) <= 26:
        real = sum(Fraction(t) * Fraction(2) ** e for t, e in pairs)
        expected = min(max((real + Fraction(1, 2)).__floor__() + z, lo), hi)
        assert int(ar.requantize_fixed([np.int32(t) for t in terms], fixed, z, lo, hi, dtype)) == expected


@numbers
@given(extreme)
def test_power_of_two_is_nearest_by_ratio(x: float) -> None:
    power = Fraction(float(ar.power_of_two(x)))
    assert Fraction(1, 2) <= (Fraction(x) / power) ** 2 <= 2


# --- float ----------------------------------------------------------------------------------------------------------


def scalar_float(terms: Sequence[int], ms: Sequence[float], z: int, lo: int, hi: int) -> int:
    total = None
    for t, m in zip(terms, ms, strict=True):
        product = np.float32(np.float32(t) * np.float32(m))
        total = product if total is None else np.float32(total + product)
    assert total is not None
    return round(min(max(float(total), lo - z), hi - z)) + z


@numbers
@given(st.lists(st.tuples(int32s, extreme), min_size=1, max_size=4), outputs())
def test_float_is_its_definition_step_by_step(
    pairs: list[tuple[int, float]], output: tuple[Any, int, int, int]
) -> None:
    dtype, z, lo, hi = output
    terms, ms = [t for t, _ in pairs], [m for _, m in pairs]
    got = ar.requantize_float([np.int32(t) for t in terms], ms, z, lo, hi, dtype)
    assert got.dtype == dtype and int(got) == scalar_float(terms, ms, z, lo, hi)


@numbers
@given(int32s, extreme, outputs())
def test_float_and_fixed_are_within_one_step_for_one_term(t: int, m: float, output: tuple[Any, int, int, int]) -> None:
    dtype, z, lo, hi = output
    real = float(np.float32(m))
    a = ar.requantize_float([np.int32(t)], [real], z, lo, hi, dtype)
    b = ar.requantize_fixed([np.int32(t)], ar.fixed_multiplier([real]), z, lo, hi, dtype)
    assert difference(a, b) <= 1


@numbers
@given(st.lists(st.tuples(st.floats(-1000, 1000), ordinary), min_size=2, max_size=4), outputs())
def test_float_and_fixed_are_within_one_step_for_several_terms(
    pairs: list[tuple[float, float]], output: tuple[Any, int, int, int]
) -> None:
    dtype, z, lo, hi = output
    # What the document's two bounds need to sum to less than one step: products of at most 1000 (far larger ones that
    # cancel lose float32 digits) and terms small against 2**shift (one shift serves the largest multiplier).
    reals = [float(np.float32(m)) for _, m in pairs]
    fixed = ar.fixed_multiplier(reals)
    limit = min(INT32.max, 2 ** (int(fixed.shift) - 4))
    terms = [np.int32(np.clip(p / m, -limit, limit)) for (p, _), m in zip(pairs, reals, strict=True)]
    a = ar.requantize_float(terms, reals, z, lo, hi, dtype)
    b = ar.requantize_fixed(terms, fixed, z, lo, hi, dtype)
    assert difference(a, b) <= 1


def test_float_adds_from_left_to_right_without_fused_multiply_add() -> None:
    # (2**13 + 1) * (1 - 2**-13) is 2**13 - 2**-13, which float32 rounds to 2**13; 2**14 times that is summed here.
    terms, ms = [np.int32(-(2**27)), np.int32(2**13 + 1)], [1.0, (1 - 2.0**-13) * 2**14]
    fused = float(terms[1]) * ms[1] - 2.0**27
    assert fused == -2.0
    assert int(ar.requantize_float(terms, ms, 0, -128, 127, np.int8)) == 0
    # Left to right: 2**24 + 1 is lost, then the first is taken away.
    wide = [np.int32(2**24), np.int32(1), np.int32(-(2**24))]
    assert int(ar.requantize_float(wide, [1.0] * 3, 0, -128, 127, np.int8)) == 0
    assert int(ar.requantize_float([wide[0], wide[2], wide[1]], [1.0] * 3, 0, -128, 127, np.int8)) == 1


def test_modes_round_ties_as_specified() -> None:
    term = np.array([-5, -3, -1, 1, 3, 5], np.int32)
    assert list(ar.requantize_float([term], [0.5], 0, -128, 127, np.int8)) == [-2, -2, 0, 0, 2, 2]
    assert list(ar.requantize_fixed([term], ar.fixed_multiplier([0.5]), 0, -128, 127, np.int8)) == [-2, -1, 0, 1, 2, 3]
    assert list(ar.requantize_fixed([term], ar.shift_multiplier([0.5]), 0, -128, 127, np.int8)) == [-2, -1, 0, 1, 2, 3]
    # A zero point that is odd must not change the direction: the rounding comes before it.
    assert list(ar.requantize_float([term], [0.5], 1, -128, 127, np.int8)) == [-1, -1, 1, 1, 3, 3]


# --- float against ONNX Runtime -------------------------------------------------------------------------------------


def scales(rng: np.random.Generator, shape: int | tuple[int, ...] = ()) -> NDArray[np.float32]:
    return np.asarray(np.exp(rng.uniform(-6, 0, shape)), dtype=np.float32)


def scalar_scale(rng: np.random.Generator) -> np.float32:
    return np.float32(scales(rng))


def output_scale(terms: NDArray[np.int32], unit: NDArray[np.float32]) -> np.float32:
    """One that fills the output range and clips a little."""
    spread = float(np.std(terms * unit.astype(np.float64))) or 1.0
    return np.float32(spread / 60)


@models
@given(seeds, st.sampled_from([np.uint8, np.int8]), st.booleans())
def test_float_equals_qlinearmatmul(seed: int, dtype: Any, per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(v) for v in rng.integers(1, (20, 200, 40)))
    low, high = bounds(dtype)
    za, zy = (int(v) for v in rng.integers(low, high + 1, 2))
    a = rng.integers(low, high + 1, (m, k)).astype(dtype)
    b = rng.integers(-weight_limit(), weight_limit() + 1, (k, n)).astype(np.int8)
    acc = (a.astype(np.int32) - za) @ b.astype(np.int32)
    sa, sb = scalar_scale(rng), scales(rng, n if per_channel else ())
    sy = output_scale(acc, np.asarray(sa * sb))
    made = model(
        "QLinearMatMul",
        {"a": a},
        {
            "as": sa, "az": dtype(za), "b": b, "bs": sb, "bz": np.zeros(sb.shape, np.int8),
            "ys": sy, "yz": dtype(zy),
        },
        TYPES[dtype],
    )  # fmt: skip
    expected = run(made, {"a": a})
    got = ar.requantize_float([acc], [ar.float_multiplier(sa, sb, sy)], zy, low, high, dtype)
    assert got.dtype == expected.dtype and np.array_equal(got, expected)
    reference = np.asarray(ReferenceEvaluator(made).run(None, {"a": a})[0])
    assert difference(got, reference) <= 1
    fixed = ar.fixed_multiplier([ar.real_multiplier(sa, sb, sy)])
    assert difference(got, ar.requantize_fixed([acc], fixed, zy, low, high, dtype)) <= 1


def convolution(
    x: NDArray[Any], z: int, w: NDArray[np.int8], bias: NDArray[np.int32], stride: int, pad: int, groups: int
) -> NDArray[np.int32]:
    """The accumulator, (N, C, H, W) and (O, C/g, kh, kw): padding is zero after the zero point is subtracted."""
    centred = np.pad(x.astype(np.int32) - z, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(centred, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    inputs, kernels = np.split(windows, groups, axis=1), np.split(w.astype(np.int32), groups, axis=0)
    parts = [np.einsum("nchwij,ocij->nohw", i, k) for i, k in zip(inputs, kernels, strict=True)]
    return np.asarray(np.concatenate(parts, axis=1) + bias[:, np.newaxis, np.newaxis])


@models
@given(seeds, st.sampled_from([np.uint8, np.int8]), st.booleans(), st.sampled_from(["plain", "grouped", "depthwise"]))
def test_float_equals_qlinearconv(seed: int, dtype: Any, per_channel: bool, kind: str) -> None:
    rng = np.random.default_rng(seed)
    groups = {"plain": 1, "grouped": int(rng.integers(2, 4)), "depthwise": int(rng.integers(1, 33))}[kind]
    per_group, out_group = (1, 1) if kind == "depthwise" else (int(v) for v in rng.integers(1, 9, 2))
    channels, outs = groups * per_group, groups * out_group
    kernel, stride, pad = (int(v) for v in rng.integers((1, 1, 0), (4, 3, 3)))
    pad = min(pad, kernel - 1)
    height, width = (int(v) for v in rng.integers(kernel, kernel + 9, 2))
    low, high = bounds(dtype)
    zx, zy = (int(v) for v in rng.integers(low, high + 1, 2))
    x = rng.integers(low, high + 1, (2, channels, height, width)).astype(dtype)
    limit = weight_limit()
    w = rng.integers(-limit, limit + 1, (outs, per_group, kernel, kernel)).astype(np.int8)
    bias = rng.integers(-20000, 20001, outs).astype(np.int32)
    acc = convolution(x, zx, w, bias, stride, pad, groups)
    sx, sw = scalar_scale(rng), scales(rng, outs if per_channel else ())
    unit = np.asarray(sx * sw)
    column = (-1, 1, 1) if per_channel else ()
    sy = output_scale(acc, unit.reshape(column))
    made = model(
        "QLinearConv",
        {"x": x},
        {
            "xs": sx, "xz": dtype(zx), "w": w, "ws": sw, "wz": np.zeros(sw.shape, np.int8),
            "ys": sy, "yz": dtype(zy), "b": bias,
        },
        TYPES[dtype], group=groups, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2,
    )  # fmt: skip
    expected = run(made, {"x": x})
    multiplier = ar.float_multiplier(sx, sw, sy).reshape(column)
    got = ar.requantize_float([acc], [multiplier], zy, low, high, dtype)
    assert got.dtype == expected.dtype and np.array_equal(got, expected)
    fixed = ar.fixed_multiplier([ar.real_multiplier(sx, sw, sy).reshape(column)])
    assert difference(got, ar.requantize_fixed([acc], fixed, zy, low, high, dtype)) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("case", ["ties", "whole range"])
def test_float_equals_onnxruntime_where_every_rounding_matters(dtype: Any, case: str) -> None:
    # The input is its zero point, so the accumulator is the bias: any int32 at all, one a channel.
    rng = np.random.default_rng(1)
    outs = 20_000
    low, high = bounds(dtype)
    z = 17
    sx, sy = np.float32(0.0371), np.float32(0.0913)
    size = np.exp2(rng.uniform(0, 31, outs))
    t = np.clip(np.rint(size * rng.choice([-1, 1], outs)), INT32.min, INT32.max).astype(np.int32)
    t[:2] = INT32.min, INT32.max
    if case == "ties":
        # Scales that bring the product next to a half: one unit in the last place then decides.
        wanted = (rng.integers(0, 120, outs) + 0.5) / np.abs(t.astype(np.float64))
        sw = (wanted * np.float64(sy) / np.float64(sx)).astype(np.float32)
    else:
        sw = np.exp2(rng.uniform(-40, 25, outs)).astype(np.float32)
    x, w = np.full((1, 1, 1, 1), z, dtype), np.full((outs, 1, 1, 1), 3, np.int8)
    fixed = {
        "xs": sx,
        "xz": dtype(z),
        "w": w,
        "ws": sw,
        "wz": np.zeros(outs, np.int8),
        "ys": sy,
        "yz": dtype(z),
        "b": t,
    }
    expected = run(model("QLinearConv", {"x": x}, fixed, TYPES[dtype]), {"x": x}).ravel()
    multiplier = ar.float_multiplier(sx, sw, sy)
    got = ar.requantize_float([t], [multiplier], z, low, high, dtype)
    assert np.array_equal(got, expected)
    if case == "ties":
        # Each shortcut a kernel might take would be seen: no float32 conversion, another order, half away from zero.
        exact = np.float64(t) * multiplier.astype(np.float64)
        other = np.float32(t) * (sx * (sw / sy))
        away = np.trunc(np.float32(t) * multiplier + np.copysign(np.float32(0.5), t))
        for shortcut in (np.rint(exact), np.rint(other), away):
            assert np.any(np.clip(shortcut + z, low, high) != expected)


# --- quantise, dequantise -------------------------------------------------------------------------------------------


SPECIAL = np.array(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32
)


def quantize_model(op: str, x: NDArray[Any], scale: Any, zero: NDArray[Any], output: Any, axis: int) -> NDArray[Any]:
    return run(model(op, {"x": x}, {"s": scale, "z": zero}, output, axis=axis), {"x": x})


@models
@given(seeds, dtypes, st.booleans())
def test_quantize_equals_onnxruntime(seed: int, dtype: Any, per_axis: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = bounds(dtype)
    scale = scales(rng, 6 if per_axis else ())
    zero = rng.integers(low, high + 1, scale.shape).astype(dtype)
    column = (6, 1) if per_axis else ()
    steps = rng.choice([rng.uniform(-70000, 70000, (3, 6, 40)), rng.integers(-600, 600, (3, 6, 40)) / 2])
    x = (steps * scale.reshape(column)).astype(np.float32)
    x[0, 0, : SPECIAL.size] = SPECIAL
    expected = quantize_model("QuantizeLinear", x, scale, zero, TYPES[dtype], 1)
    got = ar.quantize(x, scale.reshape(column), zero.reshape(column), dtype)
    assert got.dtype == dtype and np.array_equal(got, expected)


@models
@given(seeds, st.sampled_from([*DTYPES, np.int32]), st.booleans())
def test_dequantize_equals_onnxruntime(seed: int, dtype: Any, per_axis: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = bounds(dtype)
    scale = scales(rng, 6 if per_axis else ())
    zero = (rng.integers(low, high + 1, scale.shape) if dtype != np.int32 else np.zeros(scale.shape)).astype(dtype)
    q = rng.integers(low, high + 1, (3, 6, 40)).astype(dtype)
    q[0, 0, :2] = low, high
    expected = quantize_model("DequantizeLinear", q, scale, zero, TensorProto.FLOAT, 1)
    column = (6, 1) if per_axis else ()
    got = ar.dequantize(q, scale.reshape(column), zero.reshape(column))
    assert got.dtype == np.float32 and np.array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_becomes_the_least_value(dtype: Any) -> None:
    assert np.all(ar.quantize(np.full(3, np.nan), 0.1, 5, dtype) == bounds(dtype)[0])


def test_quantize_divides_and_does_not_multiply_by_the_reciprocal() -> None:
    x = np.arange(-128, 128, dtype=np.float32)[:, None] + np.float32(0.5)
    scale = np.linspace(0.01, 1, 999, dtype=np.float32)
    product = x * scale
    got = ar.quantize(product, scale, 0, np.int8)
    reciprocal = np.clip(np.rint(product * (np.float32(1) / scale)), -128, 127)
    assert np.any(got != reciprocal)
    assert np.array_equal(got, np.clip(np.rint(product / scale), -128, 127))


@given(dtypes, st.data())
def test_quantize_inverts_dequantize(dtype: Any, data: st.DataObject) -> None:
    low, high = bounds(dtype)
    z = data.draw(st.integers(low, high))
    scale = np.float32(data.draw(ordinary))
    codes = np.arange(low, high + 1).astype(dtype)
    assert np.array_equal(ar.quantize(ar.dequantize(codes, scale, z), scale, z, dtype), codes)


def test_signed_and_unsigned_activations_are_the_same() -> None:
    signed = np.arange(-128, 128, dtype=np.int8)
    for z in (-128, -3, 0, 127):
        codes, offset = ar.to_unsigned(signed, z)
        assert codes.dtype == np.uint8 and offset == z + 128
        assert np.array_equal(codes, signed.view(np.uint8) ^ 0x80)
        assert np.array_equal(codes.astype(np.int32) - offset, signed.astype(np.int32) - z)
        assert np.array_equal(ar.dequantize(codes, 0.3, offset), ar.dequantize(signed, 0.3, z))
        # ... and so are the outputs of both modes.
        term = np.arange(-3000, 3000, dtype=np.int32)
        modes: list[tuple[Callable[..., Any], Any]] = [
            (ar.requantize_float, [0.07]),
            (ar.requantize_fixed, ar.fixed_multiplier([0.07])),
        ]
        for requantise, multiplier in modes:
            s8 = requantise([term], multiplier, z, -128, 127, np.int8)
            u8 = requantise([term], multiplier, z + 128, 0, 255, np.uint8)
            assert np.array_equal(ar.to_unsigned(s8, z)[0], u8)
    same = np.array([1, 2], np.uint8)
    assert ar.to_unsigned(same, 9)[0] is same


# --- operators built from it ----------------------------------------------------------------------------------------


@models
@given(seeds, st.sampled_from([1, -1]))
def test_add_and_subtract_are_two_terms(seed: int, sign: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 500)).astype(np.uint8)
    za, zb, zy = (int(v) for v in rng.integers(0, 256, 3))
    sa, sb, sy = scales(rng, 3)
    terms = [a.astype(np.int32) - za, sign * (b.astype(np.int32) - zb)]
    fixed = ar.fixed_multiplier([ar.real_multiplier(sa, 1, sy), ar.real_multiplier(sb, 1, sy)])
    real = (terms[0] * np.float64(sa) + terms[1] * np.float64(sb)) / np.float64(sy)
    expected = np.clip(real + zy, 0, 255)
    got = ar.requantize_fixed(terms, fixed, zy, 0, 255, np.uint8)
    assert np.max(np.abs(got - expected)) <= 0.5 + 1e-3
    floats = [ar.float_multiplier(sa, 1, sy), ar.float_multiplier(sb, 1, sy)]
    assert np.max(np.abs(ar.requantize_float(terms, floats, zy, 0, 255, np.uint8) - expected)) <= 0.5 + 1e-3


@models
@given(seeds)
def test_product_and_average_are_one_term(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 60)).astype(np.uint8)
    za, zb, zy = (int(v) for v in rng.integers(0, 256, 3))
    sa, sb, sy = scales(rng, 3)
    term = (a.astype(np.int32) - za) * (b.astype(np.int32) - zb)
    real = ar.dequantize(a, sa, za).astype(np.float64) * ar.dequantize(b, sb, zb) / np.float64(sy)
    expected = np.clip(real + zy, 0, 255)
    fixed = ar.fixed_multiplier([ar.real_multiplier(sa, sb, sy)])
    assert np.max(np.abs(ar.requantize_fixed([term], fixed, zy, 0, 255, np.uint8) - expected)) <= 0.5 + 1e-2
    got = ar.requantize_float([term], [ar.float_multiplier(sa, sb, sy)], zy, 0, 255, np.uint8)
    assert np.max(np.abs(got - expected)) <= 0.5 + 1e-2
    # An average of windows of one, two, ... elements: the multiplier differs from place to place.
    counts = np.arange(1, 9)
    total = np.array([np.sum(a[:n].astype(np.int32) - za) for n in counts], np.int32)
    mean = np.array([np.mean(ar.dequantize(a[:n], sa, za).astype(np.float64)) for n in counts])
    fixed = ar.fixed_multiplier([ar.real_multiplier(sa, 1, counts.astype(np.float32) * sy)])
    got = ar.requantize_fixed([total], fixed, zy, 0, 255, np.uint8)
    assert np.max(np.abs(got - np.clip(mean / np.float64(sy) + zy, 0, 255))) <= 0.5 + 1e-2


@pytest.mark.parametrize("mode", ["float", "fixed"])
def test_requantise_is_monotone_so_maxima_commute_with_it(mode: str) -> None:
    # Max pooling works on codes, and a clamp may move across it, because every step of a requantisation is monotone.
    term = np.arange(-60_000, 60_000, dtype=np.int32)
    for real in (0.3, 0.0037, 1.0, 3.3):
        if mode == "float":
            got = ar.requantize_float([term], [real], 100, 3, 250, np.uint8)
        else:
            got = ar.requantize_fixed([term], ar.fixed_multiplier([real]), 100, 3, 250, np.uint8)
        assert np.all(np.diff(got.astype(np.int32)) >= 0) and got.min() == 3 and got.max() == 250


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: list[Callable[..., Any]] = [sigmoid, np.tanh, np.exp, np.log, np.square]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("x_dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("y_dtype", DTYPES)
def test_table_is_the_function_at_every_code(function: Callable[..., Any], x_dtype: Any, y_dtype: Any) -> None:
    z, y_zero, sx, sy = 30, 11, 0.09, 0.007
    table = ar.unary_table(function, sx, z, x_dtype, sy, y_zero, y_dtype)
    low, high = bounds(x_dtype)
    assert table.shape == (256,) and table.dtype == y_dtype
    for q in range(low, high + 1):
        x = np.float64(np.float32(q - z) * np.float32(sx))
        with np.errstate(all="ignore"):
            y = np.float32(function(x))
        expected = bounds(y_dtype)[0]
        if not np.isnan(y):
            step = min(max(float(y / np.float32(sy)), -1e6), 1e6)
            expected = min(max(round(step) + y_zero, bounds(y_dtype)[0]), bounds(y_dtype)[1])
        assert table[q & 0xFF] == expected
    codes = np.arange(low, high + 1).astype(x_dtype).reshape(16, 16)
    with np.errstate(all="ignore"):
        direct = ar.quantize(function(ar.dequantize(codes, sx, z).astype(np.float64)), sy, y_zero, y_dtype)
    assert np.array_equal(ar.lookup(table, codes), direct)


def test_table_evaluates_in_float64() -> None:
    seen: list[Any] = []

    def function(x: NDArray[Any]) -> NDArray[Any]:
        seen.append(x.dtype)
        return x

    ar.unary_table(function, 0.1, 0, np.uint8, 0.1, 0, np.uint8)
    assert seen == [np.float64]


# --- accumulators ---------------------------------------------------------------------------------------------------


@numbers
@given(st.data())
def test_accumulator_bound_is_reached_and_never_passed(data: st.DataObject) -> None:
    w = np.array(data.draw(st.lists(st.integers(-128, 127), min_size=1, max_size=5)), np.int8)
    lo, z, hi = sorted(data.draw(st.tuples(*[st.integers(0, 255)] * 3)))
    b = data.draw(int32s)
    bias = np.array([b], np.int32)
    bound = int(ar.accumulator_bound(w[None, :], 0, lo, hi, z, bias)[0])
    ends = np.array(np.meshgrid(*[[lo, hi]] * w.size)).reshape(w.size, -1).astype(np.int64)
    sums = w.astype(np.int64) @ (ends - z) + b
    assert bound == int(np.max(np.abs(sums)))
    inner = np.array([data.draw(st.integers(lo, hi)) for _ in w], np.int64)
    assert abs(int(w.astype(np.int64) @ (inner - z)) + b) <= bound


def test_accumulator_bound_takes_any_axis_and_large_sums() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (3, 4, 2, 2)).astype(np.int8)
    by_hand = [max(abs(np.where(w[:, c] > 0, w[:, c], 0).astype(int).sum() * 155 - np.where(w[:, c] < 0, w[:, c], 0)
                       .astype(int).sum() * 100),
                   abs(np.where(w[:, c] < 0, w[:, c], 0).astype(int).sum() * 155 - np.where(w[:, c] > 0, w[:, c], 0)
                       .astype(int).sum() * 100)) for c in range(4)]  # fmt: skip
    assert list(ar.accumulator_bound(w, 1, 0, 255, 100)) == by_hand
    assert list(ar.accumulator_bound(w, -3, 0, 255, 100)) == by_hand
    wide = np.full((1, 100_000), -128, np.int8)
    bound = ar.accumulator_bound(wide, 0, 0, 255, 0)
    assert bound.dtype == np.int64 and int(bound[0]) == 100_000 * 255 * 128 > INT32.max


def test_raw_terms() -> None:
    assert ar.maximum_raw_terms() == ar.RAW_TERMS == 66_311
    assert ar.maximum_raw_terms(-128, 127) == ar.RAW_TERMS_FOREIGN == 65_793
    assert 255 * 127 * 66_311 <= INT32.max < 255 * 127 * 66_312
    assert -255 * 128 * 65_793 >= INT32.min > -255 * 128 * 65_794


# --- parameters -----------------------------------------------------------------------------------------------------


@numbers
@given(seeds, st.integers(2, 8), st.integers(-40, 20))
def test_weights_are_within_half_a_scale(seed: int, bits: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((4, 5, 3)) * 2.0**exponent).astype(np.float32)
    w[:, 2] = 0
    q, scale = ar.quantize_weight(w, 1, bits)
    top = 2 ** (bits - 1) - 1
    assert q.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (5,) and q.shape == w.shape
    assert scale[2] == 1 and np.all(q[:, 2] == 0)
    assert np.all(np.abs(q.astype(int)).max(axis=(0, 2))[[0, 1, 3, 4]] == top)
    column = scale[:, np.newaxis].astype(np.float64)
    assert np.all(np.abs(w - q * column) <= column * (0.5 + 1e-4))


def test_weight_options_and_extremes() -> None:
    q, scale = ar.quantize_weight(np.array([[1.0, -2.0], [0.5, 0.25]]), None)
    assert scale.shape == () and float(scale) == np.float32(2) / np.float32(127) and q[0, 1] == -127
    q, scale = ar.quantize_weight(np.array([[1e-45], [3e38]], np.float32), 0)
    assert float(scale[0]) == float(np.finfo(np.float32).tiny) and list(q.ravel()) == [0, 127]
    q, scale = ar.quantize_weight(np.array([[1.0], [0.0]]), 0, minimum_scale=np.array([0.5, 2.0]))
    assert list(scale) == [0.5, 2.0] and list(q.ravel()) == [2, 0]
    empty, scale = ar.quantize_weight(np.zeros((2, 0), np.float32), 0)
    assert empty.shape == (2, 0) and list(scale) == [1, 1]


@numbers
@given(st.floats(-1000, 1000, width=32), ordinary, ordinary)
def test_bias_is_exactly_rounded_or_refused(bias: float, x_scale: float, w_scale: float) -> None:
    unit = Fraction(float(np.float32(x_scale))) * Fraction(float(np.float32(w_scale)))
    exact = Fraction(bias) / unit
    if abs(exact) > 2**31 - 2:
        if abs(exact) > 2**31 + 2:
            with pytest.raises(ValueError, match="bias leaves int32 at flat index 0"):
                ar.quantize_bias([bias], x_scale, w_scale)
        return
    got = ar.quantize_bias([bias], x_scale, [w_scale])
    assert got.dtype == np.int32 and abs(int(got[0]) - exact) <= Fraction(1, 2) + abs(exact) * Fraction(1, 2**52)


finite = st.floats(-(2.0**100), 2.0**100, width=32)


@numbers
@given(finite, finite, dtypes, st.floats(0, 1))
def test_activation_parameters_cover_the_range(a: float, b: float, dtype: Any, where: float) -> None:
    lo, hi = sorted((a, b))
    scale, z = ar.activation_parameters(lo, hi, dtype)
    low, high = bounds(dtype)
    assert isinstance(scale, np.float32) and isinstance(z, int) and low <= z <= high and scale > 0
    assert int(ar.quantize(0.0, scale, z, dtype)) == z and float(ar.dequantize(np.array(z, dtype), scale, z)) == 0.0
    assert z == low or lo < 0
    assert z == high or hi > 0 or lo > -1e-30
    for x in (lo, hi, lo * where, hi * where):
        back = float(ar.dequantize(ar.quantize(x, scale, z, dtype), scale, z))
        assert abs(back - np.float32(x)) <= float(scale) * (0.5 + 0.02)


def test_activation_parameters_by_hand() -> None:
    assert ar.activation_parameters(0, 0) == (np.float32(1), 0)
    assert ar.activation_parameters(0, 0, np.int8) == (np.float32(1), -128)
    assert ar.activation_parameters(0, 255) == (np.float32(1), 0)
    assert ar.activation_parameters(-255, -3) == (np.float32(1), 255)
    # float32(2 / 255) is a little above 2/255, so the zero point is below its tie at 127.5.
    assert ar.activation_parameters(-1, 1) == (np.float32(2 / 255), 127)
    assert ar.activation_parameters(2, 6) == (np.float32(6 / 255), 0)
    assert ar.activation_parameters(0, 1e-45)[0] == np.finfo(np.float32).tiny


# --- refusals -------------------------------------------------------------------------------------------------------


def i32(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


T = np.zeros(3, np.int32)
M = ar.fixed_multiplier([0.5])
REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: ar.quantize(1.0, 0.1, 0, np.int32), "dtype int32 is not a quantised type"),
    (lambda: ar.quantize(1.0, 0.0, 0, np.int8), "scale must be positive and finite"),
    (lambda: ar.quantize(1.0, 1e39, 0, np.int8), "scale must be positive and finite"),
    (lambda: ar.quantize(1.0, np.nan, 0, np.int8), "scale must be positive and finite"),
    (lambda: ar.quantize(1.0, 0.1, 128, np.int8), "zero point out of range: it must lie in [-128, 127]"),
    (lambda: ar.quantize(1.0, 0.1, 1.5, np.int8), "zero point must be an integer, not float64"),
    (lambda: ar.dequantize(np.zeros(1), 0.1), "dtype float64 cannot be dequantised"),
    (lambda: ar.to_unsigned(np.zeros(1, np.int16), 0), "dtype int16 is not an 8-bit activation"),
    (lambda: ar.to_unsigned(np.zeros(1, np.int8), 200), "zero point out of range"),
    (lambda: ar.float_multiplier(-1, 1, 1), "x_scale must be positive and finite"),
    (lambda: ar.float_multiplier(1, 0, 1), "w_scale must be positive and finite"),
    (lambda: ar.float_multiplier(1e30, 1e30, 1), "must be below 2**31"),
    (lambda: ar.real_multiplier(1, 1, np.inf), "y_scale must be positive and finite"),
    (lambda: ar.fixed_multiplier([]), "need at least one real multiplier"),
    (
        lambda: ar.fixed_multiplier([0.5, -0.5]),
        "real multiplier 1 must be positive and finite: for a negative one negate",
    ),
    (lambda: ar.fixed_multiplier([0.0]), "real multiplier 0 must be positive"),
    (lambda: ar.fixed_multiplier([2.0**31]), "too large: it must round below 2**31"),
    (lambda: ar.fixed_multiplier([2.0**31 - 0.25]), "too large"),
    (lambda: ar.fixed_multiplier([1.0, 2.0**30]), "too large: it must round below 2**30"),
    (lambda: ar.fixed_multiplier([np.ones(2), np.ones(3)]), "do not broadcast"),
    (lambda: ar.shift_multiplier([0.3]), "powers of two: round the scales with power_of_two first"),
    (lambda: ar.shift_multiplier([2.0**31]), "too large: it must be below 2**31"),
    (lambda: ar.shift_multiplier([2.0**30, 1.0]), "too large: it must be below 2**30"),
    (lambda: ar.power_of_two(0.0), "power_of_two needs positive"),
    (lambda: ar.FixedMultiplier((), i32([1])), "at least one term"),
    (lambda: ar.FixedMultiplier((np.ones(2, np.int64),), np.ones(2, np.int32)), "int32 arrays of one shape"),
    (lambda: ar.FixedMultiplier((np.ones(2, np.int32),), np.ones(3, np.int32)), "int32 arrays of one shape"),
    (lambda: ar.FixedMultiplier((i32([-1]),), i32([1])), "must not be negative"),
    (lambda: ar.FixedMultiplier((i32([2**31 - 1]),) * 2, i32([1])), "must sum to 2**31 at most"),
    (lambda: ar.FixedMultiplier((i32([1]),), i32([63])), "shift must lie in [0, 62]"),
    (lambda: ar.requantize_float([T], [0.5, 0.5], 0, 0, 255, np.uint8), "1 terms for 2 multipliers"),
    (lambda: ar.requantize_float([], [], 0, 0, 255, np.uint8), "0 terms for 0 multipliers"),
    (lambda: ar.requantize_float([T.astype(np.int64)], [0.5], 0, 0, 255, np.uint8), "term 0 has dtype int64"),
    (lambda: ar.requantize_float([T.astype(np.float32)], [0.5], 0, 0, 255, np.uint8), "term 0 has dtype float32"),
    (lambda: ar.requantize_float([T], [-0.5], 0, 0, 255, np.uint8), "multiplier 0 must lie in [0, 2**31)"),
    (lambda: ar.requantize_float([T], [np.nan], 0, 0, 255, np.uint8), "multiplier 0 must lie in [0, 2**31)"),
    (lambda: ar.requantize_float([T], [np.ones(2)], 0, 0, 255, np.uint8), "do not broadcast"),
    (
        lambda: ar.requantize_float([T], [np.ones((2, 1))], 0, 0, 255, np.uint8),
        "do not broadcast into the terms' shape",
    ),
    (lambda: ar.requantize_float([T], [0.5], 256, 0, 255, np.uint8), "zero point 256 is outside uint8"),
    (
        lambda: ar.requantize_fixed([T], M, 0, 0, 256, np.uint8),
        "clamp bounds [0, 256] must be ordered and inside uint8",
    ),
    (lambda: ar.requantize_fixed([T], M, 0, 9, 8, np.uint8), "clamp bounds [9, 8] must be ordered"),
    (lambda: ar.requantize_fixed([T], M, 0, 0, 255, np.int64), "dtype int64 is not a quantised type"),
    (lambda: ar.requantize_fixed([T, T], M, 0, 0, 255, np.uint8), "2 terms for 1 multipliers"),
    (
        lambda: ar.requantize_fixed([T], ar.fixed_multiplier([np.ones((2, 1))]), 0, 0, 255, np.uint8),
        "do not broadcast into",
    ),
    (
        lambda: ar.unary_table(np.tanh, 0.1, 0, np.int16, 0.1, 0, np.int8),
        "a table needs an int8 or uint8 input, not int16",
    ),
    (lambda: ar.unary_table(np.sum, 0.1, 0, np.int8, 0.1, 0, np.int8), "the function must be elementwise"),
    (lambda: ar.unary_table(np.tanh, np.ones(256), 0, np.int8, 0.1, 0, np.int8), "a table needs scalar scales"),
    (lambda: ar.lookup(np.zeros(255), np.zeros(2, np.uint8)), "need a (256,) table"),
    (lambda: ar.accumulator_bound(np.zeros((2, 2)), 0, 0, 255, 0), "weight must be an integer of at most 16 bits"),
    (lambda: ar.accumulator_bound(np.zeros((2, 2), np.int8), 2, 0, 255, 0), "axis 2 is out of range"),
    (lambda: ar.accumulator_bound(np.zeros((2, 2), np.int8), 0, 5, 255, 0), "zero point 0 must lie in the activation"),
    (lambda: ar.accumulator_bound(np.zeros((2, 2), np.int8), 0, 0, 255, 0, T), "bias must be int32 of shape (2,)"),
    (lambda: ar.maximum_raw_terms(0, 0), "weight bounds [0, 0] must be int8"),
    (lambda: ar.quantize_weight([np.inf], 0), "weight must be finite"),
    (lambda: ar.quantize_weight([1.0], 0, 9), "bits must be 2 to 8, not 9"),
    (lambda: ar.quantize_weight([1.0], 1), "axis 1 is out of range"),
    (lambda: ar.quantize_weight([1.0], 0, minimum_scale=-1), "minimum_scale must be finite and not negative"),
    (lambda: ar.quantize_weight([1.0], 0, minimum_scale=np.ones(2)), "minimum_scale must be a scalar or of shape (1,)"),
    (lambda: ar.quantize_bias([np.nan], 1, 1), "bias must be finite"),
    (lambda: ar.quantize_bias([0.0, 1.0], 1e-9, 1e-9), "bias leaves int32 at flat index 1 (1e+18)"),
    (lambda: ar.quantize_bias([0.0], 1, np.ones(2)), "do not broadcast into the bias of shape (1,)"),
    (lambda: ar.activation_parameters(1, 0), "must be finite as float32 and ordered"),
    (lambda: ar.activation_parameters(0, np.nan), "must be finite as float32 and ordered"),
    (lambda: ar.activation_parameters(0, 1e39), "must be finite as float32 and ordered"),
]


@pytest.mark.parametrize(("call", "text"), REFUSALS, ids=[f"{i}-{text[:30]}" for i, (_, text) in enumerate(REFUSALS)])
def test_refusals_say_what_is_wrong(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def test_a_fixed_multiplier_can_not_be_changed() -> None:
    source = i32([5])
    fixed = ar.FixedMultiplier((source,), i32([3]))
    source[0] = -7
    assert int(fixed.multipliers[0][0]) == 5
    with pytest.raises(ValueError, match="read-only"):
        fixed.shift[0] = 63


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_example_in_the_document_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "arithmetic.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/arithmetic.md", "exec"), {})


def test_the_module_imports_numpy_and_its_types_only() -> None:
    source = Path(ar.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE))
    assert names == {"__future__", "collections", "dataclasses", "typing", "numpy", "ml_dtypes"}
