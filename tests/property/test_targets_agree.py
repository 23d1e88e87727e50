"""The integer outputs of every target are the same bits: random graphs, every arithmetic and instruction set."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import dlc
from dlc.hardware import this_machine
from dlc.targets.cpu.isa import levels_of
from tests.property.graphs import inputs_of, quantizable_models

LEVELS = [isa.name for isa in levels_of(this_machine())]
GRAPHS = int(os.environ.get("DLC_GRAPHS", "16"))  # a release is tested with 200


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["float", "fixed", "shift"])
@settings(max_examples=GRAPHS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(drawn=quantizable_models())
def test_cpu_equals_reference_on_every_instruction_set(arithmetic: str, drawn: tuple) -> None:
    model, seed = drawn
    x = inputs_of(model, seed)
    calibration = {"x": np.stack([inputs_of(model, seed + i) for i in range(1, 4)])}
    options = {"quantize": "int8", "calibration": calibration, "arithmetic": arithmetic}
    expected = dlc.load(dlc.compile(model, target="reference", **options)).run({"x": x})["y"]
    for level in LEVELS:
        actual = dlc.load(dlc.compile(model, target=f"cpu:{level}", **options)).run({"x": x})["y"]
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        differing = np.count_nonzero(actual != expected)
        assert not differing, f"cpu:{level}, {arithmetic}: {differing} of {expected.size} elements differ"
