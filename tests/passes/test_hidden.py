"""Diagonals that masks hide: what is found is hidden, by the interpreter, and what is usual is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.graph import Graph, Node, Value
from dlc.ir.interpret import interpret
from dlc.passes.partition.hidden import Band, band, step

COMPARISONS = ["relax.less", "relax.less_equal", "relax.greater", "relax.greater_equal"]


class Mask:
    """A graph from scores (queries, keys) to masked ones, written node by node."""

    def __init__(self, queries: int, keys: int) -> None:
        self.shape, self.nodes, self.constants = (queries, keys), list[Node](), dict[str, np.ndarray]()

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def node(self, op: str, *inputs: str, shape: Any = None, dtype: str = "float32", **attrs: Any) -> str:
        value = Value(f"v{len(self.nodes)}", tuple(self.shape if shape is None else shape), dtype)
        if op in ("dlc.positions", "relax.reshape", "relax.broadcast_to"):
            attrs["shape"] = value.shape
        if op == "dlc.positions":
            attrs["dtype"] = dtype
        self.nodes.append(Node(op, inputs, (value,), attrs))
        return value.name

    def position(self, axis: int, offset: int, computed: bool) -> str:
        extent = self.shape[axis]
        shape = (1, extent) if axis == 1 else (extent, 1)
        if not computed:
            return self.constant((np.arange(extent) + offset).reshape(shape), "int64")
        found = self.node("dlc.positions", shape=(extent,), dtype="int64")
        found = self.node("relax.add", found, self.constant(offset, "int64"), shape=(extent,), dtype="int64")
        return self.node("relax.reshape", found, shape=shape, dtype="int64")

    def compared(self, op: str, query_first: bool, offsets: tuple[int, int], computed: bool) -> str:
        places = [self.position(0, offsets[0], computed), self.position(1, offsets[1], computed)]
        return self.node(op, *(places if query_first else places[::-1]), dtype="bool")

    def found(self, masked: str) -> Band:
        graph = self.graph(masked)
        return band(graph, graph.producers(), "scores", masked)

    def graph(self, masked: str) -> Graph:
        scores = Value("scores", self.shape, "float32")
        return Graph("mask", (scores,), (masked,), tuple(self.nodes), self.constants)

    def visible(self, masked: str) -> np.ndarray:
        scores = np.random.default_rng(0).standard_normal(self.shape).astype("float32")
        (result,) = interpret(self.graph(masked), {"scores": scores})
        return result != -np.inf

    def check(self, masked: str, exact: bool = True) -> None:
        queries, keys = self.shape
        diagonal = np.arange(keys) - np.arange(queries)[:, None]
        visible, (first, last, _) = self.visible(masked), self.found(masked)
        inside = (diagonal >= (-queries if first is None else first)) & (diagonal <= (keys if last is None else last))
        assert not np.any(visible & ~inside)
        if exact and visible.any():
            assert first is None or first == diagonal[visible].min()
            assert last is None or last == diagonal[visible].max()
            assert (first is None) == (not np.any(~visible & (diagonal == 1 - queries)))
            assert (last is None) == (not np.any(~visible & (diagonal == keys - 1)))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(COMPARISONS), st.booleans(), st.tuples(*2 * [st.integers(-2, 2)]), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from(["where", "add", "inner"]),
)  # fmt: skip
def test_comparisons_of_positions(
    op: str, query_first: bool, offsets: tuple[int, int], computed: bool, swapped: bool, negated: bool, form: str
) -> None:
    mask = Mask(6, 7)
    flag = mask.compared(op, query_first, offsets, computed)
    if negated:
        flag = mask.node("relax.logical_not", flag, dtype="bool")
    low, zero = mask.constant(-np.inf), mask.constant(0.0)
    if form == "where":
        masked = mask.node("relax.where", flag, *(["scores", low] if swapped else [low, "scores"]))
    else:
        added = mask.node("relax.where", flag, *([zero, low] if swapped else [low, zero]))
        if form == "inner":
            added = mask.node("relax.add", mask.node("relax.broadcast_to", zero), added)
        masked = mask.node("relax.add", "scores", added)
    mask.check(masked)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**16), st.integers(-8, 8), st.integers(-8, 8), st.sampled_from(["add", "where", "both"]))
def test_constants(seed: int, first: int, last: int, form: str) -> None:
    mask, rng = Mask(5, 9), np.random.default_rng(seed)
    diagonal = np.arange(9) - np.arange(5)[:, None]
    outside = (diagonal < first) | (diagonal > last)
    if form == "add":
        array = np.where(outside, -np.inf, rng.standard_normal((5, 9)))
        masked = mask.node("relax.add", mask.constant(array), "scores")
    else:
        flag = mask.constant(~outside, "bool")
        if form == "both":
            other = mask.constant(rng.random((5, 9)) < 0.8, "bool")
            flag = mask.node("relax.logical_and", other, flag, dtype="bool")
        masked = mask.node("relax.where", flag, "scores", mask.constant(-np.inf))
    mask.check(masked, exact=form != "both")


@pytest.mark.parametrize("low", [-10000.0, float(np.finfo("float32").min)])
def test_a_large_negative_number_is_told_where_it_replaces_scores(low: float) -> None:
    mask = Mask(4, 4)
    flag = mask.compared("relax.less", True, (0, 0), True)
    masked = mask.node("relax.where", flag, mask.constant(low), "scores")
    assert mask.found(masked) == Band(None, 0, low)
    added = mask.node("relax.where", flag, mask.constant(low), mask.constant(0.0))
    assert mask.found(mask.node("relax.add", "scores", added)) == Band()


def test_a_small_number_hides_nothing() -> None:
    mask = Mask(4, 4)
    flag = mask.compared("relax.less", True, (0, 0), True)
    assert mask.found(mask.node("relax.where", flag, mask.constant(-100.0), "scores")) == Band()


def test_what_is_computed_from_masked_scores_is_not_looked_into() -> None:
    mask = Mask(4, 4)
    flag = mask.compared("relax.less", True, (0, 0), True)
    masked = mask.node("relax.where", flag, mask.constant(-np.inf), "scores")
    assert mask.found(masked) == Band(None, 0)
    assert mask.found(mask.node("relax.exp", masked)) == Band()


def test_positions_of_another_extent_are_not_positions_of_keys() -> None:
    mask = Mask(4, 6)
    mask.constants["one"] = np.zeros((1, 1), "int64")
    flag = mask.node("relax.less", mask.position(0, 0, True), "one", dtype="bool", shape=(4, 1))
    assert mask.found(mask.node("relax.where", flag, mask.constant(-np.inf), "scores")) == Band()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(COMPARISONS), st.booleans(), st.tuples(*2 * [st.integers(-2, 2)]), st.booleans())
def test_steps_are_what_they_say(op: str, query_first: bool, offsets: tuple[int, int], constant: bool) -> None:
    mask = Mask(6, 7)
    flag = mask.compared(op, query_first, offsets, True)
    name = mask.node("relax.where", flag, mask.constant(-np.inf), mask.constant(0.5))
    graph = mask.graph(name)
    (wanted,) = interpret(graph, {"scores": np.zeros((6, 7), "float32")})
    if constant:
        graph = mask.graph(mask.constant(wanted))
        name = graph.outputs[0]
    found = step(graph, graph.producers(), "scores", name)
    diagonal = np.arange(7) - np.arange(6)[:, None]
    if found is None:
        assert constant and len(np.unique(wanted)) == 1
    else:
        np.testing.assert_array_equal(wanted, np.where(diagonal > found.last, found.behind, found.before))


def test_a_window_is_no_step() -> None:
    mask, diagonal = Mask(6, 6), np.arange(6) - np.arange(6)[:, None]
    name = mask.constant(np.where(np.abs(diagonal) > 2, -np.inf, 0.0))
    assert step(mask.graph(name), {}, "scores", name) is None
