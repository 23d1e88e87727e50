"""Running sums and products: equal to numpy in every type, integers and floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from anchored_cases import LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.cpu.kernels import scan
from dlc.targets.cpu.kernels.testing_regions import random

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "uint16", "uint64")
CASES = st.fixed_dictionaries(
    {
        "shape": st.lists(st.sampled_from([1, 2, 5, 19]), min_size=1, max_size=3), "axis": st.integers(0, 2),
        "dtype": st.sampled_from(DTYPES), "mode": st.sampled_from(["sum", "prod"]), "exclusive": st.booleans(),
        "reverse": st.booleans(), "dynamic": st.booleans(), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_scan(case: dict[str, Any]) -> None:
    shape, dtype = tuple(case["shape"]), case["dtype"]
    x = random(np.random.default_rng(case["seed"]), shape, dtype)
    x = np.sign(x) * np.minimum(np.abs(x), x.dtype.type(1.5)) if "float" in dtype else x  # products stay finite
    declared = (batch_symbol(), *shape[1:]) if case["dynamic"] else shape
    body = Body()
    names = ("mode", "exclusive", "reverse")
    attrs = {name: case[name] for name in names} | {"axis": case["axis"] % len(shape)}
    body.node("dlc.cumulate", [body.input(declared, dtype)], declared, dtype, **attrs)
    got, wanted = run_region(scan, body.graph(), [x.astype(dtype)], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)
