"""The main job on the embedded model: compile, run on real images, agree with onnxruntime and with the reference."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import dlc
from dlc.hardware import this_machine
from dlc.targets.cpu.isa import levels_of
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs

LEVELS = [isa.name for isa in levels_of(this_machine())]


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    return load_inputs("test")


@pytest.fixture(scope="module")
def calibration() -> dict[str, np.ndarray]:
    return {"image": load_inputs("calibration")[0]}


@pytest.fixture(scope="module")
def expected(images: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model_path("vision")), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images[0]})[0])


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(1) == labels))


@pytest.mark.parametrize("level", LEVELS)
def test_fp32_equals_onnxruntime(level: str, images: tuple, expected: np.ndarray) -> None:
    session = dlc.load(dlc.compile(model_path("vision"), target=f"cpu:{level}"))
    logits = session.run({"image": images[0]})["logits"]
    assert np.abs(logits - expected).max() < 1e-4
    assert _accuracy(logits, images[1]) == _accuracy(expected, images[1])


@pytest.mark.parametrize("arithmetic", ["float", "fixed", "shift"])
def test_int8_is_accurate_and_the_same_bits_everywhere(
    arithmetic: str, images: tuple, calibration: dict, expected: np.ndarray
) -> None:
    options = {"quantize": "int8", "calibration": calibration, "arithmetic": arithmetic}
    reference = dlc.load(dlc.compile(model_path("vision"), target="reference", **options))
    logits = reference.run({"image": images[0]})["logits"]
    # Scales that are powers of two waste up to a bit; they are for hardware without multipliers.
    drop = 0.003 if arithmetic != "shift" else 0.02
    assert _accuracy(logits, images[1]) >= _accuracy(expected, images[1]) - drop
    for level in LEVELS:
        session = dlc.load(dlc.compile(model_path("vision"), target=f"cpu:{level}", **options))
        np.testing.assert_array_equal(session.run({"image": images[0]})["logits"], logits, err_msg=level)


def test_int8_constants_are_a_third(calibration: dict) -> None:
    sizes = []
    for options in ({}, {"quantize": "int8", "calibration": calibration}):
        package = dlc.compile(model_path("vision"), **options)
        chunks = [package.constants(name)["constants"] for name in package.manifest["build"]["constants"]]
        sizes.append(sum(chunk.nbytes for chunk in chunks))
    assert sizes[0] / sizes[1] >= 3


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_two_compilations_give_the_same_bytes(quantize: str, calibration: dict, tmp_path: Path) -> None:
    digests = []
    for name in ("a.dlc", "b.dlc"):
        options = {"quantize": quantize, "calibration": calibration} if quantize == "int8" else {}
        dlc.compile(model_path("vision"), **options).save(tmp_path / name)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_one_package_runs_every_batch_size(images: tuple, expected: np.ndarray) -> None:
    session = dlc.load(dlc.compile(model_path("vision")))
    for batch in (1, 2, 3, 7, 16, 33):
        logits = session.run({"image": images[0][:batch]})["logits"]
        assert np.abs(logits - expected[:batch]).max() < 1e-4
