"""ResNet-18 (He et al., 2016) with random weights, batch norms folded: input ``x`` (1, 3, size, size), output ``y``."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Net:
    """A model under construction."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def conv(self, x: str, channels: int, out: int, kernel: int, stride: int) -> str:
        weight = self.rng.normal(0, (2 / (channels * kernel**2)) ** 0.5, (out, channels, kernel, kernel))
        bias = self.rng.normal(0, 0.1, out)
        return self.node("Conv", x, self.constant(weight), self.constant(bias), kernel_shape=[kernel] * 2,
                         strides=[stride] * 2, pads=[kernel // 2] * 4)  # fmt: skip

    def block(self, x: str, channels: int, out: int, stride: int) -> str:
        y = self.node("Relu", self.conv(x, channels, out, 3, stride))
        y = self.conv(y, out, out, 3, 1)
        shortcut = x if stride == 1 and channels == out else self.conv(x, channels, out, 1, stride)
        return self.node("Relu", self.node("Add", y, shortcut))


def resnet18(size: int) -> onnx.ModelProto:
    """The model for images of `size` x `size`."""
    net = _Net()
    y = net.node("Relu", net.conv("x", 3, 64, 7, 2))
    y = net.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        y = net.block(net.block(y, channels, out, stride), out, out, 1)
        channels = out
    y = net.node("Flatten", net.node("GlobalAveragePool", y))
    weight = net.constant(net.rng.normal(0, 0.05, (1000, 512)))
    y = net.node("Gemm", y, weight, net.constant(net.rng.normal(0, 0.1, 1000)), transB=1)
    net.nodes[-1].output[0] = "y"
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in
              (("x", [1, 3, size, size]), ("y", [1, 1000]))]  # fmt: skip
    graph = helper.make_graph(net.nodes, "resnet18", shapes[:1], shapes[1:], net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
