"""The small whole models of the onnx package: converted from torch, single torch operators, and `simple` ones."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.backend.test import loader

from tests.conformance import runner

# Differentiation of a graph (ai.onnx.preview.training.Gradient) is training: see `test_gradients_are_refused`.
_GRADIENTS = ("test_gradient_of_add", "test_gradient_of_add_and_mul")


def _cases() -> list[Any]:
    kinds = ("pytorch-converted", "pytorch-operator", "simple")
    return [case for kind in kinds for case in loader.load_model_tests(kind=kind)]


def _protos(folder: Path, kind: str) -> list[onnx.TensorProto]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    return [onnx.TensorProto.FromString((folder / f"{kind}_{i}.pb").read_bytes()) for i in range(count)]


def _run(case: Any, target: str) -> runner.Outcome:
    if case.model_dir is not None:
        folder = Path(case.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        sets = [(_protos(f, "input"), _protos(f, "output")) for f in sorted(folder.glob("test_data_set_*"))]
    else:
        model, sets = case.model, case.data_sets
    return runner.run_case(types.SimpleNamespace(model=model, data_sets=sets, rtol=case.rtol, atol=case.atol), target)


@pytest.mark.parametrize("case", [c for c in _cases() if c.name not in _GRADIENTS], ids=lambda case: case.name)
def test_model(case: Any, target: str) -> None:
    outcome = _run(case, target)
    assert outcome.status == "pass", outcome.reason


def test_gradients_are_refused() -> None:
    """The two cases of the package that are no inference."""
    outcomes = [_run(case, "reference") for case in _cases() if case.name in _GRADIENTS]
    text = "Gradient of domain 'ai.onnx.preview.training' in 'my_gradient'"
    assert outcomes == [runner.Outcome("unsupported", text)] * 2
