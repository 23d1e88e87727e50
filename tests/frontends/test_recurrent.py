"""LSTM, GRU and RNN in their variants, held to onnxruntime on the interpreter and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUT, HIDDEN = 5, 6


def layer(op: str, batch: int | str, steps: int | str, feeds: dict[str, Any], rng: Any, **attrs: Any) -> Any:
    """A model of one layer; optional inputs are those in `feeds`, by their place's name."""
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    rows = GATES[op] * HIDDEN

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * 0.5

    constants = {"w": weight(directions, rows, INPUT), "r": weight(directions, rows, HIDDEN)}
    places = ["x", "w", "r", "b", "lengths", "h", "c", "p"]
    if feeds.pop("bias", True):
        constants["b"] = weight(directions, 2 * rows)
    if feeds.pop("peepholes", False):
        constants["p"] = weight(directions, 3 * HIDDEN)
    inputs = {"x": (TensorProto.FLOAT, [steps, batch, INPUT])}
    state = (TensorProto.FLOAT, [directions, batch, HIDDEN])
    inputs |= {name: state for name in ("h", "c") if name in feeds}
    if "lengths" in feeds:
        inputs["lengths"] = (TensorProto.INT32, [batch])
    known = {*constants, *inputs}
    names = [n if n in known else "" for n in places]
    while not names[-1]:
        names.pop()
    outputs = ["y", "last", "memory"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, "cell", hidden_size=HIDDEN, **attrs)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    for value in graph.output:
        value.type.tensor_type.shape.SetInParent()
        rank = 4 if value.name == "y" else 3
        for _ in range(rank):
            value.type.tensor_type.shape.dim.add()
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def hold(model: Any, target: str, feed: dict[str, np.ndarray]) -> dlc.Package:
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    package = dlc.compile(model, target=target)
    actual = dlc.load(package).run(feed)
    for info, wanted in zip(peer.get_outputs(), peer.run(None, feed), strict=True):
        np.testing.assert_allclose(actual[info.name], wanted, rtol=1e-4, atol=1e-5)
    return package


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", sorted(GATES))
def test_directions_with_states_and_lengths(op: str, direction: str, target: str) -> None:
    rng = np.random.default_rng(len(op + direction))
    directions = 2 if direction == "bidirectional" else 1
    feed = {
        "x": rng.standard_normal((7, 3, INPUT)).astype(np.float32),
        "h": rng.standard_normal((directions, 3, HIDDEN)).astype(np.float32),
        "lengths": np.array([7, 0, 5], np.int32),
    }
    if op == "LSTM":
        feed["c"] = rng.standard_normal((directions, 3, HIDDEN)).astype(np.float32)
    hold(layer(op, 3, 7, dict(feed), rng, direction=direction), target, feed)


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "peepholes": ("LSTM", {"peepholes": True}, {}),
    "input forget": ("LSTM", {}, {"input_forget": 1}),
    "clip": ("LSTM", {}, {"clip": 0.4}),
    "no bias": ("GRU", {"bias": False}, {}),
    "linear before reset": ("GRU", {}, {"linear_before_reset": 1}),
    "other functions": ("LSTM", {}, {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
    "parameters": ("RNN", {}, {"activations": ["ScaledTanh"], "activation_alpha": [0.7], "activation_beta": [0.5]}),
}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants(name: str) -> None:
    op, feeds, attrs = VARIANTS[name]
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((4, 2, INPUT)).astype(np.float32)}
    hold(layer(op, 2, 4, feeds, rng, **attrs), "cpu", feed)


def test_any_length_and_batch_from_one_package() -> None:
    rng = np.random.default_rng(2)
    model = layer("LSTM", "n", "t", {}, rng, direction="bidirectional")
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    package = dlc.compile(model)
    session = dlc.load(package)
    for steps, batch in ((1, 1), (9, 2), (30, 4)):
        x = rng.standard_normal((steps, batch, INPUT)).astype(np.float32)
        for wanted, got in zip(peer.run(None, {"x": x}), session.run({"x": x}).values(), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert sum(row["kernel"].startswith("native loop") for row in read(package).nodes) == 2


def test_errors_name_the_node() -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(DlcError, match=r"node 'cell' \(RNN\): activation 'wave' is not known"):
        dlc.compile(layer("RNN", 2, 4, {}, rng, activations=["Wave"]))
    with pytest.raises(DlcError, match=r"node 'cell' \(LSTM\): 2 activations, expected 3"):
        dlc.compile(layer("LSTM", 2, 4, {}, rng, activations=["Tanh", "Tanh"]))
