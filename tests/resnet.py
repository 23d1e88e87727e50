"""ResNet-18 with random weights as an ONNX model, for tests and benchmarks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Builder:
    """Nodes and weights under construction."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], **attrs: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def conv(self, x: str, channels: int, out: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        scale = gain * np.sqrt(2 / (channels * kernel * kernel))
        w = self.weight(self.rng.standard_normal((out, channels, kernel, kernel)) * scale)
        b = self.weight(self.rng.standard_normal(out) * 0.05)
        shape, pads = [kernel, kernel], [kernel // 2] * 4
        return self.node("Conv", [x, w, b], kernel_shape=shape, pads=pads, strides=[stride, stride])

    def block(self, x: str, channels: int, out: int, stride: int) -> str:
        y = self.node("Relu", [self.conv(x, channels, out, 3, stride)])
        y = self.conv(y, out, out, 3, gain=0.5)  # branches are added up: smaller gains keep the signal's size
        if stride != 1 or channels != out:
            x = self.conv(x, channels, out, 1, stride, gain=0.5)
        return self.node("Relu", [self.node("Add", [y, x])])


def resnet18(size: int = 224, classes: int = 1000, seed: int = 0, width: int = 64) -> onnx.ModelProto:
    """ResNet-18 without batch norms (they fold into the convolutions): x (1, 3, size, size) -> y (1, classes)."""
    b = _Builder(seed)
    y = b.node("Relu", [b.conv("x", 3, width, 7, 2)])
    y = b.node("MaxPool", [y], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for level in range(4):
        out = width << level
        for index in range(2):
            y = b.block(y, channels, out, 2 if level and not index else 1)
            channels = out
    y = b.node("Flatten", [b.node("GlobalAveragePool", [y])], axis=1)
    dense = b.weight(b.rng.standard_normal((channels, classes)) / np.sqrt(channels))
    bias = b.weight(b.rng.standard_normal(classes) * 0.05)
    b.nodes.append(helper.make_node("Gemm", [y, dense, bias], ["y"], name="classifier"))
    graph = helper.make_graph(
        b.nodes,
        "resnet18",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
