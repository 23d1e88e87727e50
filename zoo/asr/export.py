"""Export to ONNX, with the notes on the training among the file's metadata, under ``notes``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from dlc.zoo.asr import graphs
from dlc.zoo.asr.data import INPUT, LENGTHS
from dlc.zoo.asr.features import WIDTH
from dlc.zoo.asr.model import Recogniser
from dlc.zoo.asr.train import load_weights
from dlc.zoo.exporting import write_model
from dlc.zoo.models import OnnxModel

_TOLERANCE = 1e-3  # in a logit


def export(weights: Path, out: Path) -> str:
    """Write the weights of a training run as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are of no network of this family, onnxruntime is missing, or torch and ONNX differ;
            nothing is written.
    """
    model, notes = load_weights(weights)
    proto = graphs.recogniser({name: value.numpy() for name, value in model.state_dict().items()}, notes)
    content = proto.SerializeToString(deterministic=True)
    difference = write_model(content, out, _difference(model, proto), _TOLERANCE, "a logit", "from torch")
    return f"torch and ONNX agree to {difference:.1e} in a logit"


def _difference(model: Recogniser, proto: ModelProto) -> float:
    """The largest difference of a logit on two seeded utterances of different lengths."""
    generator = np.random.default_rng(0)
    x, lengths = generator.standard_normal((2, 90, WIDTH), np.float32), np.array([90, 41], np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x), torch.from_numpy(lengths).long()).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asr.onnx"
        path.write_bytes(proto.SerializeToString())
        actual = OnnxModel(path).run({INPUT: x, LENGTHS: lengths})[graphs.OUTPUT]
    return max(float(np.abs(expected[k, :n] - actual[k, :n]).max()) for k, n in enumerate(lengths))
