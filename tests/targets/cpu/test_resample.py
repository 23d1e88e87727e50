"""Resizing against the interpreter: modes, coordinates, types, axes, symbolic extents; integers exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anchored_cases import LEVELS, Body, batch_symbol, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.ir.ops import resize
from dlc.targets.cpu.kernels import resample
from dlc.targets.cpu.kernels.testing_regions import random

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
)  # fmt: skip
CASES = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(1, 7), min_size=1, max_size=3), "seed": st.integers(0, 2**16),
        "scales": st.lists(st.sampled_from([0.4, 0.6, 1.0, 1.7, 2.0, 3.3]), min_size=3, max_size=3),
        "mode": st.sampled_from(["nearest", "linear", "cubic"]), "coordinates": st.sampled_from(COORDINATES),
        "nearest": st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
        "cubic": st.sampled_from([-0.75, -0.5]), "antialias": st.integers(0, 1), "exclude_outside": st.integers(0, 1),
        "dtype": st.sampled_from(["float32", "float64", "float16", "uint8", "int8", "int32", "int64"]),
    }
)  # fmt: skip


def attributes(case: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    scales = tuple(s if int(n * s) else 1.0 for n, s in zip(shape, case["scales"], strict=False))
    kept = ("mode", "coordinates", "nearest", "cubic", "antialias", "exclude_outside")
    return {
        **{key: case[key] for key in kept},
        "shape": tuple(int(n * s) for n, s in zip(shape, scales, strict=True)),
        "scales": scales,
        "roi": (0.1, -0.2, 0.0)[: len(shape)] + (0.8, 1.3, 1.0)[: len(shape)],
        "extrapolation": 7.0,
    }


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_resize(case: dict[str, Any]) -> None:
    shape, dtype = tuple(case["shape"]), case["dtype"]
    rng = np.random.default_rng(case["seed"])
    x = rng.integers(-900, 900, shape) if dtype in ("int32", "int64") else random(rng, shape, dtype)
    attrs = attributes(case, shape)
    body = Body()
    body.node("dlc.resize", [body.input(shape, dtype)], attrs["shape"], dtype, **attrs)
    got, wanted = run_region(resample, body.graph(), [x.astype(dtype)], LEVELS[0])
    if case["mode"] == "nearest" or "float" not in dtype:
        np.testing.assert_array_equal(got, wanted)
        return
    half = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11}[dtype]
    growth = 1.0
    for axis, (length, size) in enumerate(zip(shape, attrs["shape"], strict=True)):
        index, weight = resize.taps(length, size, axis, attrs)
        growth *= max(1.0, float(np.abs(weight).sum(axis=1).max())) * (1 + 2.0**-20 * index.shape[1])
    steps = sum(resize.tap_count(a, attrs) + 2 for a in range(len(shape)))
    bound = steps * growth * half * float(np.abs(x.astype("float64")).max())
    assert np.all(np.abs(got.astype("float64") - wanted.astype("float64")) <= bound)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES[:5])
def test_symbolic_extents(mode: str, coordinates: str) -> None:
    """The first dimension's extent is known only when the kernel runs, and is resized."""
    n = batch_symbol()
    case = {"scales": [2.0, 1.5], "mode": mode, "coordinates": coordinates, "nearest": "round_prefer_floor"}
    attrs = attributes({**case, "cubic": -0.75, "antialias": 0, "exclude_outside": 0}, (5, 6))
    body = Body()
    attrs["shape"] = (n * 2, 9)
    node = body.node("dlc.resize", [body.input((n, 6), "uint8")], (n * 2, 9), "uint8", **attrs)
    assert node
    x = np.random.default_rng(0).integers(0, 255, (5, 6)).astype("uint8")
    got, wanted = run_region(resample, body.graph(), [x], LEVELS[0])
    np.testing.assert_array_equal(got, wanted)
