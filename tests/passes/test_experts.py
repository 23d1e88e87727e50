"""Hard experts, spelt as different tools spell them: the chosen ones alone are computed, with the graph's own gates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper

import dlc
from dlc.compiler import common_passes, import_source
from dlc.explain import read
from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from dlc.ir.rewrite import live_nodes
from dlc.options import Options
from dlc.pipeline import Context, run_passes
from dlc.runtime.ffi import import_tvm
from dlc.targets.base import find_target
from tests import experts

import_tvm()
OPTIONS = Options(target="reference")
COMPUTED = "all experts are computed for each row: "
SOFT = f"{COMPUTED}their gates are not known to be zero but for the experts that TopK or ArgMax chose"
CASES = st.fixed_dictionaries(
    {
        "weights": st.sampled_from(list(experts.WEIGHTS)), "gates": st.sampled_from(list(experts.GATES)),
        "form": st.sampled_from([*experts.EXPERTS, "branches", "gathered"]),
        "experts": st.integers(2, 5), "k": st.integers(1, 3), "act": st.sampled_from(["Relu", "Sigmoid", "Tanh"]),
        "rows": st.sampled_from(["T", 1, 3, 20]), "outputs": st.sampled_from([4, 7, 16]), "seed": st.integers(0, 99),
    }
)  # fmt: skip


def expected(model: Any, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def compute(package: Any, x: np.ndarray) -> np.ndarray:
    (y,) = dlc.load(package).run({"x": x}).values()
    return np.asarray(y)


def inputs_of(rows: Any, seed: int = 0, features: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((9 if rows == "T" else rows, features)).astype(np.float32)


def specialised(model: Any, target: Any = None) -> tuple[Any, list[str]]:
    """The graph behind the common passes, and what was declined."""
    context = Context(OPTIONS, target=target)
    module = run_passes(import_source(model, OPTIONS), common_passes(OPTIONS), context)
    return view(module), [f"{declined.pass_name}: {declined.reason}" for declined in context.declined]


def operators(graph: Any) -> Counter[str]:
    return Counter(node.op for node in live_nodes(graph))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
          phases=[Phase.explicit, Phase.generate])  # fmt: skip
@given(CASES)
def test_every_spelling_is_found(case: dict[str, Any]) -> None:
    case = {**case, "k": 1 if case["weights"] == "greedy" else min(case["k"], case["experts"])}
    model, x = experts.model(**case), inputs_of(case["rows"], case["seed"])
    graph, declined = specialised(model)
    counts = operators(graph)
    assert (counts["dlc.grouped_matmul"], counts["dlc.matmul"], declined) == (2, 1, []), "all experts are computed"
    sizes = {} if case["rows"] != "T" else {str(graph.inputs[0].shape[0]): len(x)}
    (got,) = interpret(graph, {graph.inputs[0].name: x}, sizes=sizes)
    np.testing.assert_allclose(got, expected(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [{}, {"k": 1, "rows": 1, "weights": "normalised"}, {"form": "branches", "weights": "of logits", "rows": 20},
     {"form": "gathered", "act": "Tanh"}, {"form": "einsum", "gates": "mask", "act": "Sigmoid", "k": 3}],
)  # fmt: skip
def test_native_code_equals_onnxruntime(case: dict[str, Any]) -> None:
    model, x = experts.model(**case), inputs_of(case.get("rows", "T"))
    package = dlc.compile(model)
    np.testing.assert_allclose(compute(package, x), expected(model, x), rtol=1e-5, atol=1e-5)
    rows = [row for row in read(package).nodes if "grouped_matmul" in row["fused"]]
    assert [row["kernel"].rpartition(" ")[0] for row in rows] == ["grouped GEMM"] * 2
    assert all("rows of one of 4 groups" in row["predicted_for"] for row in rows)
    # The biases of the groups are read where they lie.
    assert {"take", "add"} <= set(rows[0]["fused"])


def test_all_rows_may_choose_one_expert() -> None:
    model = experts.model(k=1)
    x = np.tile(inputs_of(1), (33, 1))
    np.testing.assert_allclose(compute(dlc.compile(model), x), expected(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "decibels", "precision"), [("int8", 28, "int8"), ("int8-dynamic", 28, "int8"), ("int4", 16, "int4")]
)
def test_integer_experts_are_accurate(quantize: str, decibels: float, precision: str) -> None:
    model, x = experts.model(inputs=64, hidden=256, outputs=64), inputs_of(64, 3, 64)
    calibration = {"calibration": {"x": x[:, None]}} if quantize == "int8" else {}
    results = []
    for target in ("reference", "cpu"):
        package = dlc.compile(model, target=target, quantize=quantize, **calibration)
        results.append(compute(package, x))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)
    exact = expected(model, x)
    noise = np.linalg.norm(results[1] - exact) / np.linalg.norm(exact)
    assert -20 * np.log10(noise) > decibels
    op = "block_matmul" if precision == "int4" else "grouped_matmul"
    products = [row for row in read(package).nodes if op in row["fused"]]
    assert [row["precision"] for row in products] == [precision] * 2


def test_weights_that_are_not_finite_stay_float_and_say_so() -> None:
    model = experts.model()
    array = next(t for t in model.graph.initializer if t.name == "w1")
    values = np.frombuffer(array.raw_data, np.float32).copy()
    values[0] = np.inf
    array.raw_data = values.tobytes()
    reasons = [d["reason"] for d in read(dlc.compile(model, quantize="int8-dynamic")).declined]
    assert "stays float: the weight holds NaN or infinity" in reasons


# --- what stays as it is, and says why -------------------------------------------------------------------------------


def edited(model: Any, name: str, op_type: str, **attrs: Any) -> Any:
    """`model` with another operator for the node that makes `name`."""
    node = next(n for n in model.graph.node if name in n.output)
    node.CopyFrom(helper.make_node(op_type, list(node.input), list(node.output), **attrs))
    return model


def rewired(model: Any, name: str, position: int, other: str) -> Any:
    """`model` with another input for the node that makes `name`."""
    next(n for n in model.graph.node if name in n.output).input[position] = other
    return model


def soft() -> Any:
    """Gates of all experts."""
    return rewired(experts.model(gates="one-hot"), "gt", 0, "probs")


NEGATIVE = {
    "soft gates": (soft, f"experts: {SOFT}"),
    "gates around something": (
        lambda: rewired(experts.model(), "gates", 0, "logits"), f"experts: {SOFT}",
    ),
    "scattered sums": (
        lambda: edited(experts.model(), "gates", "ScatterElements", axis=1, reduction="add"), f"experts: {SOFT}",
    ),
    "one hot with another value": (
        lambda: other_values(experts.model(gates="one-hot"), "off_on", [0.25, 1]), f"experts: {SOFT}",
    ),
    "normalised over hidden units": (
        lambda: edited(experts.model(), "h", "Softmax", axis=-1),
        f"experts: {COMPUTED}node Softmax 'h' has no form for single rows",
    ),
    "normalised over rows": (
        lambda: edited(experts.model(), "h", "Softmax", axis=1),
        f"experts: {COMPUTED}node Softmax 'h' has no form for single rows",
    ),
    "branches that differ": (
        lambda: edited(experts.model(form="branches"), "h_1", "Tanh"),
        f"experts: {COMPUTED}the experts are not the same operators with different weights",
    ),
}  # fmt: skip


def other_values(model: Any, name: str, values: Any) -> Any:
    """`model` with other numbers in a constant."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    del tensor.float_data[:]
    tensor.raw_data = np.asarray(values, np.float32).tobytes()
    return model


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_is_not_the_same_stays(name: str) -> None:
    make, reason = NEGATIVE[name]
    model, x = make(), inputs_of("T")
    graph, declined = specialised(model)
    assert operators(graph)["dlc.grouped_matmul"] == 0
    assert declined == [reason]
    sizes = {str(graph.inputs[0].shape[0]): len(x)}
    (got,) = interpret(graph, {graph.inputs[0].name: x}, sizes=sizes)
    np.testing.assert_allclose(got, expected(model, x), rtol=1e-5, atol=1e-5)


def test_targets_without_grouped_products_say_so() -> None:
    graph, declined = specialised(experts.model(), find_target("vta:q31"))
    assert operators(graph)["dlc.grouped_matmul"] == 0
    assert declined == [f"experts: {COMPUTED}target vta has no products of rows with matrices of their own choice"]
    graph, declined = specialised(experts.model(form="gathered"), find_target("vta:q31"))
    assert operators(graph)["dlc.grouped_matmul"] == 0
    text = "matrices are copied for each row: target vta has no products of rows with matrices of their own choice"
    assert declined == [f"gathered-weights: {text}"] * 2


def test_a_weighted_sum_without_experts_is_not_mentioned() -> None:
    model = experts.model()
    for node in model.graph.node:
        if "zg" in node.output:
            node.input[0] = "ones"
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["three"], ["ones"]))
    model.graph.initializer.append(helper.make_tensor("three", 7, [3], [4, 1, 12]))
    assert specialised(model)[1] == []
