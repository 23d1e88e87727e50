"""What control flow runs is quantised like the graph around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read

STEPS, WIDTH, HIDDEN = 24, 12, 40


def recurrent(op: str, gates: int) -> Any:
    rng = np.random.default_rng(11)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(HIDDEN)).astype(np.float32), name)

    weights = [weight("w", 1, gates * HIDDEN, WIDTH), weight("r", 1, gates * HIDDEN, HIDDEN)]
    node = helper.make_node(op, ["x", "w", "r"], ["y"], op, hidden_size=HIDDEN)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, 2, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, 2, HIDDEN])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def decibels(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_in_int8(op: str, gates: int) -> None:
    model = recurrent(op, gates)
    samples = np.random.default_rng(12).standard_normal((6, STEPS, 2, WIDTH)).astype(np.float32)
    feed = {"x": samples[0]}
    (exact,) = dlc.load(dlc.compile(model, target="reference")).run(feed).values()
    results = {}
    for target in ("reference", "cpu"):
        package = dlc.compile(model, target=target, quantize="int8", calibration={"x": samples[1:]})
        (results[target],) = dlc.load(package).run(feed).values()
    assert decibels(results["reference"], exact) > 30
    # The gates are floats: a last bit may turn a code of the next step.
    assert decibels(results["cpu"], results["reference"]) > 45
    inside = [row for row in read(package).nodes if row.get("inside") and row["kernel"].startswith("GEMM")]
    assert inside and all(row["precision"] == "int8" for row in inside)


def test_both_branches_have_ranges_only_where_they_ran() -> None:
    rng = np.random.default_rng(13)
    weights = {n: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for n in ("u", "v")}
    branches = {
        key: helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"y_{name}"], f"product {name}")], key, [],
            [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, [4, WIDTH])],
        )
        for key, name in (("then_branch", "u"), ("else_branch", "v"))
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["take"], ["y"], "choice", **branches)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, WIDTH]),
         helper.make_tensor_value_info("take", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, WIDTH])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((5, 4, WIDTH)).astype(np.float32)
    package = dlc.compile(model, quantize="int8", calibration={"x": x, "take": np.ones(5, np.bool_)})
    declined = {d["node"]: d["reason"] for d in read(package).declined if d["pass"] == "mark"}
    assert declined == {"MatMul 'product v'": "stays float: calibration saw no finite range of its input"}
    (got,) = dlc.load(package).run({"x": x[0], "take": np.array(False)}).values()
    np.testing.assert_allclose(got, x[0] @ weights["v"], rtol=1e-4, atol=1e-4)
