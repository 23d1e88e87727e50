"""Loops as native code: equal to the reference for every way in which a body can use its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
STATE = [3, 4]


def value(name: str, kind: int = FLOAT, shape: Sequence[int | str] = STATE) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def loop_model(
    body: Sequence[Any],
    carried: dict[str, str],
    stacked: Sequence[str] = (),
    trips: int | None = 5,
    going: str = "going",
    constants: dict[str, np.ndarray] | None = None,
    start: bool = False,
) -> Any:
    """A Loop of `body` nodes; `carried` maps the name of a state inside to that of its new value."""
    nodes = list(body)
    if going == "going":
        nodes.append(helper.make_node("Identity", ["going"], ["stays"]))
        going = "stays"
    graph = helper.make_graph(
        nodes, "body",
        [value("i", INT64, []), value("going", BOOL, []), *(value(name) for name in carried)],
        [value(going, BOOL, []), *(value(name) for name in (*carried.values(), *stacked))],
    )  # fmt: skip
    outputs = [f"{name}_end" for name in carried] + [f"{name}_all" for name in stacked]
    known = dict(constants or {})
    if trips is not None:
        known["trips"] = np.array(trips, np.int64)
    inputs = ["trips" if trips is not None else "", "start" if start else "", *carried]
    node = helper.make_node("Loop", [i if i not in carried else f"{i}_0" for i in inputs], outputs, "loop", body=graph)
    main = helper.make_graph(
        [node], "g",
        [*(value(f"{name}_0") for name in carried), value("x"), *([value("start", BOOL, [])] if start else [])],
        [value(f"{name}_end") for name in carried] + [value(f"{n}_all", FLOAT, ["t", *STATE]) for n in stacked],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )  # fmt: skip
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def op(kind: str, inputs: str, output: str, **attrs: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], **attrs)


W = {"w": np.random.default_rng(7).standard_normal((4, 4)).astype(np.float32) * 0.4}
COUNTED = [op("Cast", "i", "f", to=FLOAT), op("Add", "a f", "a1")]
HALVED = [op("Mul", "a half", "a1"), op("ReduceMax", "a1", "m", keepdims=0), op("Greater", "m one", "more")]
HALF = {"half": np.float32(0.5), "one": np.float32(0.01)}

CASES: dict[str, dict[str, Any]] = {
    "states that feed each other": {
        "body": [op("MatMul", "a w", "p"), op("Tanh", "p", "a1"), op("Add", "a b", "b1")],
        "carried": {"a": "a1", "b": "b1"}, "constants": W,
    },
    "states that change places": {
        "body": [op("Identity", "a", "a1"), op("Identity", "b", "b1")], "carried": {"a": "b1", "b": "a1"},
    },
    "states that turn": {
        "body": [op("Neg", "a", "n")], "carried": {"a": "b", "b": "c", "c": "n"}, "stacked": ["b"],
    },
    "a state that stays": {"body": [op("Mul", "a b", "a1")], "carried": {"a": "a1", "b": "b"}},
    "one value twice": {"body": [op("Add", "a x", "s")], "carried": {"a": "s", "b": "s"}, "stacked": ["s"]},
    "its own number": {"body": COUNTED, "carried": {"a": "a1"}, "stacked": ["a1", "a"]},
    "no iteration": {"body": COUNTED, "carried": {"a": "a1"}, "trips": 0},
    "no iteration, stacked": {"body": COUNTED, "carried": {"a": "a1"}, "stacked": ["a1"], "trips": 0},
    "ends early": {"body": HALVED, "carried": {"a": "a1"}, "going": "more", "constants": HALF, "trips": 100},
    "ends by itself": {"body": HALVED, "carried": {"a": "a1"}, "going": "more", "constants": HALF, "trips": None},
    "is told to begin": {"body": COUNTED, "carried": {"a": "a1"}, "start": True},
    "reads whether it goes on": {
        "body": [op("Cast", "going", "f", to=FLOAT), op("Add", "a f", "a1")], "carried": {"a": "a1"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_equals_the_reference(name: str) -> None:
    model = loop_model(**CASES[name])
    rng = np.random.default_rng(3)
    feed: dict[str, Any] = {v.name: rng.random(STATE).astype(np.float32) for v in model.graph.input}
    if "start" in feed:
        feed["start"] = np.array(True)
    package = dlc.compile(model, target="cpu")
    wanted = dlc.load(dlc.compile(model, target="reference")).run(feed)
    session = dlc.load(package)
    for _ in range(2):
        for key, got in session.run(feed).items():
            np.testing.assert_allclose(got, wanted[key], rtol=2e-5, atol=1e-6)
    assert [row["kernel"].partition(",")[0] for row in read(package).nodes if row["op"] == "Loop"] == ["native loop"]


def test_a_loop_told_not_to_begin_gives_back_what_it_carries() -> None:
    model = loop_model(COUNTED, {"a": "a1"}, start=True)
    a = np.ones(STATE, np.float32)
    result = dlc.load(dlc.compile(model, target="cpu")).run({"a_0": a, "x": a, "start": np.array(False)})
    np.testing.assert_array_equal(result["a_end"], a)


def test_loops_in_loops() -> None:
    inner = helper.make_graph(
        [op("Mul", "b a", "b1"), helper.make_node("Identity", ["g2"], ["g3"])], "inner",
        [value("j", INT64, []), value("g2", BOOL, []), value("b")], [value("g3", BOOL, []), value("b1"), value("b1")],
    )  # fmt: skip
    body = [
        helper.make_node("Loop", ["three", "", "x"], ["product", "steps"], "inner", body=inner),
        op("ReduceSum", "steps zero", "s", keepdims=0),
        op("Add", "product s", "a1"),
        op("Tanh", "a1", "a2"),
    ]
    constants = {"three": np.array(3, np.int64), "zero": np.array([0], np.int64)}
    model = loop_model(body, {"a": "a2"}, ["s"], constants=constants)
    rng = np.random.default_rng(5)
    feed = {name: rng.random(STATE).astype(np.float32) for name in ("a_0", "x")}
    package = dlc.compile(model, target="cpu")
    wanted = dlc.load(dlc.compile(model, target="reference")).run(feed)
    for key, got in dlc.load(package).run(feed).items():
        np.testing.assert_allclose(got, wanted[key], rtol=2e-5, atol=1e-6)
    assert package.manifest["runtime"] == "dlc.targets.cpu.runtime"
