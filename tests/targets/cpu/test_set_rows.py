"""Consecutive rows along an axis replaced, in a copy and in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.kernels import set_rows
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.cpu.kernels.testing_regions import random
from dlc.targets.layout import Layout

CASES = st.fixed_dictionaries(
    {
        "shape": st.lists(st.sampled_from([1, 3, 18]), min_size=1, max_size=3), "axis": st.integers(0, 2),
        "rows": st.integers(1, 18), "begin": st.integers(0, 17),
        "dtype": st.sampled_from(["float32", "float16", "uint8", "int64", "bool"]), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_set_rows(case: dict[str, Any]) -> None:
    shape, dtype, rng = tuple(case["shape"]), case["dtype"], np.random.default_rng(case["seed"])
    axis = case["axis"] % len(shape)
    rows = min(case["rows"], shape[axis])
    begin = min(case["begin"], shape[axis] - rows)
    part = (*shape[:axis], rows, *shape[axis + 1 :])
    body = Body()
    names = [body.input(shape, dtype), body.input(part, dtype)]
    body.node("dlc.set_rows", names, shape, dtype, axis=axis, begin=(begin,))
    graph = body.graph()
    data, update = random(rng, shape, dtype), random(rng, part, dtype)
    got, wanted = run_region(set_rows, graph, [data, update], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)
    placed = set_rows.in_place(graph)
    layouts = {n: Layout.dense(v.shape) for n, v in placed.values().items()}
    func = set_rows.emit("k", placed, layouts, LEVELS[0], [], {})
    if dtype == "float32":  # other types lie in memory as something else
        np.testing.assert_array_equal(Compiled(func, LEVELS[0], 2).run([update, data])[-1], wanted)
