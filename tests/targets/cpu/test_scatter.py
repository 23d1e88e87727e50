"""Rows replaced or combined by position; what lies outside is dropped and nothing is written beyond the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.kernels import scatter
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.cpu.kernels.testing_regions import random
from dlc.targets.layout import Layout

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int64", "uint64", "bool", "int4")
CASES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 5), "inner": st.lists(st.sampled_from([1, 3, 17]), max_size=2),
        "count": st.integers(0, 6), "dtype": st.sampled_from(DTYPES), "index": st.sampled_from(["int64", "int32"]),
        "reduction": st.sampled_from(["none", "add", "mul", "max", "min"]), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


def body_of(rows: int, inner: tuple[int, ...], count: int, dtype: str, index: str, reduction: str) -> Any:
    body = Body()
    names = [
        body.input(shape, kind)
        for shape, kind in (((rows, *inner), dtype), ((count,), index), ((count, *inner), dtype))
    ]
    body.node("dlc.scatter_rows", names, (rows, *inner), dtype, reduction=reduction)
    return body.graph()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_scatter(case: dict[str, Any]) -> None:
    rng, inner, dtype = np.random.default_rng(case["seed"]), tuple(case["inner"]), case["dtype"]
    rows, count = case["rows"], case["count"]
    reduction = "none" if dtype in ("bool", "int4") else case["reduction"]
    kind = "int8" if dtype == "int4" else dtype
    data, updates = (random(rng, (n, *inner), kind).astype(dtype) for n in (rows, count))
    positions = rng.integers(-rows, rows, count).astype(case["index"])
    graph = body_of(rows, inner, count, dtype, case["index"], reduction)
    got, wanted = run_region(scatter, graph, [data, positions, updates], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_positions_outside_are_dropped(reduction: str) -> None:
    graph = body_of(3, (5,), 4, "float32", "int64", reduction)
    layouts = {n: Layout.dense(v.shape) for n, v in graph.values().items()}
    func = scatter.emit("k", graph, layouts, LEVELS[0], [], {})
    data, updates = np.zeros((3, 5), "float32"), np.ones((4, 5), "float32")
    positions = np.array([3, -4, 2**62, -1])
    # The guard zones around every operand are checked by `run`.
    got = Compiled(func, LEVELS[0], 4).run([data, positions, updates, np.empty((3, 5), "float32")])[-1]
    np.testing.assert_array_equal(got, [[0] * 5, [0] * 5, [1] * 5])
