"""Random small ONNX models of the kinds that can be quantised: convolutions, dense layers, pools, residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


@dataclass
class _Model:
    """A model under construction; `value` is the name and shape (without the batch) of the current tensor."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    count: int = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind.lower()}_{self.count}"

    def constant(self, array: np.ndarray) -> str:
        name = self.name("const")
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def add(self, kind: str, inputs: list[str], **attrs: object) -> str:
        name = self.name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n_{name}", **attrs))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1.5 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        spread = np.exp(self.rng.normal(0, 0.7, (shape[0], *([1] * (len(shape) - 1)))))  # channels differ in scale
        return self.constant(self.rng.normal(0, scale, shape) * spread)


def _conv(m: _Model, x: str, shape: list[int], draw: st.DrawFn) -> tuple[str, list[int]]:
    channels, height, width = shape
    kernel = draw(st.sampled_from([k for k in (1, 2, 3, 5) if k <= min(height, width) + 2]))
    stride, pad = draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2))
    if height + 2 * pad < kernel or width + 2 * pad < kernel:
        pad = kernel // 2 + kernel % 2
    groups = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0]))
    out = groups * draw(st.integers(1, 5)) if groups < channels or channels == 1 else channels
    out = out if draw(st.booleans()) or groups > 1 else draw(st.sampled_from([1, 7, 16, 17, 33]))
    inputs = [x, m.weight(out, channels // groups, kernel, kernel)]
    if draw(st.booleans()):
        inputs.append(m.constant(m.rng.normal(0, 0.5, out)))
    attrs = {"strides": [stride, stride], "pads": [pad] * 4, "group": groups, "kernel_shape": [kernel, kernel]}
    y = m.add("Conv", inputs, **attrs)
    return y, [out, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1]


def _activation(m: _Model, x: str, draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["none", "Relu", "Relu", "Clip", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh"]))
    if kind == "none":
        return x
    if kind == "Clip":
        return m.add("Clip", [x, m.constant(np.float32(0)), m.constant(np.float32(6))])
    return m.add(kind, [x])


def _block(m: _Model, x: str, shape: list[int], draw: st.DrawFn) -> tuple[str, list[int]]:
    kind = draw(st.sampled_from(["conv", "conv", "conv", "residual", "pool", "concat", "gate"]))
    if kind == "conv":
        y, shape = _conv(m, x, shape, draw)
        return _activation(m, y, draw), shape
    if kind == "residual":
        y = m.add("Conv", [x, m.weight(shape[0], shape[0], 3, 3)], pads=[1] * 4, kernel_shape=[3, 3])
        inputs = [x, y] if draw(st.booleans()) else [y, x]
        return _activation(m, m.add(draw(st.sampled_from(["Add", "Add", "Sub"])), inputs), draw), shape
    if kind == "pool" and min(shape[1:]) >= 2:
        op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
        return m.add(op, [x], kernel_shape=[2, 2], strides=[2, 2]), [shape[0], shape[1] // 2, shape[2] // 2]
    if kind == "concat":
        y = m.add("Conv", [x, m.weight(3, shape[0], 1, 1)], kernel_shape=[1, 1])
        return m.add("Concat", [x, _activation(m, y, draw)], axis=1), [shape[0] + 3, *shape[1:]]
    if kind == "gate":
        y = m.add("GlobalAveragePool", [x])
        y = m.add("Sigmoid", [m.add("Conv", [y, m.weight(shape[0], shape[0], 1, 1)], kernel_shape=[1, 1])])
        return m.add("Mul", [x, y]), shape
    return x, shape


@st.composite
def quantizable_models(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """(model with input ``x`` and output ``y``, a seed for its data)."""
    seed = draw(st.integers(0, 2**31 - 1))
    m = _Model(np.random.default_rng(seed), [], [])
    batch = draw(st.integers(1, 3))
    shape = [draw(st.sampled_from([1, 2, 3, 4, 8, 16, 19])), draw(st.integers(1, 9)), draw(st.integers(1, 9))]
    first = list(shape)
    x, shape = _conv(m, "x", shape, draw)
    x = _activation(m, x, draw)
    for _ in range(draw(st.integers(0, 3))):
        if min(shape[1:]) < 1:
            break
        x, shape = _block(m, x, shape, draw)
    out_shape: list[int] = [batch, *shape]
    if draw(st.booleans()):
        x = m.add("Flatten", [m.add("GlobalAveragePool", [x])])
        out = draw(st.sampled_from([1, 5, 10, 16, 40]))
        x = m.add("Gemm", [x, m.weight(out, shape[0]), m.constant(m.rng.normal(0, 1, out))], transB=1)
        out_shape = [batch, out]
    else:
        # The last contraction gives float straight from its accumulator: bits that the arithmetic specifies, which
        # a float sigmoid behind it would not be.
        x = m.add("Conv", [x, m.weight(6, shape[0], 1, 1)], kernel_shape=[1, 1])
        out_shape = [batch, 6, *shape[1:]]
    m.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        m.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *first])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        m.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model, seed


def inputs_of(model: onnx.ModelProto, seed: int) -> np.ndarray:
    """An input for the model: normal, with a few large values."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.where(rng.random(shape) < 0.01, 4, 1)).astype(np.float32)
