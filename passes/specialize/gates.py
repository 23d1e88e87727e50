"""Find the gates of hard experts: weights over experts of which all but the chosen ones are known to be zero.

The forms: ``ScatterElements`` of the chosen weights into zeros; a one-hot vector, or the sum of one for each choice;
those times or divided by anything. The choices must be results of TopK, ArgMax or ArgMin over the experts, so that they
are in range, and those of one row differ. Reshapes and transposes may lie between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import shape_of
from dlc.ir.graph import Node
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter

_CHOOSE = ("dlc.top_indices", "relax.argmax", "relax.argmin")


@dataclass(frozen=True)
class Gates:
    """The chosen experts of each row, and their weights: expressions of shape (rows, k); no weights where all are 1."""

    chosen: Any
    weights: Any | None
    k: int


def moved_axis(node: Node, inner: Sequence[Any], axis: int) -> int | None:
    """The axis of a transpose's or reshape's input that is `axis` of its output; None where it is not one alone.

    The other axes keep their order (those of extent 1 do not count): they may be split or joined, not exchanged.
    """
    if node.op == "relax.permute_dims":
        axes = [int(a) % len(inner) for a in node.attrs["axes"]]
        others = [a for a in axes if a != axes[axis] and not same(inner[a], 1)]
        return axes[axis] if others == sorted(others) else None
    outer = node.output.shape
    before = prod(outer[:axis], start=1)
    for candidate, extent in enumerate(inner):
        if same(extent, outer[axis]) and same(prod(inner[:candidate], start=1), before):
            return candidate
    return None


class GateFinder:
    """Reads gates in the old graph and writes what the specialised form needs of them."""

    def __init__(self, rw: Rewriter) -> None:
        self.rw = rw

    def find(self, name: str, axis: int) -> Gates | None:
        """The gates that `name` holds along `axis`, whose other axes are rows in their order; None for other values."""
        name, axis = self._peel(name, axis)
        shape, node = self.rw.value(name).shape, self.rw.producer(name)
        if node is None or not isinstance(shape[axis], int) or shape[axis] < 2:
            return None
        if node.op in ("relax.multiply", "relax.divide"):
            return self._scaled(node, axis)
        if node.op == "relax.sum":
            return self._summed(node, axis)
        if node.op == "relax.where":
            return self._one_hot(node, axis)
        if node.op == "dlc.scatter_rows" and len(shape) == 1:
            return self._scattered(node, (1, *shape))
        scatter = self.rw.producer(node.inputs[0], "dlc.scatter_rows") if node.op == "relax.reshape" else None
        if scatter is None or not all(same(d, 1) for d in shape[axis + 1 :]):
            return None
        return self._scattered(scatter, (prod(shape[:axis], start=1), shape[axis]))

    def _peel(self, name: str, axis: int) -> tuple[str, int]:
        """Look through transposes, reshapes and casts of gates."""
        while (node := self.rw.producer(name)) is not None:
            (inner, *_) = node.inputs or ("",)
            if node.op == "relax.astype" and node.output.dtype == "float32":
                name = inner
                continue
            if node.op not in ("relax.permute_dims", "relax.reshape"):
                break
            found = moved_axis(node, self.rw.value(inner).shape, axis)
            if found is None:
                break
            name, axis = inner, found
        return name, axis

    def _rows(self, name: str, axis: int, k: int) -> Any:
        """A value that has no experts as an expression of shape (rows, k)."""
        shape = self.rw.value(name).shape
        rows = prod((d for i, d in enumerate(shape) if i != axis), start=1)
        return self.reshape(self.rw.new(name), (rows, 1) if k == 1 else (rows // k, k))

    def reshape(self, x: Any, shape: Sequence[Any]) -> Any:
        """`x` with other extents."""
        if len(shape_of(x)) == len(shape) and all(map(same, shape_of(x), shape)):
            return x
        return self.rw.emit("relax.reshape", [x], {"shape": tuple(shape)})

    # --- the forms ---

    def _choices(self, name: str, experts: int) -> int | None:
        """How many of the positions that a value holds were chosen for one row among `experts`; None for others."""
        rw, seen = self.rw, None
        while (node := rw.producer(name)) is not None:
            if node.op in _CHOOSE:
                shape = rw.value(node.inputs[0]).shape
                last = int(node.attrs["axis"]) % len(shape) == len(shape) - 1 and same(shape[-1], experts)
                return (seen or int(node.attrs.get("k", 1))) if last else None
            if node.op in ("relax.reshape", "relax.astype"):
                name = node.inputs[0]
            elif node.op == "relax.strided_slice" and node.output.shape[-1] == 1:
                name, seen = node.inputs[0], 1
            elif node.op == "relax.where":  # the wrapping of positions below zero, of which there are none
                less = rw.producer(node.inputs[0], "relax.less")
                if less is None or less.inputs[0] != node.inputs[2] or rw.scalar(less.inputs[1]) != 0:
                    return None
                name = node.inputs[2]
            else:
                return None
        return None

    def _unwrapped(self, name: str) -> str:
        """Positions without the wrapping of those below zero, perhaps of another shape."""
        node = self.rw.producer(self._viewed(name), "relax.where")
        return name if node is None else node.inputs[2]

    def _one_hot(self, node: Node, axis: int) -> Gates | None:
        condition, on, off = node.inputs
        equal = self.rw.producer(condition, "relax.equal")
        if equal is None or (self.rw.scalar(on), self.rw.scalar(off)) != (1, 0):
            return None
        experts = node.output.shape[axis]
        for index, counting in (equal.inputs, equal.inputs[::-1]):
            array, shape = self.rw.constant(counting), self.rw.value(index).shape
            counts = array is not None and np.array_equal(array.reshape(-1), np.arange(experts))
            if not counts or array is None or len(shape) != len(node.output.shape) or not same(shape[axis], 1):
                continue
            along = [d for d in range(array.ndim) if array.shape[d] != 1]
            if [d + len(shape) - array.ndim for d in along] == [axis] and self._choices(index, experts) is not None:
                return Gates(self._rows(index, axis, 1), None, 1)
        return None

    def _scattered(self, scatter: Node, shape: Sequence[Any]) -> Gates | None:
        """Elements put into a flattened tensor of `shape` (rows, experts), which is how ScatterElements is written."""
        rw = self.rw
        if scatter.attrs["reduction"] != "none" or not self._zero(scatter.inputs[0]):
            return None
        places = self._viewed(scatter.inputs[1])
        total = rw.producer(places, "relax.add")
        # The offset of a single row is no sum any more.
        sums = [(places, "")] if same(shape[0], 1) or total is None else [total.inputs, total.inputs[::-1]]
        for index, offset in sums:
            k = self._choices(index, shape[1])
            if k is None or not self._offsets(offset, shape, k):
                continue
            if not same(prod(rw.value(index).shape, start=1), shape[0] * k):
                continue
            chosen, weights = (rw.new(name) for name in (self._unwrapped(index), scatter.inputs[2]))
            return Gates(self.reshape(chosen, (shape[0], k)), self.reshape(weights, (shape[0], k)), k)
        return None

    def _viewed(self, name: str) -> str:
        """What a value is a reshape of."""
        while (node := self.rw.producer(name, "relax.reshape")) is not None:
            name = node.inputs[0]
        return name

    def _zero(self, name: str) -> bool:
        array = self.rw.constant(name)
        if array is not None:
            return not np.any(array)
        node = self.rw.producer(name)
        return node is not None and node.op in ("relax.reshape", "relax.broadcast_to") and self._zero(node.inputs[0])

    def _offsets(self, name: str, shape: Sequence[Any], k: int) -> bool:
        """Whether a value is where each row of a (rows, experts) tensor begins when flattened, for all choices."""
        (rows, experts) = shape
        if not name:
            return same(rows, 1)
        own = self.rw.value(name).shape
        if not same(prod(own, start=1), rows) or (k > 1 and not same(own[-1], 1)):
            return False
        array = self.rw.constant(name)
        if array is not None:
            return np.array_equal(array.reshape(-1), np.arange(rows) * experts)
        node = self.rw.producer(self._viewed(name), "relax.multiply")
        if node is None or experts not in [self.rw.scalar(n) for n in node.inputs]:
            return False
        return any(self.rw.producer(self._viewed(n), "dlc.positions") is not None for n in node.inputs)

    def _scaled(self, node: Node, axis: int) -> Gates | None:
        """Gates times or divided by a number a row, or times a number for each row and expert."""
        shape = node.output.shape
        for position, name in enumerate(node.inputs[: 1 if node.op == "relax.divide" else 2]):
            other = node.inputs[1 - position]
            if len(self.rw.value(name).shape) != len(shape):
                continue
            gates = self.find(name, axis)
            factor = None if gates is None else self._factor(other, axis, gates, shape)
            if gates is None or factor is None:
                continue
            if gates.weights is not None or node.op == "relax.divide":
                given = gates.weights if gates.weights is not None else self.rw.const(np.ones((), np.float32))
                factor = self.rw.emit(node.op, [given, factor])
            return replace(gates, weights=factor)
        return None

    def _factor(self, name: str, axis: int, gates: Gates, shape: Sequence[Any]) -> Any | None:
        size = self.rw.value(name).shape
        rows = prod((d for i, d in enumerate(shape) if i != axis), start=1)
        if all(same(d, 1) for d in size):
            return self.reshape(self.rw.new(name), ())
        size = (1,) * (len(shape) - len(size)) + tuple(size)
        if not all(same(d, shape[i]) for i, d in enumerate(size) if i != axis):
            return None
        if same(size[axis], 1):
            return self.reshape(self.rw.new(name), (rows, 1))
        if axis != len(shape) - 1:
            return None
        flat = self.reshape(self.rw.new(name), (rows, shape[axis]))
        return self.rw.emit("relax.gather_elements", [flat, gates.chosen], {"axis": 1})

    def _summed(self, node: Node, axis: int) -> Gates | None:
        """One-hot vectors, one for each of k choices, perhaps each times its weight, summed over the choices."""
        shape = self.rw.value(node.inputs[0]).shape
        (choices, *more) = node.attrs["axes"]
        if more or not isinstance(shape[choices], int):
            return None
        inner = axis if node.attrs["keepdims"] or axis < choices else axis + 1
        # The choices are the last axis but for the experts: the rows stay together.
        if any(not same(d, 1) for i, d in enumerate(shape) if i > choices and i != inner):
            return None
        gates = self.find(node.inputs[0], inner)
        if gates is None or gates.k != 1:
            return None
        k = shape[choices]
        rows = prod((d for i, d in enumerate(shape) if i not in (choices, inner)), start=1)
        weights = None if gates.weights is None else self._spread(gates.weights, rows, k)
        return Gates(self.reshape(gates.chosen, (rows, k)), weights, k)

    def _spread(self, weights: Any, rows: Any, k: int) -> Any:
        return self.reshape(weights, (rows, k)) if len(shape_of(weights)) == 2 else weights
