"""The built wheel, installed in an empty environment outside the clone, does the main job without a C compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

JOB = """
import sys, time
import dlc
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs
images, labels = load_inputs("test")
calibration = {"image": load_inputs("calibration")[0][:64]}
for options in ({}, {"quantize": "int8", "calibration": calibration}):
    session = dlc.load(dlc.compile(model_path("vision"), **options))
    accuracy = (session.run({"image": images[:200]})["logits"].argmax(1) == labels[:200]).mean()
    assert accuracy > 0.9, accuracy
assert "torch" not in sys.modules and "onnxruntime" not in sys.modules
print("done", dlc.__file__)
"""


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    def run(*command: str | Path, **options: object) -> str:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=tmp_path, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("dlc-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    bare = {"PATH": str(python.parent), "HOME": str(tmp_path)}
    printed = run(python, "-c", JOB, env=bare)
    assert printed.startswith("done") and str(tmp_path) in printed
    command = python.parent / "dlc"
    run(command, "compile", "zoo:vision", "-o", "v.dlc", env=bare)
    run(command, "run", "v.dlc", "--random", "--shape", "image=1,1,28,28", "-o", "out.npz", env=bare)
    assert (tmp_path / "out.npz").exists()
