"""Positions of the largest and smallest elements: ties, NaN, unsigned types, any axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from anchored_cases import LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.kernels import order
from dlc.targets.cpu.kernels.testing_regions import random

CASES = st.fixed_dictionaries(
    {
        "shape": st.lists(st.sampled_from([1, 3, 8, 21]), min_size=1, max_size=3), "axis": st.integers(0, 2),
        "k": st.integers(0, 21), "largest": st.booleans(), "ties": st.booleans(), "dynamic": st.booleans(),
        "dtype": st.sampled_from(["float32", "float64", "float16", "int8", "uint64", "int64", "bool"]),
        "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_order(case: dict[str, Any]) -> None:
    rng, shape, dtype = np.random.default_rng(case["seed"]), tuple(case["shape"]), case["dtype"]
    axis = case["axis"] % len(shape)
    k = min(case["k"], shape[axis])
    x = random(rng, shape, dtype)
    if case["ties"] and dtype != "bool":
        x = (x.astype("float64") % 3).astype(dtype)
    if "float" in dtype:
        x[rng.random(shape) < 0.2] = np.nan
    case["dynamic"] = case["dynamic"] and axis > 0
    declared = (batch_symbol(), *shape[1:]) if case["dynamic"] else shape
    out = (*declared[:axis], k, *declared[axis + 1 :])
    body = Body()
    body.node("dlc.top_indices", [body.input(declared, dtype)], out, "int64", axis=axis, k=k, largest=case["largest"])
    got, wanted = run_region(order, body.graph(), [x], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)
