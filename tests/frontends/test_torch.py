"""Torch modules through export and import, against torch itself."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.errors import DlcError
from dlc.frontends.torch import export_module, import_module
from dlc.ir.convert import view
from tests.frontends.build import run

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tests.frontends import torch_models  # noqa: E402


def agree(module: Any, result: Any, *inputs: Any) -> None:
    with torch.no_grad():
        expected = module.eval()(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(run(view(result), *(i.numpy() for i in inputs)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)


def test_bert_at_another_batch_and_length() -> None:
    torch.manual_seed(0)
    module = torch_models.Bert()
    tokens, mask = torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)
    axes = {0: "batch", 1: "length"}
    result = import_module(
        module,
        (tokens, mask),
        input_names=["tokens", "mask"],
        output_names=["states", "pooled"],
        dynamic_axes={"tokens": axes, "mask": axes},
    )
    graph = view(result)
    assert graph.attrs["dlc.inputs"] == ["tokens", "mask"] and graph.attrs["dlc.outputs"] == ["states", "pooled"]
    assert [str(d) for d in graph.inputs[0].shape] == ["batch", "length"]
    rng = torch.Generator().manual_seed(1)
    agree(
        module,
        result,
        torch.randint(0, 100, (3, 11), generator=rng),
        (torch.rand(3, 11, generator=rng) > 0.2).to(torch.int64),
    )


def test_resnet_at_another_size() -> None:
    torch.manual_seed(0)
    module = torch_models.ResNet()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    result = import_module(module, torch.zeros(2, 3, 64, 64), input_names=["x"], dynamic_axes=axes)
    agree(module, result, torch.randn(3, 3, 96, 80))


def test_an_exporter_of_older_torch(tmp_path: Path) -> None:
    """The TorchScript exporter writes every shape as a chain of Shape, Gather, Unsqueeze and Concat."""
    torch.manual_seed(0)
    module = torch_models.Bert().eval()
    tokens, mask = torch.zeros(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64)
    path, axes = tmp_path / "old.onnx", {0: "batch", 1: "length"}
    torch.onnx.export(
        module,
        (tokens, mask),
        str(path),
        dynamo=False,
        opset_version=13,
        input_names=["tokens", "mask"],
        dynamic_axes={"tokens": axes, "mask": axes},
    )
    from dlc.frontends.onnx import import_model

    result = import_model(path)
    assert not {"dlc.extents", "relax.concat"} & {n.op for n in view(result).nodes}
    agree(module, result, torch.randint(0, 100, (4, 9)), torch.ones(4, 9, dtype=torch.int64))


def test_the_file_is_saved_and_the_mode_restored(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()).train()
    path = tmp_path / "m.onnx"
    proto = export_module(module, torch.zeros(1, 3), path)
    assert path.read_bytes() == proto.SerializeToString()
    assert module.training and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_errors(tmp_path: Path) -> None:
    class Bad(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no such thing")

    with pytest.raises(DlcError, match="torch cannot export Bad to ONNX: "):
        export_module(Bad(), torch.zeros(1))
    with pytest.raises(DlcError, match="dynamic_axes name 'z', which is not one of the inputs"):
        export_module(torch.nn.ReLU(), torch.zeros(1), input_names=["x"], dynamic_axes={"z": {0: "n"}})
    with pytest.raises(DlcError, match="cannot write the model: No such file or directory"):
        export_module(torch.nn.ReLU(), torch.zeros(1), tmp_path / "none" / "m.onnx")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DlcError, match="exporting a module needs torch"):
        export_module(object(), ())
