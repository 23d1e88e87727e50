"""Rows of tensors at positions that only the number of the iteration decides: an address, and no kernel.

A gather of one such row is another name for that memory; storing one row over another is a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.ir.ops.shapes import same

VIEW, TAKE, SCATTER = "relax.reshape", "relax.take", "dlc.scatter_rows"


@dataclass(frozen=True)
class Position:
    """(iteration + offset), modulo `period` where that is not None; never negative."""

    offset: int = 0
    period: int | None = None

    def within(self, extent: Any, most: Any) -> bool:
        """Whether it is known to be less than `extent`, where the iteration is less than `most` (None: unknown)."""
        if self.period is not None:
            return isinstance(extent, int) and self.period <= extent
        if isinstance(most, int) and isinstance(extent, int):
            return most + self.offset <= extent
        return most is not None and self.offset == 0 and str(most) == str(extent)  # symbols are equal by name


@dataclass(frozen=True)
class Row:
    """One row along `axis` of `data`; `update`, where it is stored, is what it becomes."""

    data: str
    axis: int
    position: Position
    update: str = ""


def find_rows(graph: Graph, most: Any) -> dict[str, Row]:
    """The regions of a block that only pick or store one such row, by their output.

    Args:
        graph: the block, of regions; its first input is the number of the iteration.
        most: what the number of the iteration is less than; None where that is unknown.
    """
    search = _Search(graph)
    found = {}
    for node in graph.nodes:
        row = search.row(node, most)
        if row is not None:
            found[node.output.name] = row
    return found


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.values, self.producers = graph, graph.values(), graph.producers()
        self.known: dict[str, Position | np.ndarray | None] = {graph.inputs[0].name: Position()}

    def row(self, node: Node, most: Any) -> Row | None:
        if node.body is None or len(node.body.nodes) != 1 or "dlc.halo" in node.attrs:
            return None
        (inner,) = node.body.nodes
        names = dict(zip((v.name for v in node.body.inputs), node.inputs, strict=True))
        if inner.op not in (TAKE, SCATTER) or any(name not in names for name in inner.inputs):
            return None
        data, at, *rest = (names[name] for name in inner.inputs)
        shape = self.values[data].shape
        axis = inner.attrs["axis"] % len(shape) if inner.op == TAKE else 0
        one = prod(self.values[at].shape) == 1 and all(same(extent, 1) for extent in shape[:axis])
        if not one or inner.attrs.get("reduction", "none") != "none":
            return None
        position = self.position(at)
        if not isinstance(position, Position) or not position.within(shape[axis], most):
            return None
        return Row(data, axis, position, *rest)

    def position(self, name: str) -> Position | np.ndarray | None:
        """What is known of a value: that it is a position, or a constant."""
        if name in self.graph.constants:
            return self.graph.constants[name]
        if name not in self.known:
            node = self.producers.get(name)
            self.known[name] = None if node is None else self.made(node)
        return self.known[name]

    def made(self, node: Node) -> Position | np.ndarray | None:
        if node.op == VIEW:
            return self.position(node.inputs[0])
        if node.body is None:
            return None
        inside: dict[str, Position | np.ndarray | None] = dict(node.body.constants)
        for value, name in zip(node.body.inputs, node.inputs, strict=True):
            inside[value.name] = self.position(name)
        for inner in node.body.nodes:
            inside[inner.output.name] = _result(inner, inside)
        return inside[node.body.outputs[0]]


def _result(node: Node, known: Mapping[str, Position | np.ndarray | None]) -> Position | None:
    """The position that an operator makes of one, and of a constant."""
    first = known.get(node.inputs[0])
    if not isinstance(first, Position) or prod(node.output.shape, start=1) != 1:
        first, others = None, []
    else:
        others = [known.get(name) for name in node.inputs[1:]]
    numbers = [int(c.reshape(())) for c in others if isinstance(c, np.ndarray) and c.size == 1 and c.dtype.kind == "i"]
    if first is None or len(numbers) != len(others):
        return None
    if node.op in (VIEW, "relax.broadcast_to") or (node.op == "relax.astype" and node.output.dtype == "int64"):
        return first
    if node.op == "relax.add" and first.period is None and first.offset + numbers[0] >= 0:
        return Position(first.offset + numbers[0])
    if node.op == "relax.floor_mod" and first.period is None and numbers[0] > 0:
        return Position(first.offset % numbers[0], numbers[0])
    return None
