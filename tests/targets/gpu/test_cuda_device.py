"""CUDA packages on a real device, against the reference target: the embedded model, and kernels of each kind."""

from __future__ import annotations

import numpy as np
import pytest

import dlc
from dlc.targets.gpu.cuda import cuda_devices
from dlc.targets.gpu.nvcc import find_nvcc
from tests.targets.gpu.cases import Case, kernels, vision

DEVICES, REASON = cuda_devices()
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not DEVICES, reason=REASON),
    pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on PATH"),
]


@pytest.mark.parametrize("case", [*vision(), *kernels()], ids=lambda case: case.name)
def test_the_device_computes_what_the_reference_does(case: Case) -> None:
    arch = DEVICES[0].rpartition("(")[2].rstrip(")")
    session = dlc.load(dlc.compile(case.model, target=f"gpu:cuda,{arch}", **case.options))
    expected = dlc.load(dlc.compile(case.model, target="reference", **case.options)).run(case.inputs)
    for name, actual in session.run(case.inputs).items():
        if case.rtol:
            np.testing.assert_allclose(actual, expected[name], rtol=case.rtol, atol=case.atol)
        else:
            np.testing.assert_array_equal(actual, expected[name])


def test_kernels_for_another_architecture_are_refused_or_compiled_by_the_driver() -> None:
    """PTX for an older architecture runs; the cubin of it does not."""
    case = vision()[0]
    session = dlc.load(dlc.compile(case.model, target="gpu:cuda,sm_75", **case.options))
    images = case.inputs["image"][:4]
    expected = dlc.load(dlc.compile(case.model, target="reference")).run({"image": images})["logits"]
    assert session.executable.device.image == "PTX"  # type: ignore[attr-defined]
    np.testing.assert_allclose(session.run({"image": images})["logits"], expected, rtol=1e-3, atol=1e-3)
