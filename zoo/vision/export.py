"""Export from torch to ONNX: opset 17, one input and one output with a symbolic batch dimension.

The TorchScript exporter is used (``dynamo=False``): for this network it gives the plainest graph, GlobalAveragePool
and Flatten where the newer one gives ReduceMean and Reshape with a constant, no notes on every node, opset 17, and it
does not need onnxscript. Both fold the batch norms into the convolutions.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from dlc.zoo.exporting import run_exported, write_model
from dlc.zoo.vision.train import load_weights

OPSET = 17
INPUT = "image"
OUTPUT = "logits"
_TOLERANCE = 1e-4


def export_bytes(model: nn.Module) -> bytes:
    """Return the serialised ONNX model: ``image`` float32 (N, 1, 28, 28) to ``logits`` float32 (N, 10).

    Equal weights and equal versions of torch and onnx give equal bytes.

    Args:
        model: a `VisionNet` in evaluation mode.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # It says at every call that the exporter is the older one; the module's text says why it is wanted.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model, (torch.zeros(2, 1, 28, 28),), buffer, dynamo=False, opset_version=OPSET,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
        )  # fmt: skip
    exported = onnx.load_from_string(buffer.getvalue())
    _name_weights(exported.graph)
    onnx.checker.check_model(exported, full_check=True)
    return exported.SerializeToString(deterministic=True)


def export(weights: Path, out: Path) -> str:
    """Write the weights of a training run as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are not this network's, or torch and ONNX differ; nothing is written.
    """
    return f"torch and ONNX agree to {export_model(load_weights(weights), out):.1e}"


def export_model(model: nn.Module, path: Path) -> float:
    """Write `model` to `path` once the ONNX has passed onnx.checker and agrees with torch at batch 1 and 32.

    The comparison runs in onnxruntime, or in onnx's slower reference evaluator where that is not installed.

    Returns:
        The largest absolute difference between a logit of torch and of ONNX.

    Raises:
        DlcError: they differ by more than 1e-4; nothing is written.
    """
    content = export_bytes(model)
    difference = max(_difference(model, content, batch) for batch in (1, 32))
    return write_model(content, path, difference, _TOLERANCE, "a logit", "from torch")


def _name_weights(graph: onnx.GraphProto) -> None:
    """Name the folded weights after their first Conv: the exporter calls them by running numbers."""
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            for name, role in zip(node.input[1:], ("weight", "bias"), strict=True):
                if name in weights:  # an untrained network's equal biases share one tensor, through Identity nodes
                    names.setdefault(name, f"{node.name}.{role}")
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _difference(model: nn.Module, content: bytes, batch: int) -> float:
    """Largest absolute difference of the logits of torch and ONNX on seeded noise, (batch, 1, 28, 28)."""
    x = np.random.default_rng(batch).standard_normal((batch, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    actual = run_exported(content, OUTPUT, {INPUT: x})
    return float(np.abs(expected - actual).max())
