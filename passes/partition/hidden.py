"""Which keys a mask hides from every query of attention because of where they are.

That is looked for along the diagonals: a value of (queries, keys) may be the same number wherever key - query is more
than some number, or less. Masks are constants, or comparisons of positions; what a score is otherwise does not matter.
Where the number is -inf, the weight is exactly zero and a target need not compute it. A large negative number that
takes the place of scores counts only in rows that have no score far above it, which a target can see when it runs. One
that is added to scores is not followed: these may be of any size.

A score that is not a number, because of an infinity in a query or a key, is not looked at where it is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.ir.ops.shapes import same


class Side(NamedTuple):
    """A value is `number` wherever the diagonal, turned so that it grows, is more than `beyond`."""

    beyond: float
    number: float


class Position(NamedTuple):
    """A value is the position along an axis, -1 for keys and -2 for queries, and `offset`."""

    axis: int
    offset: int


_LOW = -1e4  # what is nearer to scores of ordinary size hides nothing
_LESS = {"relax.less": False, "relax.less_equal": True}  # what two equal operands give
_COMPARISONS = {**_LESS, "relax.greater": False, "relax.greater_equal": True}


class Band(NamedTuple):
    """The diagonals, key - query, outside of which all scores are `number`; None: no side of that kind."""

    first: int | None = None
    last: int | None = None
    number: float = -inf


def band(graph: Graph, producers: Mapping[str, Node], scores: str, masked: str) -> Band:
    """The diagonals that are not hidden.

    Args:
        graph: where the nodes are from.
        producers: the node that makes each value.
        scores: the product of queries and keys.
        masked: what softmax reads.
    """
    sides = {}
    for sign in (-1, 1):
        side = _Sides(graph, producers, scores, sign).of(masked)
        if side is not None and side.number <= _LOW and abs(side.beyond) != inf:
            sides[sign] = side
    first, last = (int(sign * sides[sign].beyond) if sign in sides else None for sign in (-1, 1))
    return Band(first, last, max((side.number for side in sides.values()), default=-inf))


class Step(NamedTuple):
    """A value that is `before` up to the diagonal `last`, and `behind` from the next one on."""

    last: int
    before: float
    behind: float


def step(graph: Graph, producers: Mapping[str, Node], scores: str, name: str) -> Step | None:
    """A value of (queries, keys) as two numbers, which need not be read from memory; None where it is not known to be.

    Args:
        graph, producers, scores: see `band`.
        name: the value.
    """
    before, behind = (_Sides(graph, producers, scores, sign).of(name) for sign in (-1, 1))
    if before is None or behind is None or inf in (abs(before.beyond), abs(behind.beyond)):
        return None
    everywhere = -before.beyond > behind.beyond  # no diagonal is between the two sides
    return Step(int(behind.beyond), before.number, behind.number) if everywhere else None


class _Sides:
    """What values are on one side: diagonals are multiplied with `sign`."""

    def __init__(self, graph: Graph, producers: Mapping[str, Node], scores: str, sign: int) -> None:
        self.graph, self.producers, self.scores, self.sign = graph, producers, scores, sign
        self.values = graph.values()
        self.shape = self.values[scores].shape[-2:]

    def of(self, name: str) -> Side | None:
        """What a value is beyond some diagonal; None where nothing is known."""
        array = self.graph.constants.get(name)
        if array is not None:
            return self._constant(array)
        node = self.producers.get(name)
        if node is None or name == self.scores:
            return None
        if node.op in ("relax.add", "relax.subtract"):
            return self._sum(node)
        if node.op in _COMPARISONS:
            return self._comparison(node)
        if node.op == "relax.where":
            return self._choice(node)
        if node.op == "relax.logical_not":
            inner = self.of(node.inputs[0])
            return None if inner is None else Side(inner.beyond, float(not inner.number))
        if node.op in ("relax.logical_and", "relax.logical_or"):
            return self._either(node)
        if node.op in ("relax.reshape", "relax.broadcast_to"):
            return self.of(node.inputs[0]) if all(map(self._is_plane, (node.inputs[0], name))) else None
        if node.op == "relax.astype" and node.output.dtype == "bool":
            inner = self.of(node.inputs[0])
            return None if inner is None else Side(inner.beyond, float(bool(inner.number)))
        return None

    def _is_plane(self, name: str) -> bool:
        """Whether the last two axes of a value are those of queries and keys."""
        shape = self.values[name].shape
        return len(shape) > 1 and all(map(same, shape[-2:], self.shape))

    def _constant(self, array: np.ndarray) -> Side | None:
        if array.size == 1:
            return Side(-inf, float(array.reshape(-1)[0]))
        if array.ndim < 2 or list(array.shape[-2:]) != list(self.shape):
            return None
        rows, columns = array.shape[-2:]
        corner = array.reshape(-1, rows, columns)[0, *((0, -1) if self.sign > 0 else (-1, 0))]
        row, key = np.nonzero((array != corner).reshape(-1, rows, columns).any(0))
        return Side(float((self.sign * (key - row)).max()) if len(row) else -inf, float(corner))

    def _sum(self, node: Node) -> Side | None:
        """-inf and whatever else, a number with a number."""
        a, b = (self.of(name) for name in node.inputs)
        if b is not None and node.op == "relax.subtract":
            b = Side(b.beyond, -b.number)
        if a is not None and b is not None:
            return Side(max(a.beyond, b.beyond), a.number + b.number)
        low = [side for side in (a, b) if side is not None and side.number == -inf]
        return low[0] if low else None

    def _choice(self, node: Node) -> Side | None:
        chosen = self.of(node.inputs[0])
        if chosen is None:
            return None
        side = self.of(node.inputs[1] if chosen.number else node.inputs[2])
        return None if side is None else Side(max(chosen.beyond, side.beyond), side.number)

    def _either(self, node: Node) -> Side | None:
        """One operand alone decides where it is true (or), or false (and)."""
        decides = float(node.op == "relax.logical_or")
        sides = [side for side in map(self.of, node.inputs) if side is not None]
        alone = [side.beyond for side in sides if bool(side.number) == bool(decides)]
        if alone:
            return Side(min(alone), decides)
        return Side(max(side.beyond for side in sides), 1 - decides) if len(sides) == 2 else None

    def _comparison(self, node: Node) -> Side | None:
        a, b = (self._position(name) for name in node.inputs)
        if a is None or b is None or a.axis == b.axis:
            return None
        query_first, equal = a.axis == -2, _COMPARISONS[node.op]
        # Behind the diagonal on which both operands are equal the comparison is `later`, before it the opposite.
        later = (node.op in _LESS) == query_first
        gap = a.offset - b.offset if query_first else b.offset - a.offset
        if self.sign > 0:
            return Side(gap - 1 if equal == later else gap, float(later))
        return Side(-gap if equal == later else -gap - 1, float(not later))

    def _position(self, name: str) -> Position | None:
        """What a value counts along the axis of queries or of keys, if it has all of them."""
        found = self._counted(name)
        if found is None or found.axis not in (-1, -2):
            return None
        return found if same(self.values[name].shape[found.axis], self.shape[found.axis]) else None

    def _counted(self, name: str) -> Position | None:
        array = self.graph.constants.get(name)
        if array is not None:
            return _counted_constant(array)
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op == "dlc.positions":
            return Position(-1, 0)
        inner = self._counted(node.inputs[0]) if node.inputs else None
        if inner is None:
            return None
        if node.op == "relax.astype":
            return inner if node.output.dtype in ("int32", "int64") else None
        if node.op == "relax.reshape":
            long = [i for i, n in enumerate(node.output.shape) if not (isinstance(n, int) and n == 1)]
            return Position(long[0] - len(node.output.shape), inner.offset) if len(long) == 1 else None
        if node.op in ("relax.add", "relax.subtract"):
            step = self.graph.constants.get(node.inputs[1])
            if step is None or step.size != 1 or step.dtype.kind not in "iu":
                return None
            number = int(step.reshape(-1)[0])
            return Position(inner.axis, inner.offset + (number if node.op == "relax.add" else -number))
        return None


def _counted_constant(array: np.ndarray) -> Position | None:
    if array.dtype.kind not in "iu" or array.size < 2 or max(array.shape) != array.size:
        return None
    flat = array.reshape(-1)
    counts = (flat - flat[0] == np.arange(array.size)).all()
    return Position(int(np.argmax(array.shape)) - array.ndim, int(flat[0])) if counts else None
