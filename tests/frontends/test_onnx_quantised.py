"""Integer operators against ONNX Runtime, whose results ours equal element for element."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from dlc.hardware import this_machine
from tests.frontends.build import graph_of, model, node, ops, run

KIND = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}


def runtime(proto: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    for value in proto.graph.output:  # ONNX Runtime wants the output's type to be right
        value.type.Clear()
        value.type.tensor_type.elem_type = KIND[np.dtype(feeds["x"].dtype)]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


# Without VNNI, onnxruntime's products of u8 and s8 saturate in 16 bits (docs/arithmetic.md) unless weights are small.
_EXACT_PEER = bool({"avx512_vnni", "avx_vnni"} & this_machine().features)


def weights(rng: np.random.Generator, shape: list[int]) -> np.ndarray:
    """int8 weights over the range in which the peer is exact on this machine."""
    least, greatest = (-128, 127) if _EXACT_PEER else (-64, 63)
    return rng.integers(least, greatest + 1, shape).astype(np.int8)


def integers(rng: np.random.Generator, dtype: Any, shape: list[int]) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_conv_equals_onnxruntime(seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 3))
    x = integers(rng, dtype, [2, 4, 9, 8])
    values = {
        "xs": np.float32(rng.uniform(0.01, 0.1)).reshape(()),
        "xz": integers(rng, dtype, []),
        "w": weights(rng, [6, 4 // groups, 3, 3]),
        "ws": rng.uniform(0.005, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "ys": np.float32(rng.uniform(1, 3)).reshape(()),
        "yz": integers(rng, dtype, []),
        "b": rng.integers(-1000, 1000, 6).astype(np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    proto = model(
        [node("QLinearConv", names, ["y"], pads=[1, 0, 1, 2], strides=[2, 1], group=groups)],
        {"x": (KIND[np.dtype(dtype)], [2, 4, 9, 8])},
        ["y"],
        values,
        opset=13,
    )
    graph = graph_of(proto)
    assert ops(graph) == ["dlc.conv", "add", "dlc.requantize"]
    np.testing.assert_array_equal(run(graph, x)[0], runtime(proto, x=x))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [np.uint8, np.int8])
def test_qlinear_matmul_equals_onnxruntime(seed: int, weight: Any) -> None:
    rng = np.random.default_rng(seed)
    x = integers(rng, np.uint8, [5, 33])
    values = {
        "xs": np.float32(rng.uniform(0.01, 0.1)).reshape(()),
        "xz": integers(rng, np.uint8, []),
        "w": weights(rng, [33, 7]) if weight == np.int8 else integers(rng, weight, [33, 7]),
        "ws": np.float32(rng.uniform(0.005, 0.02)).reshape(()),
        "wz": integers(rng, weight, []),
        "ys": np.float32(rng.uniform(1, 3)).reshape(()),
        "yz": integers(rng, np.uint8, []),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    proto = model([node("QLinearMatMul", names, ["y"])], {"x": (TensorProto.UINT8, [5, 33])}, ["y"], values, opset=13)
    np.testing.assert_array_equal(run(graph_of(proto), x)[0], runtime(proto, x=x))
