"""int8 with a scale a row: no calibration, integer products, and rows that do not disturb each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read

WEIGHT = np.random.default_rng(31).standard_normal((48, 20)).astype(np.float32)


def product(shape: list[int | str]) -> Any:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], 20])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("shape", [[5, 48], [2, 3, 48], ["n", 3, 48]])
def test_rows_have_scales_of_their_own(shape: list[int | str]) -> None:
    x = np.random.default_rng(32).standard_normal([2 if d == "n" else d for d in shape]).astype(np.float32)
    x[0] *= 1e4  # one scale for all would leave nothing of the other rows
    x[-1, ..., :] = 0
    results = []
    for target in ("reference", "cpu"):
        package = dlc.compile(product(shape), target=target, quantize="int8-dynamic")
        (result,) = dlc.load(package).run({"x": x}).values()
        results.append(result)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6, atol=1e-6)
    exact = x @ WEIGHT
    error = np.linalg.norm(results[1] - exact, axis=-1) / np.maximum(np.linalg.norm(exact, axis=-1), 1e-6)
    assert error.max() < 0.02
    assert not np.any(results[1][-1])
    kernels = {row["precision"] for row in read(package).nodes if "matmul" in row["fused"]}
    assert kernels == {"int8"} and not read(package).declined


def test_convolutions_stay_float_and_say_so() -> None:
    weight = np.ones((4, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "filter")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (declined,) = read(dlc.compile(model, quantize="int8-dynamic")).declined
    assert declined["node"] == "Conv 'filter'"
    assert declined["reason"] == "stays float: a convolution has no rows that one scale could be chosen for"
