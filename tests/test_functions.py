"""Model-local functions: any runtime runs their bodies, and what they mean is specialised, not what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import dlc
from dlc import functions
from dlc.errors import DlcError
from dlc.explain import read

ROWS, FEATURES, EXPERTS, HIDDEN, CLASSES, WORDS = 6, 32, 4, 40, 5, 9
RNG = np.random.default_rng(5)


def random(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 3).astype(np.float32)


X = random(ROWS, FEATURES) * 3
EXPERT_WEIGHTS = {
    "router": random(FEATURES, EXPERTS), "w1": random(EXPERTS, FEATURES, HIDDEN), "b1": random(EXPERTS, 1, HIDDEN),
    "w2": random(EXPERTS, HIDDEN, FEATURES), "b2": random(EXPERTS, 1, FEATURES),
}  # fmt: skip
CLASS_WEIGHTS = {
    "class_weight": random(FEATURES, CLASSES), "class_bias": random(CLASSES),
    "word_weight": random(CLASSES, FEATURES, WORDS), "word_bias": random(CLASSES, WORDS),
}  # fmt: skip
TREE_WEIGHTS = {
    "weight": random(7, FEATURES), "bias": random(7),
    "paths": np.array([[0, 1, 3], [0, 1, 3], [0, 1, 4], [0, 1, 4], [0, 2, 5], [0, 2, 5], [0, 2, 0]]),
    "signs": np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1], [-1, 1, 1], [-1, 1, -1], [-1, -1, 0]], "f"),
}  # fmt: skip


def model_of(
    function: Any,
    inputs: dict[str, np.ndarray],
    weights: dict[str, np.ndarray],
    order: Sequence[str],
    outputs: list[Any],
) -> Any:
    """A model that is one call of a function."""
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), ["T", *a.shape[1:]])
        for n, a in inputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(function.name, list(order), ["y"], "call", domain=functions.DOMAIN)], "g", values,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(functions.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)


def check(model: Any, inputs: dict[str, np.ndarray], **options: Any) -> Any:
    """Compare with onnxruntime, which runs the body; returns the package."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, inputs)
    package = dlc.compile(model, **options)
    (got,) = dlc.load(package).run(inputs).values()
    if not options:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    noise = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert noise < 10 ** (-28 / 20)
    return package


def fused(package: Any, operator: str) -> list[list[str]]:
    return [row["fused"] for row in read(package).nodes if operator in row["fused"]]


def moe(function: Any) -> Any:
    return model_of(function, {"x": X}, EXPERT_WEIGHTS, ["x", *EXPERT_WEIGHTS], ["T", FEATURES])


@pytest.mark.parametrize(("k", "activation", "normalised"), [(1, "relu", False), (2, "silu", True), (3, "gelu", False)])
def test_hard_experts(k: int, activation: str, normalised: bool) -> None:
    package = check(moe(functions.hard_experts(k, activation, normalised)), {"x": X})
    assert len(fused(package, "grouped_matmul")) == 2 and not read(package).declined
    assert len(fused(package, "matmul")) == 1  # the router's


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(DlcError, match="no activation 'relu6'; known: relu, sigmoid, silu, gelu"):
        functions.hard_experts(activation="relu6")


def test_a_foreign_body_of_the_same_name_is_just_a_graph() -> None:
    body = f"""<domain: "{functions.DOMAIN}", opset_import: ["" : 18]>
        HardExperts(x, router, w1, b1, w2, b2) => (y) {{
            scores = MatMul(x, router)
            best = ReduceMax<keepdims = 1>(scores)
            y = Mul(x, best)
        }}"""
    package = check(moe(parser.parse_function(body)), {"x": X})
    assert not fused(package, "grouped_matmul") and not read(package).declined


@pytest.mark.parametrize("quantize", ["none", "int8-dynamic"])
def test_class_softmax(quantize: str) -> None:
    given = {"x": X, "class": RNG.integers(0, CLASSES, ROWS), "word": RNG.integers(0, WORDS, ROWS)}
    model = model_of(functions.class_softmax(), given, CLASS_WEIGHTS, ["x", *CLASS_WEIGHTS, "class", "word"], ["T"])
    package = check(model, given, **({"quantize": quantize} if quantize != "none" else {}))
    # The weights of the words are nowhere copied: the only gathered rows are those of x, of biases and results.
    assert len(fused(package, "grouped_matmul")) == 1 and not read(package).declined


def test_tree_softmax() -> None:
    given = {"x": X, "word": np.arange(ROWS) + 1}
    model = model_of(functions.tree_softmax(), given, TREE_WEIGHTS, ["x", *TREE_WEIGHTS, "word"], ["T"])
    package = check(model, given)
    assert fused(package, "multiply")[0] == ["take", "multiply", "sum"]
    assert not fused(package, "matmul")


def test_the_tree_is_a_distribution() -> None:
    words = len(TREE_WEIGHTS["paths"])
    given = {"x": np.repeat(X[:1], words, 0), "word": np.arange(words)}
    model = model_of(functions.tree_softmax(), given, TREE_WEIGHTS, ["x", *TREE_WEIGHTS, "word"], ["T"])
    (log_p,) = dlc.load(dlc.compile(model)).run(given).values()
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)


# --- best first search ----------------------------------------------------------------------------------------------


def searched(function: Any, x: np.ndarray, weights: dict[str, np.ndarray], outputs: dict[str, Any]) -> Any:
    """(the package, its results by name) of a search, after onnxruntime's were compared."""
    graph = helper.make_graph(
        [helper.make_node(function.name, ["x", *weights], list(outputs), "call", domain=functions.DOMAIN)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", x.shape[1]])],
        [helper.make_tensor_value_info(n, kind, ["T"]) for n, kind in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(functions.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    package = dlc.compile(model)
    results = dlc.load(package).run({"x": x})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, wanted in zip(outputs, session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(results[name], wanted, rtol=1e-4, atol=1e-5)
    return package, results


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("sharpness", [0.01, 1.0, 30.0])  # from "look at every class" to "the first one has it"
def test_the_best_word_of_two_levels_is_that_of_all_words(sharpness: float) -> None:
    weights = {n: a * np.float32(sharpness) if n.startswith("class") else a for n, a in CLASS_WEIGHTS.items()}
    kinds = {"class": TensorProto.INT64, "word": TensorProto.INT64, "log_p": TensorProto.FLOAT}
    package, results = searched(functions.class_best(), X, weights, kinds)
    classes = log_softmax(X @ weights["class_weight"] + weights["class_bias"])
    words = log_softmax(np.einsum("tk,cks->tcs", X, weights["word_weight"]) + weights["word_bias"])
    every = (classes[:, :, None] + words).reshape(len(X), -1)
    np.testing.assert_array_equal(results["class"] * words.shape[2] + results["word"], every.argmax(1))
    np.testing.assert_allclose(results["log_p"], every.max(1), rtol=1e-4, atol=1e-5)
    inside = [row for row in read(package).nodes if "inside" in row]
    assert any("grouped_matmul" in row["fused"] for row in inside) and not read(package).declined


def random_tree(rng: np.random.Generator, words: int) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    """(children (words - 1, 2), for each word the (node, side) from the root) of a random binary tree."""
    children = np.zeros((words - 1, 2), np.int64)
    open_places, paths = [(0, side, []) for side in (0, 1)], [[]] * words
    for node in range(1, words - 1):
        parent, side, path = open_places.pop(rng.integers(len(open_places)))
        children[parent, side] = node
        open_places += [(node, below, [*path, (parent, side)]) for below in (0, 1)]
    for word, (parent, side, path) in enumerate(open_places):
        children[parent, side] = words - 1 + word
        paths[word] = [*path, (parent, side)]
    return children, paths


@pytest.mark.parametrize("words", [2, 3, 17, 60])
def test_the_best_leaf_of_a_tree_is_that_of_all_leaves(words: int) -> None:
    rng = np.random.default_rng(words)
    children, paths = random_tree(rng, words)
    weights = {
        "weight": rng.standard_normal((words - 1, FEATURES)).astype(np.float32),
        "bias": rng.standard_normal(words - 1).astype(np.float32), "children": children,
    }  # fmt: skip
    kinds = {"word": TensorProto.INT64, "log_p": TensorProto.FLOAT}
    for row in range(3):
        x = X[row : row + 1]
        _, results = searched(functions.tree_best(), x, weights, kinds)
        logits = (weights["weight"] @ x[0] + weights["bias"]).astype(np.float64)
        logs = [sum(-np.logaddexp(0, -logits[n] if side == 0 else logits[n]) for n, side in path) for path in paths]
        assert results["word"][0] == int(np.argmax(logs))
        assert results["log_p"][0] == pytest.approx(max(logs), rel=1e-4, abs=1e-5)
