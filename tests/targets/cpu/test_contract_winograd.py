"""Winograd's algorithm: equal to plain sums for the extreme integers, floats within its bound; any edge, any block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_contract import EPSILON, FLOAT, INTEGER, MACHINE, SHORT, conv_reference, operands, quickly
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import GENERIC, Isa, isa_by_name, levels_of
from dlc.targets.cpu.kernels import contract, contract_cost, contract_winograd
from dlc.targets.cpu.kernels.builder import kernel, splat, symbolic
from dlc.targets.cpu.kernels.contract import Contraction, Schedule, conv_contraction, conv_weight
from dlc.targets.cpu.kernels.contract_winograd_plan import F2, FORMS, Form, most_channels, product_of
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

LEVELS = [isa for isa in levels_of(MACHINE) if isa.dot == "pmaddwd"]
FLOAT_LEVELS = [*(isa for isa in levels_of(MACHINE) if isa.dot != "amx"), GENERIC]


def problem_of(
    shape: tuple[Any, ...], outputs: int, pad: int, strides: tuple[int, int] = (1, 1), kernel_size: int = 3,
    dtypes: tuple[str, str] = INTEGER,
) -> tuple[Contraction, Layout]:  # fmt: skip
    """A convolution of an image (N, H, W, C) whose halo holds the padding."""
    layout = Layout.padded(shape, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    out = [(d + 2 * pad - kernel_size) // s + 1 for d, s in zip(shape[1:3], strides, strict=True)]
    weight = (outputs, shape[3], kernel_size, kernel_size)
    problem = conv_contraction(
        layout, weight, out, strides=strides, pads_begin=(pad, pad), dilations=(1, 1), dtypes=dtypes
    )
    return problem, layout


def schedule_of(problem: Contraction, isa: Isa, seed: int) -> Schedule:
    """Any candidate, perhaps with smaller blocks: all of them must be right."""
    assert contract_winograd.declines(problem, isa) is None
    every = contract_winograd.candidates(problem, isa, MACHINE)
    schedule = every[seed % len(every)]
    return replace(schedule, unroll=1 + seed % 3, block=max(1, schedule.block // (1 + seed % 4)))


def run_conv(
    problem: Contraction, layout: Layout, schedule: Schedule, isa: Isa, arrays: list[np.ndarray], bias: bool,
    residual: np.ndarray | None = None, shared: bool = False,
) -> np.ndarray:  # fmt: skip
    """The outputs for (a, w, init), in guarded memory; with `residual` max(0, outputs + residual)."""
    a, w, init = arrays
    batch, outputs, acc = len(a), len(init), problem.acc_dtype
    packed = contract.pack(problem, schedule, isa, conv_weight(w))
    assert packed.size == contract.packed_size(problem, schedule, isa)
    out = Layout.dense((layout.shape[0], problem.outer[-1].extent, problem.rows.extent, outputs))
    results = np.full((batch, *out.shape[1:]), -77, acc)
    dims = [] if isinstance(layout.shape[0], int) else [layout.shape[0]]
    operand_list = [
        ("a", str(a.dtype), layout),
        ("w", str(packed.dtype), Layout.dense(packed.shape)),
        ("b", acc, Layout.dense((outputs,))),
        ("r", acc, out),
        ("o", acc, out),
    ]
    with kernel("conv", operand_list, dims, shared=shared) as built:
        x, y, b, r, o = built.operands

        def store(outer: Any, row: Any, c: Any, value: Any, lanes: int, mask: Any) -> None:
            index = (*outer, row, c)
            if residual is not None:
                value = T.max(value + r.load(index, lanes, mask), splat(T.float32(0), lanes))
            o.store(index, value, lanes, mask)

        contract.emit(problem, schedule, isa, x, y, b if bias else None, store, built.share)
    every = [a, packed, init, results if residual is None else residual, results]
    return Compiled(built.func, isa, 5, len(dims)).run(every, [batch] * len(dims))[4]


# What cases of integers and of floats have in common.
CASES: dict[str, st.SearchStrategy[Any]] = {
    "height": st.integers(3, 11),
    "width": st.integers(3, 11),
    "outputs": st.integers(1, 40),
    "pad": st.integers(0, 1),
    "dynamic": st.booleans(),
    "bias": st.booleans(),
    "shared": st.booleans(),
    "seed": st.integers(0, 1000),
}


@quickly(25)
@given(
    level=st.sampled_from(range(len(LEVELS))),
    batch=st.integers(1, 2),
    channels=st.sampled_from([8, 16, 24, 32, 64]),
    **CASES,
)
def test_integers_equal_plain_sums(
    level: int, batch: int, height: int, width: int, channels: int, outputs: int, pad: int, dynamic: bool, bias: bool,
    shared: bool, seed: int,
) -> None:  # fmt: skip
    rng, isa = np.random.default_rng(seed), LEVELS[level]
    shape = (symbolic("batch") if dynamic else batch, height, width, channels)
    problem, layout = problem_of(shape, outputs, pad)
    padded = (batch, height + 2 * pad, width + 2 * pad, channels)
    a, w, init = operands(rng, INTEGER, padded, (outputs, channels, 3, 3), outputs)
    got = run_conv(problem, layout, schedule_of(problem, isa, seed), isa, [a, w, init], bias, shared=shared)
    wanted = conv_reference(a.astype("int64"), w.astype("int64"), (1, 1), (1, 1), 1, got.shape[1:3])
    np.testing.assert_array_equal(got, wanted + (init if bias else 0))


def magnitude(a: np.ndarray, w: np.ndarray, out: tuple[int, ...], form: Form) -> np.ndarray:
    """A^T (|G||g||G^T| * |B^T||d||B|) A with the magnitudes of A, for each output: see `contract_winograd_plan`."""
    forward, weight, back = product_of(form.inputs, True), abs(np.array(form.weight)), product_of(form.outputs, True)
    u = np.einsum("ai,bj,ocij->abco", weight, weight, abs(w).astype("float64"))
    size, side = form.out, form.side
    wide = np.zeros((len(a), out[0] + side, out[1] + side, a.shape[-1]))
    wide[:, : a.shape[1], : a.shape[2]] = abs(a)
    # Over the edge, tiles read the last line and column again.
    wide[:, a.shape[1] :] = wide[:, a.shape[1] - 1 : a.shape[1]]
    wide[:, :, a.shape[2] :] = wide[:, :, a.shape[2] - 1 : a.shape[2]]
    result = np.zeros((len(a), out[0] + size, out[1] + size, len(w)))
    for y in range(0, out[0], size):
        for x in range(0, out[1], size):
            v = np.einsum("ai,bj,nijc->nabc", forward, forward, wide[:, y : y + side, x : x + side])
            m = np.einsum("nabc,abco->nabo", v, u)
            result[:, y : y + size, x : x + size] = np.einsum("ia,jb,nabo->nijo", back, back, m)
    return result[:, : out[0], : out[1]]


@quickly(40)
@given(
    level=st.sampled_from(range(len(FLOAT_LEVELS))),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    residual=st.booleans(),
    **CASES,
)
def test_floats_are_within_the_bound(
    level: int, batch: int, height: int, width: int, channels: int, outputs: int, pad: int, dynamic: bool, bias: bool,
    residual: bool, shared: bool, seed: int,
) -> None:  # fmt: skip
    rng, isa = np.random.default_rng(seed), FLOAT_LEVELS[level]
    shape = (symbolic("batch") if dynamic else batch, height, width, channels)
    problem, layout = problem_of(shape, outputs, pad, dtypes=FLOAT)
    padded = (batch, height + 2 * pad, width + 2 * pad, channels)
    a, w, init = operands(rng, FLOAT, padded, (outputs, channels, 3, 3), outputs)
    out = (batch, height + 2 * pad - 2, width + 2 * pad - 2, outputs)
    other = rng.standard_normal(out).astype("float32") if residual else None
    schedule = schedule_of(problem, isa, seed)
    got = run_conv(problem, layout, schedule, isa, [a, w, init], bias, other, shared)
    wanted = conv_reference(a.astype("float64"), w.astype("float64"), (1, 1), (1, 1), 1, out[1:3])
    form = FORMS[schedule.tile]
    wanted, bound = wanted + init * bias, (channels + form.roundings) * magnitude(a, w, out[1:3], form)
    bound = bound + abs(init) * bias
    if other is not None:
        wanted, bound = np.maximum(wanted + other, 0), bound + abs(wanted + other)
    assert np.all(abs(got - wanted) <= EPSILON / 2 * 1.0001 * bound)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_tiles(value: float) -> None:
    """An input reaches the tiles that read it and no others; a number near the largest one is as an infinity there."""
    rng, isa = np.random.default_rng(0), FLOAT_LEVELS[0]
    problem, layout = problem_of((1, 10, 10, 8), 5, 0, dtypes=FLOAT)
    a, w, init = operands(rng, FLOAT, (1, 10, 10, 8), (5, 8, 3, 3), 5)
    a[0, 4, 4, 3] = value
    if value == 3e38:
        a[0, 4, 6, 3] = -value  # their difference overflows
    schedule = replace(schedule_of(problem, isa, 0), tile=2)
    got = run_conv(problem, layout, schedule, isa, [a, w, init], True)
    reached = ~np.isfinite(got).all(-1)[0]
    assert reached[4, 4] and (reached[2:5, 2:5].all() or value == 3e38)
    reached[2:6, 2:8] = False
    assert not reached.any()


def test_no_sum_leaves_32_bits() -> None:
    """The bound of the channels against the largest sums that extreme values can make."""
    rng, most = np.random.default_rng(0), most_channels()
    forward, back, weight = product_of(F2.inputs), product_of(F2.outputs), 2 * np.array(F2.weight)
    for _ in range(50):
        d = rng.choice([0, 255], (4, 4))
        g = rng.choice([-128, 127], (3, 3))
        v, u = forward @ d @ forward.T, weight @ g @ weight.T
        assert max(abs(v).max(), abs(u).max()) < 2**15
        assert (abs(back) @ abs(v * u * most) @ abs(back).T).max() < 2**31
    assert most == 450


@pytest.mark.parametrize(
    "isa, shape, strides, kernel_size, text",
    [
        ("avx512_vnni", (1, 8, 8, 32), (1, 1), 3, "for floats and s16 products, not for uint8 by int8 on avx512_vnni"),
        ("avx2", (1, 8, 8, 32), (2, 2), 3, "3x3 convolutions of stride 1"),
        ("avx2", (1, 8, 8, 32), (1, 1), 5, "3x3 convolutions of stride 1"),
        ("avx2", (1, 8, 8, 12), (1, 1), 3, "multiple of 8 channels up to 450, not 12"),
        ("avx2", (1, 8, 8, 512), (1, 1), 3, "multiple of 8 channels up to 450, not 512"),
        ("avx2", (1, 8, 8, 256), (1, 1), 3, "weights of 256 x 256 channels are too large for the stack"),
    ],
)
def test_declines(isa: str, shape: Any, strides: Any, kernel_size: int, text: str) -> None:
    problem, _ = problem_of(shape, 256, 1, strides, kernel_size)
    assert text in (contract_winograd.declines(problem, isa_by_name(isa)) or "")


def test_declines_what_is_no_convolution() -> None:
    rows = contract.matmul_contraction(Layout.dense((9, 64)), 16, dtypes=INTEGER)
    assert "3x3 convolutions" in (contract_winograd.declines(rows, isa_by_name("avx2")) or "")


@pytest.mark.parametrize("isa", [*FLOAT_LEVELS, isa_by_name("aarch64")], ids=lambda isa: isa.name)
def test_takes_floats_on_every_level_but_no_short_weights(isa: Isa) -> None:
    floats, _ = problem_of((1, 8, 8, 12), 20, 1, dtypes=FLOAT)
    assert contract_winograd.declines(floats, isa) is None
    short, _ = problem_of((1, 8, 8, 12), 20, 1, dtypes=SHORT)
    assert "not for float32 by bfloat16" in contract.choose(short, isa, MACHINE).note


def test_declines_what_the_stack_does_not_hold() -> None:
    problem, _ = problem_of((1, 8, 8, 32768), 16, 1, dtypes=FLOAT)
    assert "too large for the stack" in (contract_winograd.declines(problem, FLOAT_LEVELS[0]) or "")


def test_a_convolution_of_unknown_extents_says_why_not() -> None:
    problem, _ = problem_of((1, 8, symbolic("width"), 12), 20, 1, dtypes=FLOAT)
    assert "extents known" in contract.choose(problem, FLOAT_LEVELS[0], MACHINE).note
    strided, _ = problem_of((1, 8, 8, 12), 20, 1, (2, 2), dtypes=FLOAT)
    assert contract.choose(strided, FLOAT_LEVELS[0], MACHINE).note == ""


def test_an_unknown_batch_is_predicted_as_the_batch_that_is_guessed() -> None:
    shape, isa = (28, 28, 32), FLOAT_LEVELS[0]
    times = []
    for batch in (symbolic("batch"), contract_cost.GUESS):
        problem, _ = problem_of((batch, *shape), 32, 1, dtypes=FLOAT)
        chosen = contract.choose(problem, isa, MACHINE)
        assert chosen.unit == "winograd"
        times.append(contract.predicted_seconds(problem, chosen, isa, MACHINE))
    assert times[0] == pytest.approx(times[1])
