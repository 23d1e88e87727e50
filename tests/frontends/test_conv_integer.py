"""ConvInteger with weights that have a zero point: exact, and by kernels of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc import explain

X_ZERO = np.array(93, np.uint8)


def _model(w: np.ndarray, zero: np.ndarray, dynamic: bool) -> onnx.ModelProto:
    """(2, 3, 9, 8) by (5, 3, 3, 3), padded on three sides; the input's zero point is an input where it is dynamic."""
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(zero, "w_zero")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3, 9, 8])]
    if dynamic:
        inputs.append(helper.make_tensor_value_info("x_zero", TensorProto.UINT8, []))
    else:
        constants.append(numpy_helper.from_array(X_ZERO, "x_zero"))
    node = helper.make_node("ConvInteger", ["x", "w", "x_zero", "w_zero"], ["y"], pads=[1, 0, 1, 1])
    result = helper.make_tensor_value_info("y", TensorProto.INT32, [2, 5, 9, 7])
    graph = helper.make_graph([node], "integers", inputs, [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _wanted(x: np.ndarray, w: np.ndarray, zero: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype(np.int64) - int(X_ZERO), ((0, 0), (0, 0), (1, 1), (0, 1)))
    exact = w.astype(np.int64) - zero.astype(np.int64).reshape(-1, 1, 1, 1)
    taps = ((i, j) for i in range(3) for j in range(3))
    return sum(np.einsum("nchw,oc->nohw", padded[:, :, i : i + 9, j : j + 7], exact[:, :, i, j]) for i, j in taps)


@pytest.mark.parametrize("target", ["reference", "cpu", "cpu:avx2"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 120), ("uint8", [0, 7, 128, 200, 255]), ("int8", 77)])
def test_weights_with_a_zero_point(dtype: Any, zero: Any, dynamic: bool, target: str) -> None:
    rng, (low, high) = np.random.default_rng(0), (0, 256) if dtype == "uint8" else (-128, 128)
    w, z = rng.integers(low, high, (5, 3, 3, 3)).astype(dtype), np.array(zero, dtype)
    x = rng.integers(0, 256, (2, 3, 9, 8)).astype(np.uint8)
    package = dlc.compile(_model(w, z, dynamic), target=target)
    feed = {"x": x, "x_zero": X_ZERO} if dynamic else {"x": x}
    np.testing.assert_array_equal(dlc.load(package).run(feed)["y"], _wanted(x, w, z))
    if target != "reference":
        assert not any("plain" in row["kernel"] for row in explain.read(package).nodes)
