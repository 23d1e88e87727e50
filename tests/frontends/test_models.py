"""Whole models against ONNX Runtime: the zoo's, the onnx package's, those in PyPI packages, and torch exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization

from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from tests import models

VISION = Path(__file__).parents[2] / "zoo" / "vision" / "vision.onnx"


def compare(
    model: str | Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ours, ONNX Runtime's) for every output; random normal inputs unless `feeds` are given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if feeds is None:
        rng = np.random.default_rng(0)
        shapes = {i.name: [d if isinstance(d, int) else 2 for d in i.shape] for i in session.get_inputs()}
        feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    expected = session.run(None, dict(feeds))
    graph = view(import_model(model))
    names = graph.attrs["dlc.inputs"]
    actual = interpret(graph, {v.name: feeds[n] for v, n in zip(graph.inputs, names, strict=True)})
    return list(zip(actual, expected, strict=True))


def agree(model: str | Path | onnx.ModelProto, feeds: Mapping[str, np.ndarray] | None = None) -> None:
    for ours, theirs in compare(model, feeds):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


_SLOW = ("vgg19", "bvlc_alexnet", "zfnet512")  # hundreds of megabytes of weights


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in _SLOW else []) for n in models.LIGHT]
)
def test_light_models(name: str) -> None:
    agree(models.light_model(name))


def test_the_zoo_model() -> None:
    images = np.load(VISION.parent / "test.npz")["images"][:16]
    agree(VISION, {"image": images.astype(np.float32) / 255})


def test_basic_pitch() -> None:
    agree(models.package_model("basic-pitch"))


def test_magika() -> None:
    content = np.random.default_rng(0).integers(0, 257, (3, 2048)).astype(np.int32)
    agree(models.package_model("magika"), {"bytes": content})


class _Random(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.left = [{"image": rng.standard_normal((8, 1, 28, 28)).astype(np.float32)} for _ in range(3)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
def test_models_quantised_by_onnxruntime(form: str, activations: str, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    quantization.quantize_static(
        str(VISION),
        str(path),
        _Random(),
        quant_format=getattr(quantization.QuantFormat, form),
        activation_type=getattr(quantization.QuantType, activations),
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    feeds = {"image": np.random.default_rng(1).standard_normal((4, 1, 28, 28)).astype(np.float32)}
    ((ours, theirs),) = compare(path, feeds)
    # Summation order and fused kernels may move a rounding: a step of the last layers' scale, not more.
    noise = float(np.mean((ours - theirs) ** 2))
    assert 10 * np.log10(float(np.mean(theirs**2)) / max(noise, 1e-30)) > 30
