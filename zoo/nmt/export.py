"""Export to ONNX: the whole translation by beam search, with the notes on the training under ``notes``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from dlc.zoo import training
from dlc.zoo.exporting import add_notes, write_model
from dlc.zoo.nmt import data, graphs
from dlc.zoo.nmt.model import Translator
from dlc.zoo.nmt.train import load_weights

_TOLERANCE = 1e-3  # in the log probability of a translation, or in a share of attention
_COMPARED = 8  # sentences


def export(weights: Path, out: Path) -> str:
    """Write the weights of a training run as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are of no network of this family, or torch and ONNX differ; nothing is written.
    """
    notes = training.read_notes(weights)
    model = load_weights(weights, notes.get("size", "attention"))
    proto = build(model)
    add_notes(proto, notes)
    content = proto.SerializeToString(deterministic=True)
    compared = "a log probability or share of attention"
    difference = write_model(content, out, _difference(model, proto), _TOLERANCE, compared, "from torch")
    return f"torch and ONNX agree to {difference:.1e} in {compared}"


def build(model: Translator, beam: int = graphs.BEAM) -> ModelProto:
    """The ONNX model of a network."""
    return graphs.translator(graphs.from_training({k: v.numpy() for k, v in model.state_dict().items()}), beam)


def _difference(model: Translator, proto: ModelProto) -> float:
    """The largest difference between what ONNX says of the translations that it finds, and what torch says of them."""
    try:
        from onnxruntime import InferenceSession

        session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(proto)
    found = [0.0]
    for source in data.samples("calibration")[data.INPUT][:_COMPARED, None]:
        tokens, score, *alignment = session.run(None, {data.INPUT: source})
        length = data.length_of(tokens[0])
        with torch.no_grad():
            before = np.append(data.BOS, tokens[0, : length - 1])[None]
            logits, looks = model(torch.from_numpy(source), torch.from_numpy(before))
            log = torch.log_softmax(logits[0].double(), 1).numpy()
        total = log[np.arange(length), tokens[0, :length]].sum()
        found.append(abs(total - float(score[0]) * ((5 + length) / 6) ** graphs.ALPHA))
        if looks is not None:
            found.append(float(np.abs(looks[0].numpy() - alignment[0][0, :length]).max()))
    return max(found)
