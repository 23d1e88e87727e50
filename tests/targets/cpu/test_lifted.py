"""Layers that differ in what calibration found share their kernels; the integers stay those of the reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.ir.graph import Graph, Node, Value
from dlc.targets.cpu.lifted import lift

WIDTH, ROWS = 37, 5  # no multiple of a vector


def layers(count: int) -> onnx.ModelProto:
    """x -> elu(x @ w), `count` times, with growing weights: the ranges and so the scales all differ."""
    rng, nodes, weights, x = np.random.default_rng(0), [], {}, "x0"
    for layer in range(count):
        weights[f"w{layer}"] = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) * (0.1 + 0.07 * layer)
        nodes += [
            helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Elu", [f"m{layer}"], [x := f"x{layer + 1}"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in ("x0", x)]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("target", ["cpu", "cpu:avx2"])
def test_equal_layers_share_their_kernels(target: str) -> None:
    samples = [{"x0": x} for x in np.random.default_rng(1).standard_normal((4, ROWS, WIDTH)).astype(np.float32)]
    compiled = {
        name: dlc.compile(layers(6), name, quantize="int8", calibration=samples) for name in (target, "reference")
    }
    symbols = [row["symbol"] for row in read(compiled[target]).nodes]
    few = dlc.compile(layers(3), target, quantize="int8", calibration=samples)
    assert len(set(symbols)) == len({row["symbol"] for row in read(few).nodes}) < len(symbols)
    for feed in samples:
        got, wanted = (next(iter(dlc.load(compiled[name]).run(feed).values())) for name in (target, "reference"))
        # The last Elu is computed in float32; a code of the layers before that differed would show in the second digit.
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def quantiser(scale: float, zero: int) -> Graph:
    x, y = Value("x", (4,), "float32"), Value("y", (4,), "uint8")
    node = Node("dlc.quantize", ("x", "s", "z"), (y,), {"axis": 0, "out_dtype": "uint8"})
    return Graph("g", (x,), ("y",), (node,), {"s": np.float32(scale).reshape(()), "z": np.uint8(zero).reshape(())})


def test_what_code_can_use_stays_in_it() -> None:
    body, lifted = lift(quantiser(0.3, 128))
    assert {name: float(array) for name, array in lifted.items()} == {"s": pytest.approx(0.3), "z": 128}
    assert [(v.name, v.shape, v.dtype) for v in body.inputs[1:]] == [("s", (), "float32"), ("z", (), "uint8")]
    assert not body.constants
    # Dividing by a power of two is multiplying; subtracting nothing is no instruction.
    assert lift(quantiser(0.25, 0))[1] == {}
