"""Loops as native code: equal to the reference for every way in which a body can use its states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read
from tests.loops import BOOL, FLOAT, INT64, STATE, loop_model, op, value

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


@pytest.mark.parametrize("trips", [0, 1, 7])
def test_trips_known_only_when_running_stack_as_many_results(trips: int) -> None:
    model = loop_model(COUNTED, {"a": "a1"}, ["a1"], trips=1)
    graph = model.graph
    del graph.initializer[:]
    graph.input.append(value("trips", INT64, []))
    a = np.zeros(STATE, np.float32)
    package = dlc.compile(model, target="cpu")
    for count in (trips, trips + 2):
        result = dlc.load(package).run({"a_0": a, "x": a, "trips": np.array(count)})
        steps = np.cumsum(np.arange(count, dtype=np.float32))
        np.testing.assert_array_equal(result["a1_all"], np.broadcast_to(steps[:, None, None], (count, *STATE)))
        np.testing.assert_array_equal(result["a_end"], np.full(STATE, steps[-1] if count else 0, np.float32))
    assert "native loop, 3 calls an iteration" in {row["kernel"] for row in read(package).nodes}


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_that_ends_early_gives_what_it_stacked(known: bool) -> None:
    model = loop_model(HALVED, {"a": "a1"}, ["a1"], going="more", constants=HALF, trips=50)
    if not known:
        (trips,) = (i for i in model.graph.initializer if i.name == "trips")
        model.graph.initializer.remove(trips)
        model.graph.input.append(value("trips", INT64, []))
    a = np.full(STATE, 1.0, np.float32)
    feed = {"a_0": a, "x": a} | ({} if known else {"trips": np.array(50)})
    package = dlc.compile(model, target="cpu")
    wanted = dlc.load(dlc.compile(model, target="reference")).run(feed)
    result = dlc.load(package).run(feed)
    assert result["a1_all"].shape == (7, *STATE)
    for name, array in wanted.items():
        np.testing.assert_array_equal(result[name], array)
    assert any(row["kernel"].startswith("native loop") for row in read(package).nodes)


def test_a_loop_that_would_stack_without_end_is_refused_when_running() -> None:
    model = loop_model(HALVED, {"a": "a1"}, ["a1"], going="more", constants=HALF, trips=1)
    del model.graph.initializer[-1:]
    model.graph.input.append(value("trips", INT64, []))
    a = np.ones(STATE, np.float32)
    with pytest.raises(DlcError, match="a loop that stacks results is to run 9223372036854775807 times, more than"):
        dlc.load(dlc.compile(model)).run({"a_0": a, "x": a, "trips": np.array(2**63 - 1)})


def test_branches_in_loops() -> None:
    arms = {
        key: helper.make_graph(nodes, key, [], [value(f"r_{key}")])
        for key, nodes in (
            ("then_branch", [op("MatMul", "a w", "p"), op("Tanh", "p", "r_then_branch")]),
            ("else_branch", [op("Identity", "x", "r_else_branch")]),
        )
    }
    body = [
        op("Mod", "i two", "odd"),
        op("Cast", "odd", "flag", to=BOOL),
        helper.make_node("If", ["flag"], ["chosen"], "choice", **arms),
        op("Add", "a chosen", "a1"),
    ]
    model = loop_model(body, {"a": "a1"}, ["chosen"], constants={"two": np.array(2, np.int64), **W})
    rng = np.random.default_rng(8)
    feed = {name: rng.random(STATE).astype(np.float32) for name in ("a_0", "x")}
    package = dlc.compile(model, target="cpu")
    wanted = dlc.load(dlc.compile(model, target="reference")).run(feed)
    for key, got in dlc.load(package).run(feed).items():
        np.testing.assert_allclose(got, wanted[key], rtol=2e-5, atol=1e-6)
    rows = read(package).nodes
    assert [row["kernel"] for row in rows if row["op"] == "If"] == ["native branch, 1 or 1 calls"]
    assert {row.get("inside") for row in rows} == {None, "loop", "choice"}
