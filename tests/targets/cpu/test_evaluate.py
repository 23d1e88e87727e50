"""Every elementwise, quantisation and data-movement operator on vectors against the interpreter, on every level."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir import arithmetic
from dlc.ir.ops import OPS
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import pointwise
from dlc.targets.cpu.kernels.evaluate import ELEMENTWISE
from dlc.targets.cpu.kernels.injective import INJECTIVE
from dlc.targets.cpu.kernels.testing_regions import LEVELS, Body, check, random
from dlc.targets.cpu.target import NO_KERNEL

every_level = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)

MATHS = ["exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"]
MATHS += ["sigmoid", "erf"]
EXACT = ["abs", "negative", "sqrt", "rsqrt", "floor", "ceil", "round", "sign", "nn.relu"]
COMPARE = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, 3.5, -2.5, 1e30, -1e30, 2.0**23 + 1]


def _floats(rng: np.random.Generator, size: int, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.concatenate([np.array(SPECIAL), rng.standard_normal(size - len(SPECIAL)) * 3]).astype(dtype)


def test_table_is_complete() -> None:
    wanted = {name for name, spec in OPS.items() if spec.kind == "elementwise"} - {"dlc.table", *NO_KERNEL}
    assert wanted == set(ELEMENTWISE)
    assert {name for name, spec in OPS.items() if spec.kind == "injective"} == set(INJECTIVE)


@every_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_unary(isa: Isa, dtype: str) -> None:
    x = _floats(np.random.default_rng(0), 67, dtype)
    body = Body()
    i = body.input(x.shape, dtype)
    exact = [body.node(op, [i], x.shape, dtype) for op in EXACT if op != "rsqrt"]
    exact += [body.node(op, [i], x.shape, "bool") for op in ("isnan", "isinf", "logical_not")]
    check(pointwise.emit, body.graph(*exact), [x], isa)
    body = Body()
    i = body.input(x.shape, dtype)
    maths = [body.node(op, [i], x.shape, dtype) for op in [*MATHS, "rsqrt"]]
    check(pointwise.emit, body.graph(*maths), [np.where(np.abs(x) < 1e20, x, 1)], isa, rtol=5e-7, atol=1e-14)


@every_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operands_that_algebra_takes_for_equal_or_zero(isa: Isa, dtype: str) -> None:
    x = np.array([*SPECIAL, *SPECIAL], dtype)
    body = Body()
    i = body.input(x.shape, dtype)
    outputs = [body.node(op, [i, i], x.shape, dtype) for op in ("subtract", "divide", "maximum")]
    outputs += [body.node(op, [i, i], x.shape, "bool") for op in COMPARE]
    zero = body.constant(0, dtype)
    outputs += [body.node("multiply", pair, x.shape, dtype) for pair in ([i, zero], [zero, i])]
    check(pointwise.emit, body.graph(*outputs), [x], isa)


def _pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        special = np.array([*SPECIAL, 7.5, -7.5, 0.3], dtype)
        a, b = (g.ravel() for g in np.meshgrid(special, special))
        more = [(rng.standard_normal(100) * s).astype(dtype) for s in (50, 3)]
        return np.concatenate([a, more[0]]), np.concatenate([b, more[1]])
    info = np.iinfo(dtype)
    special = np.array([0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1, 5, 100], dtype)
    a, b = (g.ravel() for g in np.meshgrid(special, special))
    return np.concatenate([a, random(rng, (60,), dtype)]), np.concatenate([b, random(rng, (60,), dtype)])


@every_level
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_binary(isa: Isa, dtype: str) -> None:
    a, b = _pairs(dtype)
    body = Body()
    x, y = body.input(a.shape, dtype), body.input(a.shape, dtype)
    arithmetic_ops = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "mod", "floor_mod", "floor_divide"]
    found = [body.node(op, [x, y], a.shape, dtype) for op in arithmetic_ops]
    found += [body.node(op, [x, y], a.shape, "bool") for op in [*COMPARE, "logical_and", "logical_or", "logical_xor"]]
    check(pointwise.emit, body.graph(*found), [a, b], isa)
    body = Body()
    x, y = body.input(a.shape, dtype), body.input(a.shape, dtype)
    two = body.constant(2, dtype)
    found = [body.node("power", [x, y], a.shape, dtype), body.node("power", [x, two], a.shape, dtype)]
    check(pointwise.emit, body.graph(*found), [a, b], isa, rtol=2e-7, atol=1e-44)


@every_level
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers(isa: Isa, dtype: str) -> None:
    a, b = _pairs(dtype)
    body = Body()
    x, y = body.input(a.shape, dtype), body.input(a.shape, dtype)
    two = ["add", "subtract", "multiply", "divide", "floor_divide", "floor_mod", "mod", "maximum", "minimum"]
    if dtype.endswith("int64"):
        two.remove("divide")  # the interpreter's own goes through |x| in int64
    found = [body.node(op, [x, y], a.shape, dtype) for op in [*two, "bitwise_and", "bitwise_or", "bitwise_xor"]]
    count = body.node("bitwise_and", [y, body.constant(63, dtype)], a.shape, dtype)
    found += [body.node(op, [x, count], a.shape, dtype) for op in ("left_shift", "right_shift")]
    found.append(body.node("power", [x, body.node("abs", [count], a.shape, dtype)], a.shape, dtype))
    found += [body.node(op, [x], a.shape, dtype) for op in ("abs", "negative", "sign", "bitwise_not", "nn.relu")]
    found += [body.node(op, [x, y], a.shape, "bool") for op in [*COMPARE, "logical_and", "logical_xor"]]
    with np.errstate(all="ignore"):
        check(pointwise.emit, body.graph(*found), [a, b], isa)


@every_level
def test_bools_and_where(isa: Isa) -> None:
    rng = np.random.default_rng(2)
    body = Body()
    x, y, f, g = body.input((37,), "bool"), body.input((37,), "bool"), body.input((37,)), body.input((37,))
    ops = ["add", "multiply", "maximum", "minimum", *COMPARE, "logical_and", "logical_or", "logical_xor"]
    found = [body.node(op, [x, y], (37,), "bool") for op in [*ops, "bitwise_and", "bitwise_or", "bitwise_xor"]]
    found += [body.node(op, [x], (37,), "bool") for op in ("logical_not", "bitwise_not")]
    found.append(body.node("where", [found[0], f, g], (37,)))
    found.append(body.node("where", [x, y, found[1]], (37,), "bool"))
    arrays = [random(rng, (37,), d) for d in ("bool", "bool", "float32", "float32")]
    check(pointwise.emit, body.graph(*found), arrays, isa)


TYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]


@every_level
@pytest.mark.parametrize("source", [*TYPES, "bool"])
def test_casts(isa: Isa, source: str) -> None:
    rng = np.random.default_rng(3)
    x = random(rng, (67,), source) if source not in ("float32", "float64") else (rng.random(67) * 120).astype(source)
    if source in ("float16", "bfloat16"):
        x = np.abs(x)  # a negative float has no unsigned value
    body = Body()
    i = body.input(x.shape, source)
    found = [body.node("astype", [i], x.shape, dtype) for dtype in [*TYPES, "bool"]]
    check(pointwise.emit, body.graph(*found), [x], isa)


@every_level
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats(isa: Isa, dtype: str) -> None:
    codes = np.arange(65536, dtype="uint16").view(np.dtype(dtype))
    body = Body()
    i = body.input(codes.shape, dtype)
    found = body.node("astype", [i], codes.shape)
    back = body.node("astype", [found], codes.shape, dtype)
    check(pointwise.emit, body.graph(found, back), [codes], isa)
    # Rounding: neighbours of every value and of every midpoint.
    finite = np.sort(codes[np.isfinite(codes.astype("float32"))].astype("float32"))
    middle = ((finite[1:].astype("float64") + finite[:-1]) / 2).astype("float32")
    x = np.concatenate([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
    x = np.concatenate([x, np.float32([65519.9, 65520, 1e6, 3.4e38, -3.4e38])])
    body = Body()
    i = body.input(x.shape)
    out = body.node("astype", [i], x.shape, dtype)
    with np.errstate(over="ignore"):
        check(pointwise.emit, body.graph(out), [x], isa)


@every_level
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_quantize(isa: Isa, dtype: str) -> None:
    rng = np.random.default_rng(4)
    info = np.iinfo(dtype)
    x = np.concatenate([SPECIAL, rng.standard_normal(487) * 300, (np.arange(-500, 500) + 0.5) * 0.25]).astype("float32")
    x = x.reshape(3, 500)
    body = Body()
    i, scales = body.input(x.shape), body.input((3,))
    zeros = body.input((3,), dtype)
    half, third = body.constant(0.25), body.constant(0.3)
    zero = body.constant(int(info.min) + 7, dtype)
    found = [body.node("dlc.quantize", [i, s, zero], x.shape, dtype, axis=1, out_dtype=dtype) for s in (half, third)]
    found.append(body.node("dlc.quantize", [i, scales, zeros], x.shape, dtype, axis=0, out_dtype=dtype))
    found.append(body.node("dlc.dequantize", [found[-1], scales, zeros], x.shape, axis=0, out_dtype="float32"))
    arrays = [x, np.array([0.1, 2.0, 0.7], "float32"), random(rng, (3,), dtype)]
    check(pointwise.emit, body.graph(*found), arrays, isa)


@every_level
def test_quantize_last_axis(isa: Isa) -> None:
    rng = np.random.default_rng(5)
    body = Body()
    i, scales, zeros = body.input((4, 37)), body.input((37,)), body.input((37,), "int8")
    q = body.node("dlc.quantize", [i, scales, zeros], (4, 37), "int8", axis=-1, out_dtype="int8")
    back = body.node("dlc.dequantize", [q, scales, zeros], (4, 37), axis=1, out_dtype="float32")
    arrays = [random(rng, (4, 37), "float32"), rng.uniform(0.01, 1, 37).astype("float32"), random(rng, (37,), "int8")]
    check(pointwise.emit, body.graph(q, back), arrays, isa)


@every_level
@pytest.mark.parametrize("zero", [0, 17, -(2**31)])
def test_dequantize_int32(isa: Isa, zero: int) -> None:
    body = Body()
    i = body.input((67,), "int32")
    scale, point = body.constant(0.37), body.constant(zero, "int32")
    out = body.node("dlc.dequantize", [i, scale, point], (67,), axis=0, out_dtype="float32")
    check(pointwise.emit, body.graph(out), [random(np.random.default_rng(6), (67,), "int32")], isa)


def _requantize(
    body: Body, terms: Sequence[str], multipliers: Sequence[str], shape: Sequence[int], **attrs: object
) -> str:
    given_attrs = {"terms": len(terms), "term_zero_points": [0] * len(terms), "zero_point": 3, "lo": 0, "hi": 255}
    given_attrs |= {"out_dtype": "uint8", "mode": "float", **attrs}
    return body.node("dlc.requantize", [*terms, *multipliers], shape, given_attrs["out_dtype"], **given_attrs)


@every_level
def test_requantize_float(isa: Isa) -> None:
    rng = np.random.default_rng(7)
    # Products that lie at and near ties, where a fused multiply-add would differ.
    acc = rng.integers(-(2**21), 2**21, (40, 37), dtype="int32")
    acc[:2] = [[-(2**31)], [2**31 - 1]]
    body = Body()
    x, y, per = body.input(acc.shape, "int32"), body.input(acc.shape, "uint8"), body.input((37,))
    tie, third = body.constant(2**-13), body.constant(0.3333)
    found = [
        _requantize(body, [x], [tie], acc.shape),
        _requantize(body, [x], [per], acc.shape, out_dtype="int8", zero_point=-5, lo=-128, hi=127),
        _requantize(body, [x, y], [tie, third], acc.shape, term_zero_points=[0, 130], lo=3),
        _requantize(body, [x, y, y], [per, third, tie], acc.shape, term_zero_points=[5, 130, 0], hi=200),
        _requantize(body, [x], [per], acc.shape, out_dtype="int16", zero_point=0, lo=-30000, hi=30000),
    ]
    arrays = [acc, random(rng, acc.shape, "uint8"), rng.uniform(1e-5, 1e-3, 37).astype("float32")]
    check(pointwise.emit, body.graph(*found), arrays, isa)


@every_level
def test_requantize_fixed(isa: Isa) -> None:
    rng = np.random.default_rng(8)
    acc = rng.integers(-(2**22), 2**22, (40, 37), dtype="int32")
    acc[:2] = [[-(2**31)], [2**31 - 1]]
    one = arithmetic.fixed_multiplier([rng.uniform(1e-6, 1e-3, 37)])
    two = arithmetic.fixed_multiplier([rng.uniform(1e-6, 1e-3, 37), rng.uniform(0.1, 1, 37)])
    same = arithmetic.fixed_multiplier([0.00321])
    body = Body()
    x, y = body.input(acc.shape, "int32"), body.input(acc.shape, "uint8")
    names = [body.input((37,), "int32") for _ in range(5)]
    multiplier, shift = body.constant(same.multipliers[0], "int32"), body.constant(same.shift, "int32")
    zero_shift = body.constant(0, "int32")
    three = body.constant(3, "int32")
    found = [
        _requantize(body, [x], names[:2], acc.shape, mode="fixed"),
        _requantize(body, [x, y], names[2:], acc.shape, mode="fixed", term_zero_points=[0, 130]),
        _requantize(body, [x], [multiplier, shift], acc.shape, mode="fixed", out_dtype="int8", lo=-128, hi=127),
        _requantize(body, [y], [three, zero_shift], acc.shape, mode="fixed"),
    ]
    arrays = [acc, random(rng, acc.shape, "uint8"), *one.multipliers, one.shift, *two.multipliers, two.shift]
    check(pointwise.emit, body.graph(*found), arrays, isa)


@every_level
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("out", ["uint8", "int8", "uint16"])
def test_table(isa: Isa, dtype: str, out: str) -> None:
    rng = np.random.default_rng(9)
    body = Body()
    q, table = body.input((5, 67), dtype), body.input((256,), out)
    found = body.node("dlc.table", [q, table], (5, 67), out)
    check(pointwise.emit, body.graph(found), [random(rng, (5, 67), dtype), random(rng, (256,), out)], isa)


@every_level
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("wide", ["float32", "int16"])
def test_table_among_wider_types(isa: Isa, dtype: str, wide: str) -> None:
    rng = np.random.default_rng(10)
    body = Body()
    q, table = body.input((5, 67), dtype), body.input((256,), "int8")
    found = body.node("astype", [body.node("dlc.table", [q, table], (5, 67), "int8")], (5, 67), wide)
    check(pointwise.emit, body.graph(found), [random(rng, (5, 67), dtype), random(rng, (256,), "int8")], isa)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_chains_are_equal_to_numpy(data: st.DataObject) -> None:
    """Chains of exact float operators give numpy's bits: nothing is contracted or reassociated."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = (*data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=2)), data.draw(st.integers(1, 70)))
    isa = data.draw(st.sampled_from(LEVELS))
    body = Body()
    known = [body.input(shape) for _ in range(3)] + [body.constant(0.7)]
    for _ in range(data.draw(st.integers(1, 8))):
        op = data.draw(st.sampled_from(["add", "subtract", "multiply", "divide", "maximum", "minimum"]))
        known.append(body.node(op, [data.draw(st.sampled_from(known)) for _ in range(2)], shape))
    if body.constants and set(body.nodes[0].inputs) == {"c0"}:
        return
    wide = [n for n in body.nodes if set(n.inputs) != {"c0"}]
    if len(wide) != len(body.nodes):
        return  # two scalars make a scalar
    with np.errstate(all="ignore"):
        check(pointwise.emit, body.graph(known[-1]), [random(rng, shape, "float32") for _ in range(3)], isa)
