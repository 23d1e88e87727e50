"""Integer operators against ONNX Runtime, whose results ours equal element for element."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import dlc
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


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 2]])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_with_a_zero_point_known_when_running(groups: int, pads: list[int], target: str) -> None:
    rng = np.random.default_rng(groups + sum(pads))
    options = {"pads": pads, "strides": [2, 1], "group": groups}
    inputs = {"x": (TensorProto.UINT8, [2, 4, "h", "w"]), "z": (TensorProto.UINT8, [])}
    values = {"w": rng.integers(-128, 128, [8, 4 // groups, 3, 3]).astype(np.int8)}
    proto = model([node("ConvInteger", ["x", "w", "z"], ["y"], **options)], inputs, ["y"], values)
    convolved = next(n for n in graph_of(proto).nodes if n.op == "dlc.conv")
    assert "x" in convolved.inputs  # bytes, not the differences
    session = dlc.load(dlc.compile(proto, target=target))
    for extents in ([9, 8], [5, 12]):
        feed = {"x": integers(rng, np.uint8, [2, 4, *extents]), "z": integers(rng, np.uint8, [])}
        # In float64, where the sums are exact.
        wide = feed["x"].astype(np.float64) - float(feed["z"])
        plain = model([node("Conv", ["x", "w"], ["y"], **options)], {"x": (TensorProto.DOUBLE, wide.shape)}, ["y"],
                      {"w": values["w"].astype(np.float64)})  # fmt: skip
        (wanted,) = ReferenceEvaluator(plain).run(None, {"x": wide})
        np.testing.assert_array_equal(session.run(feed)["y"], wanted.astype(np.int32))


@pytest.mark.parametrize("zero", [0, 128, 77])
@pytest.mark.parametrize("weight", [np.uint8, np.int8])
def test_product_with_a_zero_point_known_when_running(weight: Any, zero: int) -> None:
    rng = np.random.default_rng(zero)
    inputs = {"x": (TensorProto.UINT8, ["n", 33]), "z": (TensorProto.UINT8, [1])}
    values = {"w": integers(rng, weight, [33, 7]), "wz": np.asarray(zero - 128 * (weight is np.int8), weight)}
    proto = model([node("MatMulInteger", ["x", "w", "z", "wz"], ["y"])], inputs, ["y"], values)
    session = dlc.load(dlc.compile(proto))
    for rows in (1, 5):
        feed = {"x": integers(rng, np.uint8, [rows, 33]), "z": integers(rng, np.uint8, [1])}
        left = feed["x"].astype(np.int32) - feed["z"].astype(np.int32)
        wanted = left @ (values["w"].astype(np.int32) - values["wz"].astype(np.int32))
        np.testing.assert_array_equal(session.run(feed)["y"], wanted)
