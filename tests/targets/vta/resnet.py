"""ResNet-18 (He et al., "Deep Residual Learning", CVPR 2016) with random weights, as ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, op: str, inputs: list[str], **attrs: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attrs))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int) -> str:
        """A convolution with its batch norm folded."""
        scale = (2 / (inputs * kernel**2)) ** 0.5
        weight = self.constant(self.rng.normal(0, scale, (outputs, inputs, kernel, kernel)))
        bias = self.constant(self.rng.normal(0, 0.1, outputs))
        attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.add("Conv", [x, weight, bias], **attrs)

    def block(self, x: str, inputs: int, outputs: int, stride: int) -> str:
        y = self.add("Relu", [self.conv(x, inputs, outputs, 3, stride)])
        y = self.conv(y, outputs, outputs, 3, 1)
        if stride != 1 or inputs != outputs:
            x = self.conv(x, inputs, outputs, 1, stride)
        return self.add("Relu", [self.add("Add", [y, x])])


def resnet18(size: int = 224, width: int = 64, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """The model: input ``image`` (1, 3, size, size), output ``logits`` (1, classes); `width`: channels of stage one."""
    b = _Builder(seed)
    x = b.add("Relu", [b.conv("image", 3, width, 7, 2)])
    x = b.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = width
    for stage in range(4):
        for number in range(2):
            x = b.block(x, channels, width << stage, 2 if stage and not number else 1)
            channels = width << stage
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x])])
    weight, bias = b.rng.normal(0, channels**-0.5, (classes, channels)), b.rng.normal(0, 0.1, classes)
    b.add("Gemm", [x, b.constant(weight), b.constant(bias)], transB=1)
    b.nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        b.nodes,
        "resnet18",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes])],
        b.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
