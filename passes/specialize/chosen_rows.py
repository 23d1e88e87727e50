"""What experts compute, for the chosen pairs of a row and an expert alone: row by row, sorted by expert.

A value of all experts has an axis of experts, its last axis is the features, and all its others are rows. `ChosenRows`
follows such values back to what does not depend on the expert, and writes each on the way with one row a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import shape_of
from dlc.ir.graph import Node, Origin
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter
from dlc.passes.simplify.match import unnamed
from dlc.passes.specialize.gates import Gates, moved_axis


class UnfitError(Exception):
    """A value is no function of single rows that this module knows; the text says why."""


class ChosenRows:
    """The pairs, and what values are at them.

    Attributes:
        experts: how many there are.
        rows: extent of the rows.
        expert: the expert of each pair, ascending; an expression (rows * k,).
    """

    def __init__(self, rw: Rewriter, gates: Gates, experts: int, origin: Origin) -> None:
        self.rw, self.gates, self.experts, self.origin = rw, gates, experts, unnamed(origin)
        self.rows = shape_of(gates.chosen)[0]
        self.pairs = self.rows * gates.k
        ids = self.emit("relax.reshape", [gates.chosen], {"shape": (self.pairs,)})
        self.place: Any = None
        self.row: Any = None
        self.expert, self.weights = ids, self._weights()
        if isinstance(self.pairs, int) and self.pairs == 1:
            return
        order, self.place = (
            self.emit("dlc.group_order", [ids], {"count": experts, "inverse": inverse}) for inverse in (False, True)
        )
        self.expert = self.take(ids, order)
        self.weights = None if self.weights is None else self.take(self.weights, order)
        of_pair = self.rw.const(np.array(gates.k, np.int64))
        self.row = order if gates.k == 1 else self.emit("relax.floor_divide", [order, of_pair])

    def _weights(self) -> Any:
        weights = self.gates.weights
        if weights is None:
            return None
        whole = self.emit("relax.broadcast_to", [weights], {"shape": (self.rows, self.gates.k)})
        return self.reshape(whole, (self.pairs, 1))

    # --- writing ---

    def emit(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any] | None = None, origin: Any = None) -> Any:
        """A new node."""
        return self.rw.emit(op, inputs, attrs, origin or self.origin)

    def reshape(self, x: Any, shape: Sequence[Any]) -> Any:
        """`x` with other extents."""
        if len(shape_of(x)) == len(shape) and all(map(same, shape_of(x), shape)):
            return x
        return self.emit("relax.reshape", [x], {"shape": tuple(shape)})

    def take(self, x: Any, positions: Any) -> Any:
        """Rows of `x`."""
        return self.emit("relax.take", [x, positions], {"axis": 0})

    def of_rows(self, x: Any) -> Any:
        """Each pair's row of `x` (rows, features)."""
        return x if self.row is None else self.take(x, self.row)

    def product(self, x: Any, weight: np.ndarray, origin: Origin) -> Any:
        """Each pair's `x` times its expert's matrix; `weight` is (experts, K, N)."""
        attrs = {"out_dtype": "float32"}
        inputs = [x, self.rw.const(np.ascontiguousarray(weight)), self.expert]
        return self.emit("dlc.grouped_matmul", inputs, attrs, unnamed(origin))

    def combined(self, y: Any, shape: Sequence[Any], origin: Origin) -> Any:
        """The weighted sum of each row's pairs, of `shape`."""
        features = shape_of(y)[-1]
        if self.weights is not None:
            y = self.emit("relax.multiply", [y, self.weights])
        if self.place is not None:
            y = self.take(y, self.place)
        if self.gates.k > 1:
            y = self.emit("relax.reshape", [y], {"shape": (self.rows, self.gates.k, features)})
            y = self.emit("relax.sum", [y], {"axes": (1,), "keepdims": False})
        return self.rw.emit("relax.reshape", [y], {"shape": tuple(shape)}, origin)

    # --- values with an axis of experts ---

    def value(self, name: str, axis: int, rank: int) -> Any:
        """The old value `name`, as a part of a tensor of `rank` whose axis `axis` is the experts, at the pairs.

        Returns:
            An expression (pairs, features), or one that broadcasts to it.

        Raises:
            UnfitError: it does not only depend on the pair.
        """
        own = self.rw.value(name).shape
        shape = (1,) * (rank - len(own)) + tuple(own)
        others = [d for i, d in enumerate(shape) if i not in (axis, rank - 1)]
        single, whole = all(same(d, 1) for d in others), same(prod(others, start=1), self.rows)
        of_expert, features = same(shape[axis], self.experts), shape[-1]
        if not (single or whole) or not (of_expert or same(shape[axis], 1)):
            raise UnfitError(f"'{name}' of shape {[str(d) for d in own]} is neither of rows nor of experts")
        if not of_expert and single and (self.rw.constant(name) is not None or not whole):
            return self.reshape(self.rw.new(name), (features,) if own else ())
        if not of_expert:
            return self.of_rows(self.reshape(self.rw.new(name), (self.rows, features)))
        if single and (self.rw.constant(name) is not None or not whole):
            return self.take(self.reshape(self.rw.new(name), (self.experts, features)), self.expert)
        return self._computed(name, axis - (rank - len(own)))

    def _computed(self, name: str, axis: int) -> Any:
        node, shape = self.rw.producer(name), self.rw.value(name).shape
        rank = len(shape)
        if node is None:
            raise UnfitError(f"'{name}' has all experts and is given")
        if OPS[node.op].kind == "elementwise" and node.op.startswith("relax."):
            return self.elementwise(node, lambda i: self.value(node.inputs[i], axis, rank))
        if node.op == "dlc.matmul":
            return self._matmul(node, axis)
        inner = node.inputs[0] if node.inputs else ""
        if node.op == "relax.broadcast_to":
            return self.value(inner, axis, rank)
        if node.op in ("relax.reshape", "relax.permute_dims"):
            given = self.rw.value(inner).shape
            if node.op == "relax.reshape" and axis == rank - 2 and same(given[-1], self.experts * shape[-1]):
                return self._merged(inner, shape[-1])
            found = moved_axis(node, given, axis)
            if found is not None and _keeps_features(node, given):
                return self.value(inner, found, len(given))
        raise UnfitError(f"node {node.origin} has no form for single rows")

    def elementwise(self, node: Node, operand: Callable[[int], Any]) -> Any:
        """An elementwise node over operands at the pairs."""
        return self.emit(node.op, [operand(i) for i in range(len(node.inputs))], dict(node.attrs), unnamed(node.origin))

    def _weight(self, node: Node) -> np.ndarray:
        weight = self.rw.constant(node.inputs[1])
        if weight is None:
            raise UnfitError(f"the matrices of node {node.origin} are no constant")
        if weight.dtype != np.float32:
            raise UnfitError(f"the matrices of node {node.origin} are {weight.dtype}: only float32 is specialised")
        return weight

    def _matmul(self, node: Node, axis: int) -> Any:
        weight, rank = self._weight(node), len(node.output.shape)
        x = self.value(node.inputs[0], axis, rank)
        if len(shape_of(x)) != 2:
            raise UnfitError(f"node {node.origin} multiplies what is no row")
        if weight.ndim == 2:
            attrs = {"out_dtype": "float32"}
            return self.emit("dlc.matmul", [x, self.rw.new(node.inputs[1])], attrs, unnamed(node.origin))
        batch = (1,) * (rank - weight.ndim) + weight.shape[:-2]
        if any(extent != (self.experts if i == axis else 1) for i, extent in enumerate(batch)):
            raise UnfitError(f"node {node.origin} has a matrix for more than each expert")
        return self.product(x, weight.reshape(self.experts, *weight.shape[-2:]), node.origin)

    def _merged(self, name: str, features: int) -> Any:
        """A value whose last axis holds the features of all experts side by side."""
        size, shape = self.experts * features, self.rw.value(name).shape
        if not shape or not same(shape[-1], size):
            if shape and not same(prod(shape, start=1), 1):
                raise UnfitError(f"'{name}' is neither of rows nor of experts")
            return self.reshape(self.rw.new(name), ())
        if same(prod(shape, start=1), size) and self.rw.constant(name) is not None:
            return self.take(self.reshape(self.rw.new(name), (self.experts, features)), self.expert)
        node = self.rw.producer(name)
        if node is not None and OPS[node.op].kind == "elementwise" and node.op.startswith("relax."):
            return self.elementwise(node, lambda i: self._merged(node.inputs[i], features))
        if node is None or node.op != "dlc.matmul" or self._weight(node).ndim != 2:
            raise UnfitError(f"'{name}' is not computed row by row")
        weight = self._weight(node)
        parts = weight.reshape(weight.shape[0], self.experts, features).swapaxes(0, 1)
        x = self.reshape(self.rw.new(node.inputs[0]), (self.rows, weight.shape[0]))
        return self.product(self.of_rows(x), parts, node.origin)


def _keeps_features(node: Node, given: Sequence[Any]) -> bool:
    """Whether the last axis of a transpose or reshape of `given` is that of its input."""
    if node.op == "relax.permute_dims":
        return int(node.attrs["axes"][-1]) % len(given) == len(given) - 1
    return len(given) > 0 and same(given[-1], node.output.shape[-1])
