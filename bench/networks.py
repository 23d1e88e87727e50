"""Networks with random, seeded weights for the benches: ResNet-18, MobileNet-v2, a transformer encoder, products.

Weights keep the variance (He et al. 2015), batch normalisation is folded already, so that every layer's numbers stay of
order one. Nothing is trained: what is measured is time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto

from dlc.zoo.graphs import Graph, info


class Net(Graph):
    """A graph under construction; images are (N, C, H, W)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__({})
        self.rng, self.count = np.random.default_rng(seed), 0

    def random(self, *shape: int, scale: float) -> str:
        """A constant of normal numbers."""
        self.count += 1
        return self.constant(f"w{self.count}", (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, gain: float = 2.0
    ) -> str:
        """A convolution with bias."""
        fan = inputs // groups * kernel * kernel
        weight = self.random(outputs, inputs // groups, kernel, kernel, scale=(gain / fan) ** 0.5)
        pad = [kernel // 2] * 4
        return self.op("Conv", [x, weight, self.random(outputs, scale=0.1)], kernel_shape=[kernel] * 2,
                       strides=[stride] * 2, pads=pad, group=groups)  # fmt: skip

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """A matrix product and a bias along the last dimension."""
        product = self.op("MatMul", [x, self.random(inputs, outputs, scale=inputs**-0.5)])
        return self.op("Add", [product, self.random(outputs, scale=0.1)])

    def finish(self, x: str, shape: Sequence[int], y: str, result: Sequence[int]) -> onnx.ModelProto:
        """The model from input ``x`` of a shape to value `y`."""
        self.op("Identity", [y], ["y"])
        given, made = (info(n, TensorProto.FLOAT, list(s)) for n, s in ((x, shape), ("y", result)))
        return self.model("net", [given], [made])


def product(rows: int, inner: int, columns: int) -> onnx.ModelProto:
    """(rows, inner) times a constant."""
    net = Net(rows + inner + columns)
    y = net.op("MatMul", ["x", net.random(inner, columns, scale=inner**-0.5)])
    return net.finish("x", [rows, inner], y, [rows, columns])


def resnet18(batch: int = 1) -> onnx.ModelProto:
    """He et al., Deep Residual Learning for Image Recognition, 2016: 1.8 G multiply-adds an image of 224 x 224."""
    net = Net(1)
    x = net.op("Relu", [net.conv("x", 3, 64, 7, 2)])
    x, width = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for outputs in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and outputs > 64 else 1
            inner = net.op("Relu", [net.conv(x, width, outputs, 3, stride)])
            inner = net.conv(inner, outputs, outputs, 3, gain=0.5)
            if stride > 1:
                x = net.conv(x, width, outputs, 1, stride, gain=1.0)
            x, width = net.op("Relu", [net.op("Add", [inner, x])]), outputs
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])])
    return net.finish("x", [batch, 3, 224, 224], net.linear(x, 512, 1000), [batch, 1000])


def mobilenet(batch: int = 1) -> onnx.ModelProto:
    """Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018: 0.3 G multiply-adds an image."""
    net = Net(2)

    def six(value: str) -> str:
        bounds = [net.constant(name, np.array(n, np.float32)) for name, n in (("zero", 0), ("six", 6))]
        return net.op("Clip", [value, *bounds])

    x, width = six(net.conv("x", 3, 32, 3, 2)), 32
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, outputs, repeats, first in plan:
        for number in range(repeats):
            stride, inner = first if number == 0 else 1, x
            hidden = width * expand
            if expand > 1:
                inner = six(net.conv(inner, width, hidden, 1))
            inner = six(net.conv(inner, hidden, hidden, 3, stride, hidden))
            inner = net.conv(inner, hidden, outputs, 1, gain=1.0)
            x = net.op("Add", [inner, x]) if stride == 1 and width == outputs else inner
            width = outputs
    x = net.op("Flatten", [net.op("GlobalAveragePool", [six(net.conv(x, width, 1280, 1))])])
    return net.finish("x", [batch, 3, 224, 224], net.linear(x, 1280, 1000), [batch, 1000])


def encoder(layers: int = 6, width: int = 384, heads: int = 6, steps: int = 128) -> onnx.ModelProto:
    """Vaswani et al., Attention Is All You Need, 2017: normalised first, GELU, inner layers of four times the width."""
    net, each = Net(3), width // heads

    def norm(value: str) -> str:
        ones = net.constant("ones", np.ones(width, np.float32))
        return net.op("LayerNormalization", [value, ones, net.constant("none", np.zeros(width, np.float32))], axis=-1)

    def split(value: str, perm: Sequence[int]) -> str:
        return net.op("Transpose", [net.op("Reshape", [value, net.integers(1, steps, heads, each)])], perm=list(perm))

    x = "x"
    for _ in range(layers):
        seen = norm(x)
        query, key, value = (
            split(net.linear(seen, width, width), perm) for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
        )
        scale = net.constant("scale", np.array(each**-0.5, np.float32))
        scores = net.op("Mul", [net.op("MatMul", [query, key]), scale])
        mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=-1), value])
        joined = net.op("Reshape", [net.op("Transpose", [mixed], perm=[0, 2, 1, 3]), net.integers(1, steps, width)])
        x = net.op("Add", [x, net.linear(joined, width, width)])
        inner = net.linear(norm(x), width, 4 * width)
        numbers = (("half", 0.5), ("one", 1), ("root", 0.5**0.5))
        half, one, root = (net.constant(n, np.array(v, np.float32)) for n, v in numbers)
        grown = net.op("Add", [net.op("Erf", [net.op("Mul", [inner, root])]), one])
        gelu = net.op("Mul", [net.op("Mul", [inner, grown]), half])
        x = net.op("Add", [x, net.linear(gelu, 4 * width, width)])
    return net.finish("x", [1, steps, width], norm(x), [1, steps, width])
