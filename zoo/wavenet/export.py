"""Export to ONNX, with the notes on the training among the file's metadata, under ``notes``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from dlc.zoo import training
from dlc.zoo.exporting import add_notes, run_exported, write_model
from dlc.zoo.wavenet import data, graphs
from dlc.zoo.wavenet.model import WaveNet
from dlc.zoo.wavenet.train import load_weights

_TOLERANCE = 1e-3  # in a logit


def export(weights: Path, out: Path) -> str:
    """Write the weights of a training run as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are of no network of this family, or torch and ONNX differ; nothing is written.
    """
    notes = training.read_notes(weights)
    model = load_weights(weights, notes.get("size", "plain"))
    proto = build(model)
    add_notes(proto, notes)
    content = proto.SerializeToString(deterministic=True)
    difference = write_model(content, out, _difference(model, proto), _TOLERANCE, "a logit", "from torch")
    return f"torch and ONNX agree to {difference:.1e} in a logit"


def build(model: nn.Module) -> ModelProto:
    """The ONNX model of a network."""
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    if isinstance(model, WaveNet):
        return graphs.likelihood(tensors, model.shape.dilations)
    return graphs.recurrent(tensors)


def _difference(model: nn.Module, proto: ModelProto) -> float:
    """The largest difference of a logit on seeded codes."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, data.LEVELS, (1, 700))
    feed: dict[str, np.ndarray] = {data.INPUT: codes}
    if isinstance(model, WaveNet) and model.shape.bands:
        feed[data.MEL_INPUT] = generator.standard_normal((1, model.shape.bands, 700), np.float32)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(array) for array in feed.values())).numpy()
    actual = run_exported(proto.SerializeToString(), graphs.OUTPUT, feed)
    return float(np.abs(expected - actual).max())
