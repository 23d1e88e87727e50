"""Reductions against the interpreter: operators, types, axes, remainders, halos, symbolic batch, neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import EPSILON, LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import reduce

HALF = EPSILON / 2
FLOATS = ("float32", "float64", "float16")
ARG = ("argmax", "argmin")


def data(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, op: str, size: float) -> np.ndarray:
    if dtype not in FLOATS:
        info = np.iinfo(dtype)
        few = op in ARG  # ties
        return rng.integers(0 if few else info.min, 5 if few else info.max, shape, dtype=dtype, endpoint=True)
    if op == "prod":
        return (rng.uniform(0.9, 1.1, shape) * rng.choice([-size, size], shape)).astype(dtype)
    x = rng.standard_normal(shape).astype(dtype)
    if op in ("max", "min", *ARG):
        x = np.where(rng.random(shape) < 0.2, np.round(x), x).astype(dtype)  # ties
        x[rng.random(shape) < rng.choice([0, 0.02])] = np.nan
        x[rng.random(shape) < rng.choice([0, 0.02, 1])] = -np.inf if op in ("max", "argmax") else np.inf
    return x


def build(case: dict[str, Any], shape: tuple[Any, ...]) -> tuple[Body, tuple[int, ...]]:
    """A body of: halve (floats) or widen (uint8), reduce, double. All but the reduction are exact."""
    op, dtype, rank = case["op"], case["dtype"], len(shape)
    axes = tuple(sorted({a % rank for a in case["axes"]}))[: 1 if op in ARG else None]
    body = Body()
    x, kind = body.input(shape, dtype), dtype
    if case["before"] and dtype in ("float32", "float64"):
        x = body.node("relax.multiply", [x, body.constant(0.5, dtype)], shape, dtype)
    elif case["before"] and dtype == "uint8":
        x, kind = body.node("relax.astype", [x], shape, "int32"), "int32"
        x = body.node("relax.subtract", [x, body.constant(7, "int32")], shape, "int32")
    keep = case["keepdims"]
    out = tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)
    if op in ARG:
        body.node(f"relax.{op}", [x], out, "int64", axis=axes[0], keepdims=keep)
        return body, axes
    y = body.node(f"relax.{op}", [x], out, kind, axes=axes, keepdims=keep)
    if case["after"] and dtype != "float16":
        body.node("relax.multiply", [y, body.constant(2, kind)], out, kind)
    return body, axes


def check(case: dict[str, Any], isa: Isa) -> None:
    rng, op, dtype = np.random.default_rng(case["seed"]), case["op"], case["dtype"]
    shape = tuple(case["shape"])
    body, axes = build(case, (batch_symbol(), *shape[1:]) if case["dynamic"] else shape)
    x = data(rng, shape, dtype, op, 2 if case["before"] else 1)
    graph = body.graph()
    out, halos = graph.outputs[0], {}
    if case["halo"]:
        halos = {"i0": [(1, 2)] * len(shape), out: [(2, 1)] * len(graph.values()[out].shape)}
    got, wanted = run_region(reduce, graph, [x], isa, halos, 9 if halos else None, wide=op not in ARG)
    if op in ARG or dtype not in FLOATS or op in ("max", "min"):
        np.testing.assert_array_equal(got, wanted)
        return
    count = int(np.prod([shape[a] for a in axes]))
    half = {"float32": HALF, "float64": 2.0**-53, "float16": HALF}[dtype]
    wide = x.astype("float64")
    if op == "prod":
        bound = count * half * np.abs(wanted)
    else:
        bound = count * half * np.sum(np.abs(wide), axis=axes).reshape(wanted.shape) / (count if op == "mean" else 1)
    rounding = {"float32": half, "float64": 8 * half * count, "float16": 2.0**-11}[dtype]  # float64: the oracle's own
    assert np.all(np.abs(got - wanted) <= bound * 1.01 + rounding * np.abs(wanted) + 1e-7 * (dtype == "float16"))


CASES = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["sum", "mean", "max", "min", "prod", *ARG]),
        "dtype": st.sampled_from(["float32", "float32", "uint8", "int32", "int64", "float64", "float16", "int8"]),
        "shape": st.lists(st.integers(1, 9), min_size=0, max_size=3).flatmap(
            lambda some: st.integers(1, 150 if len(some) < 3 else 40).map(lambda last: [*some, last])
        ),
        "axes": st.lists(st.integers(0, 3), min_size=1, max_size=4),
        "keepdims": st.booleans(),
        "before": st.booleans(),
        "after": st.booleans(),
        "halo": st.booleans(),
        "dynamic": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(level=st.sampled_from(range(len(LEVELS))), case=CASES)
def test_reduce(level: int, case: dict[str, Any]) -> None:
    if case["op"] in ("mean", "prod") and case["dtype"] in ("int64", "float16"):
        case = {**case, "dtype": "float32"}
    check(case, LEVELS[level])


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
def test_quantised_global_mean(isa: Isa) -> None:
    shape, out = (batch_symbol(), 5, 7, 83), (batch_symbol(), 83)
    body = Body()
    x = body.input(shape, "uint8")
    wide = body.node("relax.astype", [x], shape, "int32")
    total = body.node("relax.sum", [wide], (shape[0], 83), "int32", axes=(1, 2), keepdims=False)
    body.node(
        "dlc.requantize", [total, body.constant(1 / 51, "float32")], (shape[0], *out[1:]), "uint8",
        terms=1, mode="float", term_zero_points=(35 * 7,), zero_point=3, lo=0, hi=255, out_dtype="uint8",
    )  # fmt: skip
    q = np.random.default_rng(1).integers(0, 256, (3, 5, 7, 83)).astype("uint8")
    got, wanted = run_region(reduce, body.graph(), [q], isa)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("op", ["max", "argmax", "argmin"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_first_nan_and_the_first_of_equals(op: str, axis: int) -> None:
    nan = np.nan
    rows = np.array([[1, 5, 5] + [0] * 40, [nan, 1, nan] + [9] * 40, [9] * 41 + [nan, nan], [-np.inf] * 43], "float32")
    x = rows if axis else np.ascontiguousarray(rows.T)
    body = Body()
    where: dict[str, Any] = {"axes": (axis,)} if op == "max" else {"axis": axis}
    body.node(
        f"relax.{op}", [body.input(x.shape, "float32")], (4,), "float32" if op == "max" else "int64", **where,
        keepdims=False,
    )  # fmt: skip
    got, wanted = run_region(reduce, body.graph(), [x], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("op", ["sum", "prod"])
@pytest.mark.parametrize("axis", [0, 1])
def test_integers_wrap_around(op: str, axis: int, isa: Isa) -> None:
    x = np.random.default_rng(0).integers(-(2**31), 2**31, (19, 21)).astype("int32")
    x[:, 3] = x[3] = -1
    body = Body()
    out = (x.shape[1 - axis],)
    y = body.node(f"relax.{op}", [body.input(x.shape, "int32")], out, "int32", axes=(axis,), keepdims=False)
    body.node("relax.nn.relu", [y], out, "int32")
    got, wanted = run_region(reduce, body.graph(), [x], isa)
    np.testing.assert_array_equal(got, wanted)


def test_a_float_sum_has_one_order() -> None:
    x = np.random.default_rng(0).standard_normal((1, 7, 7, 40)).astype("float32")
    body = Body()
    body.node("relax.sum", [body.input(x.shape, "float32")], (1, 40), "float32", axes=(1, 2), keepdims=False)
    first, _ = run_region(reduce, body.graph(), [x], LEVELS[0])
    again, _ = run_region(reduce, body.graph(), [x], LEVELS[0], {"i0": [(0, 0), (1, 1), (1, 1), (0, 3)]})
    np.testing.assert_array_equal(first.view("int32"), again.view("int32"))


def test_declines_with_a_reason() -> None:
    body = Body()
    x = body.input((4, 5), "float32")
    mean = body.node("relax.mean", [x], (4, 1), "float32", axes=(1,), keepdims=True)
    body.node("relax.subtract", [x, mean], (4, 5), "float32")
    assert "followed by a value of shape [4, 5]" in str(reduce.declines(body.graph()))
    softmax = Body()
    softmax.node("relax.nn.softmax", [softmax.input((4, 5), "float32")], (4, 5), "float32", axis=1)
    assert "softmax" in str(reduce.declines(softmax.graph()))
