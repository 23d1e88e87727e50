"""Elementwise chains, data movement, windows and gathering operators against the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tvm import tirx

from dlc.errors import DlcError
from dlc.ir.ops import OPS
from dlc.ir.ops.relax_ops import BINARY, UNARY
from dlc.targets.cpu.kernels.testing_regions import Body, random
from dlc.targets.gpu.kernels.pointwise import declines
from dlc.targets.gpu.lower import generate
from tests.targets.gpu.region import check

# Every example is compiled: a failing one is reported as it is, not shrunk.
FEW = settings(
    max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)  # fmt: skip
_BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift")
_FLOAT_ONLY = ("isnan", "isinf", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
               "cosh", "tanh", "asinh", "acosh", "atanh", "floor", "ceil", "round", "sigmoid", "erf")  # fmt: skip
_COMPARE = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isnan", "isinf")
_EXACT = ("isnan", "isinf", "floor", "ceil", "round", "sqrt", *BINARY)


def _out_dtype(op: str, dtype: str) -> str:
    return "bool" if op in _COMPARE or op.startswith("logical") else dtype


def _chain(ops: list[str], dtype: str, shape: tuple[int, ...]) -> tuple[Body, list[str]]:
    """One body a test of many operators: each applied to the inputs, all results put side by side."""
    body = Body()
    a, b = body.input(shape, dtype), body.input(shape, dtype)
    results = []
    for op in ops:
        inputs = [a, b] if op in BINARY else [a]
        made = body.node(op, inputs, shape, _out_dtype(op, dtype))
        results.append(body.node("astype", [made], shape, dtype) if _out_dtype(op, dtype) != dtype else made)
    return body, results


def _side_by_side(body: Body, results: list[str], dtype: str, shape: tuple[int, ...]) -> Any:
    out = (shape[0] * len(results), *shape[1:])
    return body.graph(body.node("concat", results, out, dtype, axis=0))


def _operands(dtype: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    a, b = random(rng, shape, dtype), random(rng, shape, dtype)
    if dtype == "float32":
        for array in (a, b):
            array.reshape(-1)[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 0.5, -1.5]
        b.reshape(-1)[8:16] = 2.0
    elif dtype != "bool":
        a.reshape(-1)[:3] = [np.iinfo(dtype).min, np.iinfo(dtype).max, np.iinfo(dtype).min]
        b.reshape(-1)[:6] = [np.iinfo(dtype).max, 0, np.iinfo(dtype).max, 1, 2, 3]
    return [a, b]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "bool"])
def test_integer_operators_are_exact(dtype: str) -> None:
    names = [n for n in BINARY if n not in ("power", "left_shift", "right_shift")]
    names += ["abs", "negative", "sign", "nn.relu", "bitwise_not", "logical_not"]
    if dtype == "bool":
        names = [n for n in names if n.startswith("logical") or n in ("bitwise_and", "bitwise_or", "bitwise_xor")]
    if not dtype.startswith("int"):
        names = [n for n in names if n not in ("abs", "negative", "sign")]
    shape = (4, 17)
    body, results = _chain(names, dtype, shape)
    operands = _operands(dtype, shape)
    if dtype.startswith("int"):  # what numpy does at these ends is not defined
        operands[1][operands[1] == -1] = -2
        operands[0][operands[0] == np.iinfo("int64").min] += 1
    operands[1][operands[1] == 0] = 1
    check("pointwise", _side_by_side(body, results, dtype, shape), operands)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_power_and_shifts(dtype: str) -> None:
    shape = (2, 40)
    body, results = _chain(["power", "left_shift", "right_shift"], dtype, shape)
    operands = _operands(dtype, shape)
    operands[1] = np.abs(operands[1] % 11).astype(dtype)
    check("pointwise", _side_by_side(body, results, dtype, shape), operands)


def test_division_by_zero_gives_zero() -> None:
    body, results = _chain(["divide", "mod", "floor_mod"], "int32", (1, 3))
    kernel = _side_by_side(body, results, "int32", (1, 3))
    with np.errstate(all="ignore"):
        check("pointwise", kernel, [np.array([[5, -5, 0]], np.int32), np.zeros((1, 3), np.int32)])


def test_float_operators() -> None:
    shape = (4, 17)
    names = [n for n in (*BINARY, *UNARY) if n not in _BITS and not n.startswith(("logical", "bitwise"))]
    exact = [n for n in names if n in _EXACT and n != "power"]
    rest = [n for n in names if n not in exact]
    for group, rtol in ((exact, 0.0), (rest, 2e-6)):
        body, results = _chain(group, "float32", shape)
        with np.errstate(all="ignore"):
            check("pointwise", _side_by_side(body, results, "float32", shape), _operands("float32", shape), rtol=rtol)


@pytest.mark.parametrize("mode", ["float", "fixed"])
def test_requantize_with_two_terms_is_exact(mode: str) -> None:
    rng = np.random.default_rng(0)
    shape = (7, 33)
    body = Body()
    accumulator, other = body.input(shape, "int32"), body.input(shape, "uint8")
    first = body.input((33,), "float32" if mode == "float" else "int32")
    second = body.input((33,), "float32" if mode == "float" else "int32")
    inputs, arrays = [accumulator, other, first, second], [
        rng.integers(-(2**20), 2**20, shape, dtype=np.int32), rng.integers(0, 256, shape, dtype=np.uint8)]  # fmt: skip
    if mode == "float":
        arrays += [rng.random(33).astype(np.float32) * 1e-3, rng.random(33).astype(np.float32)]
    else:
        arrays += [rng.integers(1, 2**29, 33, dtype=np.int32), rng.integers(1, 2**29, 33, dtype=np.int32)]
        inputs.append(body.input((33,), "int32"))
        arrays.append(rng.integers(30, 40, 33, dtype=np.int32))
    attrs = {"terms": 2, "mode": mode, "term_zero_points": (0, 117), "zero_point": 13, "lo": 13, "hi": 250}
    y = body.node("dlc.requantize", inputs, shape, "uint8", **attrs, out_dtype="uint8")
    check("pointwise", body.graph(y), arrays)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16"])
def test_quantize_and_dequantize_are_exact(dtype: str) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 9, 6)
    x = (rng.standard_normal(shape) * 40).astype(np.float32)
    x.reshape(-1)[:5] = [np.inf, -np.inf, np.nan, 0.5, 1.5]
    scale = rng.random(9).astype(np.float32) + 0.3
    zero = rng.integers(1, 100, 9).astype(dtype)
    body = Body()
    names = [body.input(shape), body.input((9,)), body.input((9,), dtype)]
    q = body.node("dlc.quantize", names, shape, dtype, axis=1, out_dtype=dtype)
    check("pointwise", body.graph(q), [x, scale, zero])
    body = Body()
    names = [body.input(shape, dtype), body.input((9,)), body.input((9,), dtype)]
    y = body.node("dlc.dequantize", names, shape, "float32", axis=1, out_dtype="float32")
    check("pointwise", body.graph(y), [rng.integers(0, 120, shape).astype(dtype), scale, zero])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_table(dtype: str) -> None:
    rng = np.random.default_rng(1)
    body = Body()
    q, table = body.input((3, 100), dtype), body.input((256,), "uint8")
    y = body.node("dlc.table", [q, table], (3, 100), "uint8")
    check("pointwise", body.graph(y), [random(rng, (3, 100), dtype), random(rng, (256,), "uint8")])


def test_symbolic_extents_and_broadcasting() -> None:
    n = tirx.Var("N", "int64")
    body = Body()
    a, b = body.input((n, 1, 5)), body.input((4, 1))
    y = body.node("add", [a, b], (n, 4, 5))
    rng = np.random.default_rng(0)
    check("pointwise", body.graph(y), [random(rng, (7, 1, 5), "float32"), random(rng, (4, 1), "float32")],
          sizes={"N": 7})  # fmt: skip


@FEW
@given(data=st.data())
def test_data_movement(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(2, 6), min_size=2, max_size=4)))
    rank = len(shape)
    axis = data.draw(st.integers(0, rank - 1))
    rng = np.random.default_rng(0)
    body = Body()
    x = body.input(shape, "int32")
    axes = data.draw(st.permutations(range(rank)))
    y = body.node("permute_dims", [x], [shape[a] for a in axes], "int32", axes=axes)
    turned = tuple(shape[a] for a in axes)
    begin = data.draw(st.integers(0, turned[axis] - 1))
    cut = (*turned[:axis], turned[axis] - begin, *turned[axis + 1 :])
    y = body.node("strided_slice", [y], cut, "int32", axes=[axis], begin=[begin], end=[turned[axis]], strides=[1])
    mode = data.draw(st.sampled_from(["constant", "edge", "wrap", "symmetric"]))
    widths = [data.draw(st.integers(0, 2)) for _ in range(2 * rank)]
    padded = tuple(d + widths[2 * i] + widths[2 * i + 1] for i, d in enumerate(cut))
    y = body.node("nn.pad", [y], padded, "int32", pad_width=widths, mode=mode, value=-7)
    joined = (*padded[:axis], 2 * padded[axis], *padded[axis + 1 :])
    y = body.node("concat", [y, y], joined, "int32", axis=axis)
    picks = body.input((3,), "int64")
    taken = (*joined[:axis], 3, *joined[axis + 1 :])
    y = body.node("take", [y, picks], taken, "int32", axis=axis)
    indices = rng.integers(-joined[axis], joined[axis], 3)
    check("pointwise", body.graph(y), [random(rng, shape, "int32"), indices])


def test_gather_elements_and_negative_steps() -> None:
    rng = np.random.default_rng(0)
    body = Body()
    x, index = body.input((6, 5)), body.input((4, 5), "int64")
    y = body.node("strided_slice", [x], (3, 5), axes=[0], begin=[5], end=[-1], strides=[-2])
    y = body.node("gather_elements", [y, index], (4, 5), axis=0)
    check("pointwise", body.graph(y), [random(rng, (6, 5), "float32"), rng.integers(-3, 3, (4, 5))])


@FEW
@given(data=st.data())
def test_pools(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    attrs: dict[str, Any] = {
        "kernel": kernel, "strides": [data.draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [data.draw(st.integers(0, k - 1)) for k in kernel] * 2,
        "dilations": [data.draw(st.integers(1, 2)) for _ in range(rank)],
        "ceil_mode": data.draw(st.booleans()), "count_include_pad": data.draw(st.booleans()),
        "layout": "channels_last",
    }  # fmt: skip
    dtype, mode, out = data.draw(
        st.sampled_from([("float32", "max", "float32"), ("float32", "average", "float32"), ("uint8", "max", "uint8"),
                         ("uint8", "sum", "int32"), ("uint8", "average", "float32")])
    )  # fmt: skip
    if out == "int32":
        attrs["x_zero_point"] = 7
    shape = (2, *(data.draw(st.integers(5, 9)) for _ in range(rank)), data.draw(st.integers(1, 9)))
    result, _ = OPS["dlc.pool"].infer([(shape, dtype)], {**attrs, "mode": mode, "out_dtype": out})  # type: ignore[misc]
    body = Body()
    y = body.node("dlc.pool", [body.input(shape, dtype)], result, out, **attrs, mode=mode, out_dtype=out)
    check("window", body.graph(y), [random(np.random.default_rng(0), shape, dtype)], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_gathering_operators(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = random(rng, (5, 7), dtype)
    for attrs in ({"exclusive": False, "reverse": True}, {"exclusive": True, "reverse": False}):
        body = Body()
        y = body.node("dlc.cumulate", [body.input((5, 7), dtype)], (5, 7), dtype, mode="sum", axis=1, **attrs)
        check("pointwise", body.graph(y), [x], rtol=1e-5)
    x[2, 3] = x[2, 5]
    if dtype == "float32":
        x[1, 2] = x[1, 4] = np.nan
    for largest in (True, False):
        body = Body()
        y = body.node("dlc.top_indices", [body.input((5, 7), dtype)], (5, 3), "int64", axis=1, k=3, largest=largest)
        check("pointwise", body.graph(y), [x])
    for reduction in ("none", "max"):
        body = Body()
        inputs = [body.input((5, 7), dtype), body.input((3,), "int64"), body.input((3, 7), dtype)]
        y = body.node("dlc.scatter_rows", inputs, (5, 7), dtype, reduction=reduction)
        check("pointwise", body.graph(y), [x, np.array([4, 0, 4]), random(rng, (3, 7), dtype)])


def test_reasons_for_declining() -> None:
    body = Body()
    y = body.node("nn.relu", [body.input((3,), "float16")], (3,), "float16")
    assert declines(body.graph(y)) == "elements of float16"
    body = Body()
    y = body.node("dlc.resize", [body.input((3,))], (6,), mode="nearest")
    with pytest.raises(DlcError, match=r"operator dlc\.resize"):
        generate("pointwise", body.graph(y), {})
