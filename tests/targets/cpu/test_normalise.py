"""Softmax, log-softmax and layer normalisation within their documented bounds, from float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import EPSILON, LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import normalise

HALF = EPSILON / 2
VARIANCE_FLOOR = 1e-5


def bound(op: str, x: np.ndarray, axes: tuple[int, ...], parameters: list[np.ndarray], exact: np.ndarray) -> Any:
    """The module's documented bound, element by element."""
    count = int(np.prod([x.shape[a] for a in axes]))
    if op == "layer_norm":
        gamma = np.abs(parameters[0])
        mean = x.mean(axis=axes, keepdims=True)
        spread = np.sqrt(x.var(axis=axes, keepdims=True) + VARIANCE_FLOOR)
        size = np.abs(x).mean(axis=axes, keepdims=True) + np.abs(x - mean)
        return HALF * ((count + 8) * gamma * size / spread + np.abs(exact)) * 1.01
    if op == "softmax":
        distance = x.max(axis=axes, keepdims=True) - x
        return HALF * (count + 6 + np.log(count) + distance) * exact * 1.01 + 2.0**-148
    return HALF * (count + 4 + np.log(count) + 3 * np.abs(exact)) * 1.01


def check(case: dict[str, Any], isa: Isa) -> None:
    rng, op, shape = np.random.default_rng(case["seed"]), case["op"], tuple(case["shape"])
    rank = len(shape)
    full = (batch_symbol(), *shape[1:]) if case["dynamic"] else shape
    body, parameters = Body(), []
    x = body.input(full, "float32")
    arrays = [(rng.standard_normal(shape) * case["scale"]).astype("float32")]
    if case["before"]:
        x = body.node("relax.multiply", [x, body.constant(0.5, "float32")], full, "float32")
    if op == "layer_norm":
        axes = tuple(range(rank - 1 - case["axis"] % min(rank, 2), rank))
        parameters = [rng.standard_normal([shape[a] for a in axes]).astype("float32") for _ in range(2)]
        names = [body.input([full[a] for a in axes], "float32") for _ in range(2)]
        attrs: dict[str, Any] = {"axes": axes, "epsilon": VARIANCE_FLOOR}
        y = body.node("relax.nn.layer_norm", [x, *names], full, "float32", **attrs)
    else:
        axes = (case["axis"] % rank,)
        y = body.node(f"relax.nn.{op}", [x], full, "float32", axis=axes[0])
    if case["after"] == "double":
        y = body.node("relax.multiply", [y, body.constant(2, "float32")], full, "float32")
    elif case["after"] == "widen":
        y = body.node("relax.astype", [y], full, "float64")
    halo = [(1, 2)] * rank if case["halo"] else [(0, 0)] * rank
    fill = 3 if case["halo"] else None
    got, wanted = run_region(normalise, body.graph(), [*arrays, *parameters], isa, {"i0": halo, y: halo}, fill, True)
    factor = 2 if case["after"] == "double" else 1
    wide = arrays[0].astype("float64") * (0.5 if case["before"] else 1)
    allowed = factor * bound(op, wide, axes, parameters, wanted / factor)
    assert np.all(np.abs(got - wanted) <= allowed), f"{np.max(np.abs(got - wanted) / allowed)} times the bound"


CASES = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["softmax", "log_softmax", "layer_norm"]),
        "shape": st.lists(st.integers(1, 6), min_size=0, max_size=3).flatmap(
            lambda some: st.integers(1, 200 if len(some) < 3 else 40).map(lambda last: [*some, last])
        ),
        "axis": st.sampled_from([-1, -1, 0, 1, 2]),
        "scale": st.sampled_from([0.1, 3, 60]),
        "before": st.booleans(),
        "after": st.sampled_from(["", "double", "widen"]),
        "halo": st.booleans(),
        "dynamic": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(level=st.sampled_from(range(len(LEVELS))), case=CASES)
def test_normalise(level: int, case: dict[str, Any]) -> None:
    check(case, LEVELS[level])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_infinities_and_nan(op: str, dtype: str) -> None:
    x = np.zeros((5, 37), "float32")
    x[0, 3], x[1, 5], x[2, 36] = np.nan, np.inf, -np.inf
    x[3] = -np.inf
    x[4, 0] = -200
    body = Body()
    y = body.node(f"relax.nn.{op}", [body.input(x.shape, "float32")], x.shape, "float32", axis=1)
    if dtype != "float32":
        body.node("relax.astype", [y], x.shape, dtype)
    got, wanted = run_region(normalise, body.graph(), [x], LEVELS[0])
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_rows_too_long_to_keep(op: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 20000)).astype("float32")
    body = Body()
    scores = body.node("relax.nn.relu", [body.input(x.shape, "float32")], x.shape, "float32")
    y = body.node(f"relax.nn.{op}", [scores], x.shape, "float32", axis=1)
    body.node("relax.astype", [y], x.shape, "float64")
    got, wanted = run_region(normalise, body.graph(), [x], LEVELS[0], wide=True)
    np.testing.assert_allclose(got, wanted, rtol=2e-5)


def test_declines_with_a_reason() -> None:
    body = Body()
    names = [body.input(s, "float32") for s in ((4, 5, 6), (4, 5), (4, 5))]
    body.node("relax.nn.layer_norm", names, (4, 5, 6), "float32", axes=(0, 1), epsilon=1e-5)
    assert "over axes [0, 1] of 3" in str(normalise.declines(body.graph()))
    body = Body()
    body.node("relax.nn.softmax", [body.input((4, 5), "int64")], (4, 5), "int64", axis=1)
    assert "nn.softmax of int64" in str(normalise.declines(body.graph()))
