"""The small whole models of the onnx package: converted from torch, single torch operators, and `simple` ones."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.backend.test import loader

from tests.conformance import runner

# Sequences, strings and gradients are not tensors, or not inference.
_NOT_YET = ("sequence_model", "strnorm", "gradient_of")


def _cases() -> list[Any]:
    return [
        c for kind in ("pytorch-converted", "pytorch-operator", "simple") for c in loader.load_model_tests(kind=kind)
    ]


def _protos(folder: Path, kind: str) -> list[onnx.TensorProto]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    return [onnx.TensorProto.FromString((folder / f"{kind}_{i}.pb").read_bytes()) for i in range(count)]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.name)
def test_model(case: Any, target: str) -> None:
    if any(part in case.name for part in _NOT_YET):
        pytest.skip("sequences, strings and gradients are not supported")
    if case.model_dir is not None:
        folder = Path(case.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        sets = [(_protos(f, "input"), _protos(f, "output")) for f in sorted(folder.glob("test_data_set_*"))]
    else:
        model, sets = case.model, case.data_sets
    whole = types.SimpleNamespace(model=model, data_sets=sets, rtol=case.rtol, atol=case.atol)
    outcome = runner.run_case(whole, target)
    assert outcome.status == "pass", outcome.reason
