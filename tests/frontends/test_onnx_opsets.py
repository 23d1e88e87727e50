"""Old opset versions, in which attributes had not become inputs and defaults were others: against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontends.build import graph_of, model, node, run
from tests.frontends.test_onnx_operators import runtime

X = [2, 3, 4, 5]
I64 = np.int64


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


BATCH = [np.float32(v) for v in ([1, 2, 3], [0, 1, 2], [0, 0.5, -1], [1, 2, 3])]
EMPTY = np.zeros(0, np.float32)


# operator, opset, its further inputs as constants (None: left out), attributes, outputs
CASES: list[tuple[str, int, list[Any], dict[str, Any], int]] = [
    ("Slice", 7, [], {"starts": [0, 1], "ends": [2, -1], "axes": [1, 3]}, 1),
    ("Slice", 10, [ints(3, 0), ints(-100, 5), ints(2, 3), ints(-1, 2)], {}, 1),
    ("Slice", 13, [ints(1), ints(100)], {}, 1),
    ("Clip", 7, [], {"min": -0.5, "max": 0.25}, 1),
    ("Clip", 11, [None, np.float32(0.25)], {}, 1),
    ("Clip", 13, [np.float32(-0.5)], {}, 1),
    ("Pad", 7, [], {"pads": [0, 0, 1, 2, 0, 1, 0, 0], "value": 2.5}, 1),
    ("Pad", 7, [], {"pads": [0, 0, 1, 2, 0, 1, 0, 3], "mode": "reflect"}, 1),
    ("Pad", 11, [ints(0, 0, 1, -1, 0, 1, 0, 0), np.float32(1.5)], {}, 1),
    ("Pad", 18, [ints(1, 2), None, ints(3)], {"mode": "edge"}, 1),
    ("Pad", 19, [ints(1, 2), None, ints(-1)], {"mode": "wrap"}, 1),
    ("Unsqueeze", 7, [], {"axes": [0, 3]}, 1),
    ("Unsqueeze", 11, [], {"axes": [-1]}, 1),
    ("Unsqueeze", 13, [ints(1, -1)], {}, 1),
    ("ReduceSum", 7, [], {"axes": [1, 3], "keepdims": 0}, 1),
    ("ReduceSum", 11, [], {"axes": [-2]}, 1),
    ("ReduceSum", 13, [ints(0, 2)], {"keepdims": 0}, 1),
    ("ReduceSum", 13, [], {"noop_with_empty_axes": 1}, 1),
    ("ReduceMean", 7, [], {}, 1),
    ("ReduceMean", 18, [ints(-1)], {}, 1),
    ("ReduceMax", 12, [], {"axes": [2]}, 1),
    ("ReduceMax", 18, [ints(2)], {"keepdims": 0}, 1),
    ("ReduceL2", 13, [], {"axes": [1]}, 1),
    ("ReduceLogSumExp", 18, [ints(1, 2)], {}, 1),
    ("Split", 7, [], {"axis": 3, "split": [2, 3]}, 2),
    ("Split", 7, [], {"axis": 2}, 2),
    ("Split", 13, [ints(1, 2)], {"axis": 1}, 2),
    ("Split", 18, [], {"axis": 3, "num_outputs": 2}, 2),
    ("TopK", 7, [], {"k": 2, "axis": 3}, 2),
    ("TopK", 10, [ints(2)], {}, 2),
    ("TopK", 11, [ints(3)], {"axis": 2, "largest": 0}, 2),
    ("Dropout", 7, [], {"ratio": 0.3}, 1),
    ("Dropout", 10, [], {}, 2),
    ("Dropout", 12, [np.float32(0.3)], {}, 2),
    ("Upsample", 7, [], {"scales": [1.0, 1.0, 2.0, 2.0]}, 1),
    ("Upsample", 7, [], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}, 1),
    ("Upsample", 9, [np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, 1),
    ("Resize", 10, [np.array([1, 1, 0.5, 2], np.float32)], {"mode": "nearest"}, 1),
    ("Resize", 10, [np.array([1, 1, 0.7, 1.5], np.float32)], {"mode": "nearest"}, 1),
    ("Resize", 10, [np.array([1, 1, 0.5, 2], np.float32)], {"mode": "linear"}, 1),
    ("Resize", 11, [EMPTY, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 1),
    ("Resize", 11, [EMPTY, EMPTY, ints(2, 3, 7, 6)], {"mode": "nearest", "nearest_mode": "floor"}, 1),
    ("Resize", 13, [None, np.array([1, 1, 2, 2], np.float32)], {"coordinate_transformation_mode": "align_corners"}, 1),
    ("Resize", 13, [None, None, ints(2, 3, 9, 9)], {"mode": "cubic"}, 1),
    ("Resize", 18, [None, None, ints(7, 6)], {"mode": "linear", "axes": [2, 3], "antialias": 1}, 1),
    ("Resize", 18, [None, np.array([2, 2], np.float32)], {"mode": "linear", "axes": [2, 3]}, 1),
    ("Resize", 19, [None, None, ints(8, 8)], {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}, 1),
    ("Softmax", 7, [], {}, 1),
    ("Softmax", 11, [], {"axis": 2}, 1),
    ("Softmax", 13, [], {}, 1),
    ("LogSoftmax", 11, [], {"axis": -2}, 1),
    ("LogSoftmax", 13, [], {"axis": 1}, 1),
    ("Hardmax", 11, [], {"axis": 1}, 1),
    ("Hardmax", 13, [], {"axis": 1}, 1),
    ("BatchNormalization", 7, BATCH, {}, 1),
    ("BatchNormalization", 9, BATCH, {}, 1),
    ("BatchNormalization", 15, BATCH, {}, 1),
    ("Gather", 7, [ints(2, 0)], {"axis": 1}, 1),
    ("Gather", 11, [ints(-1, 0)], {"axis": -1}, 1),
    ("ArgMax", 7, [], {"axis": 1}, 1),
    ("ArgMin", 12, [], {"axis": -1, "select_last_index": 1}, 1),
    ("Flatten", 7, [], {"axis": 2}, 1),
    ("Flatten", 11, [], {"axis": -1}, 1),
    ("AveragePool", 7, [], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}, 1),
    ("AveragePool", 11, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}, 1),
    ("AveragePool", 19, [], {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    ("MaxPool", 7, [], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, 1),
    ("MaxPool", 8, [], {"kernel_shape": [2, 2], "strides": [2, 2]}, 2),
    ("MaxPool", 12, [], {"kernel_shape": [2, 2], "dilations": [1, 2], "strides": [2, 2], "ceil_mode": 1}, 1),
    ("LpPool", 11, [], {"kernel_shape": [2, 2], "p": 3}, 1),
    ("LpPool", 18, [], {"kernel_shape": [2, 2], "dilations": [2, 1]}, 1),
    ("GlobalLpPool", 7, [], {"p": 1}, 1),
    ("LRN", 7, [], {"size": 3, "alpha": 0.01}, 1),
    ("InstanceNormalization", 7, [np.float32([1, 2, 3]), np.float32([0, 1, 2])], {}, 1),
    ("PRelu", 7, [np.float32([[[0.1]], [[0.2]], [[0.3]]])], {}, 1),
    ("Expand", 8, [ints(2, 2, 1, 1, 1)], {}, 1),
    ("Tile", 7, [ints(1, 2, 1, 3)], {}, 1),
    ("DepthToSpace", 11, [], {"blocksize": 1, "mode": "CRD"}, 1),
    ("Shrink", 9, [], {"lambd": 0.3, "bias": 0.1}, 1),
    ("ThresholdedRelu", 10, [], {"alpha": 0.4}, 1),
    ("CumSum", 11, [np.array(2)], {"exclusive": 1, "reverse": 1}, 1),
    ("LpNormalization", 7, [], {"axis": 1, "p": 1}, 1),
    ("MeanVarianceNormalization", 9, [], {}, 1),
    ("Trilu", 14, [np.array(1)], {"upper": 0}, 1),
    ("Shape", 15, [], {"start": 1, "end": -1}, 1),
    ("Reshape", 7, [ints(0, -1, 5)], {}, 1),
    ("Reshape", 14, [ints(0, 3, -1)], {}, 1),
    ("Pow", 7, [np.float32(2)], {}, 1),
    ("Pow", 13, [np.array(2)], {}, 1),
    ("GroupNormalization", 21, [np.float32([1, 2, 3]), np.float32([0, 1, 2])], {"num_groups": 3}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "opset", "inputs", "attributes", "count"), CASES, ids=lambda v: str(v)[:24])
def test_an_operator_of_an_opset(
    operator: str, opset: int, inputs: list[Any], attributes: dict[str, Any], count: int
) -> None:
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(inputs))]
    constants = {f"c{i}": np.asarray(value) for i, value in enumerate(inputs) if value is not None}
    outputs = [f"y{i}" for i in range(count)]
    proto = model(
        [node(operator, names, outputs, **attributes)], {"x": X}, outputs, constants, opset=opset, ir_version=8
    )
    x = np.random.default_rng(0).normal(size=X).astype(np.float32)
    for ours, theirs in zip(run(graph_of(proto), x), runtime(proto, x=x), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("opset", "attributes"), [(7, {"axes": [0, 2]}), (7, {}), (11, {"axes": [-4]})])
def test_squeeze_with_attributes(opset: int, attributes: dict[str, Any]) -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 3, 1, 2)
    proto = model([node("Squeeze", ["x"], ["y"], **attributes)], {"x": [1, 3, 1, 2]}, ["y"], opset=opset, ir_version=8)
    np.testing.assert_array_equal(run(graph_of(proto), x)[0], runtime(proto, x=x)[0])


def test_squeeze_with_an_input() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 3, 1, 2)
    proto = model([node("Squeeze", ["x", "a"], ["y"])], {"x": [1, 3, 1, 2]}, ["y"], {"a": ints(-2)}, opset=13)
    assert run(graph_of(proto), x)[0].shape == (1, 3, 2)
