"""Products with matrices that an index picks: read each matrix where it lies, once for all rows that picked it.

``x (..., M, K) @ W[index] (..., K, N)`` with a constant ``W (G, K, N)`` copies a matrix for each position of the index.
It becomes `dlc.grouped_matmul`, of rows sorted by group (`dlc.group_order`); so does ``W[index] @ x (..., K, 1)`` with
``W (G, N, K)``. Where a chain of such products, biases ``b[index]`` and elementwise operators shares its index, the
rows stay sorted from its first product to its last. Experts that are gathered, and the words of a class in a
hierarchical softmax, are such products.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import shape_of
from dlc.ir.graph import Node
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify import run as simplify_run
from dlc.passes.simplify.match import unnamed
from dlc.passes.specialize.blocks import everywhere
from dlc.pipeline import Context, Pass

NAME = "gathered-weights"
_FEWEST = 4  # columns of a matrix: packed ones are as wide as a vector


@dataclass(frozen=True)
class _Match:
    """One product: what multiplies, the matrices (groups, K, N), the index, and rows that share a matrix."""

    x: str
    weight: np.ndarray
    index: str
    rows: Any


def _match(rw: Rewriter, node: Node) -> _Match | str | None:
    """The parts of a product with gathered matrices; a reason where it is one that stays, None for other nodes."""
    left, right = node.inputs
    for name, x, turned in ((right, left, False), (left, right, True)):
        taken, swapped = rw.producer(name), turned
        if taken is not None and taken.op == "relax.permute_dims":
            rank = len(rw.value(taken.inputs[0]).shape)
            if tuple(taken.attrs["axes"]) != (*range(rank - 2), rank - 1, rank - 2):
                continue
            taken, swapped = rw.producer(taken.inputs[0]), not turned
        if taken is None or taken.op != "relax.take" or taken.attrs["axis"] != 0:
            continue
        weight, shape = rw.constant(taken.inputs[0]), rw.value(x).shape
        if weight is None or weight.ndim != 3 or rw.constant(taken.inputs[1]) is not None:
            continue
        if weight.dtype != np.float32:
            return (
                f"matrices are copied for each row: only those of float32 are read where they lie, not {weight.dtype}"
            )
        index = rw.value(taken.inputs[1]).shape
        weight = weight.swapaxes(1, 2) if swapped else weight
        batch = node.output.shape[:-2]
        whole = len(shape) > 1 and len(index) == len(batch) and all(map(same, index, batch))
        if not whole or (turned and not same(shape[-1], 1)):
            return "matrices are copied for each row: their index is not one for each of the rows"
        if weight.shape[2] < _FEWEST:
            return None
        return _Match(x, weight, taken.inputs[1], 1 if turned else shape[-2])
    return None


class _Sorted:
    """One rewrite; `sorted` holds the values that exist in the order of their groups."""

    def __init__(self, rw: Rewriter, context: Context) -> None:
        self.rw, self.context = rw, context
        self.orders: dict[tuple[str, str], tuple[Any, Any, Any]] = {}
        self.sorted: dict[tuple[str, str], Any] = {}  # (value, index) -> its rows (R, N) in order

    def handle(self, rw: Rewriter, node: Node) -> Any:
        """See the module's docstring."""
        found = _match(rw, node) if node.op == "dlc.matmul" else None
        if isinstance(found, str):
            self.context.decline(NAME, node.origin, found)
        if found is None or isinstance(found, str):
            return None
        if self.context.target is not None and not self.context.target.groups_rows:
            text = f"target {self.context.target.name} has no products of rows with matrices of their own choice"
            self.context.decline(NAME, node.origin, f"matrices are copied for each row: {text}")
            return None
        return self._product(node, found)

    def emit(self, op: str, inputs: list[Any], attrs: dict[str, Any], node: Node) -> Any:
        """A new node of a product."""
        return self.rw.emit(op, inputs, attrs, unnamed(node.origin))

    def _product(self, node: Node, match: _Match) -> Any:
        count = prod(node.output.shape[:-2], start=1) * match.rows
        order, place, groups = self._order(node, match, count)
        x = self._rows(match.x, match, count, node)
        attrs = {"out_dtype": "float32"}
        weight = self.rw.const(np.ascontiguousarray(match.weight))
        result = self.emit("dlc.grouped_matmul", [x, weight, groups], attrs, node)
        self.sorted[node.output.name, match.index] = result
        if order is not None:
            result = self.emit("relax.take", [result, place], {"axis": 0}, node)
        return self.rw.emit("relax.reshape", [result], {"shape": node.output.shape}, node.origin)

    def _order(self, node: Node, match: _Match, count: Any) -> tuple[Any, Any, Any]:
        """(the sorted rows' old places, the old rows' sorted places, the groups in order); no places for one row."""
        key = (match.index, str(match.rows))
        if key not in self.orders:
            ids, shape = self.rw.new(match.index), self.rw.value(match.index).shape
            if not same(match.rows, 1):
                ids = self.emit("relax.reshape", [ids], {"shape": (*shape, 1)}, node)
                ids = self.emit("relax.broadcast_to", [ids], {"shape": (*shape, match.rows)}, node)
            ids = self.emit("relax.reshape", [ids], {"shape": (count,)}, node)
            if same(count, 1):
                self.orders[key] = None, None, ids
            else:
                groups = match.weight.shape[0]
                order, place = (
                    self.emit("dlc.group_order", [ids], {"count": groups, "inverse": inverse}, node)
                    for inverse in (False, True)
                )
                self.orders[key] = order, place, self.emit("relax.take", [ids, order], {"axis": 0}, node)
        return self.orders[key]

    def _rows(self, name: str, match: _Match, count: Any, node: Node) -> Any:
        """What is multiplied, as rows in the order of their groups."""
        done = self._in_order(name, match, count)
        if done is not None:
            return done
        order, shape = self._order(node, match, count)[0], self.rw.value(name).shape
        batch, inner = node.output.shape[:-2], match.weight.shape[1]
        whole = self.rw.new(name)
        lead = (1,) * (len(batch) - len(shape) + 2) + tuple(shape[:-2])
        if not all(map(same, lead, batch)):
            full = (*lead, *shape[-2:])
            whole = self.emit("relax.reshape", [whole], {"shape": full}, node) if len(full) != len(shape) else whole
            whole = self.emit("relax.broadcast_to", [whole], {"shape": (*batch, *shape[-2:])}, node)
        whole = self.emit("relax.reshape", [whole], {"shape": (count, inner)}, node)
        return whole if order is None else self.emit("relax.take", [whole, order], {"axis": 0}, node)

    def _in_order(self, name: str, match: _Match, count: Any) -> Any | None:
        """A value that a product with this index led to, as rows in order, without putting it back first."""
        key = (name, match.index)
        if key not in self.sorted:
            node = self.rw.producer(name)
            made = None if node is None else self._elementwise(node, match, count)
            if made is None:
                return None
            self.sorted[key] = made
        found = self.sorted[key]
        return found if all(map(same, shape_of(found), (count, self.rw.value(name).shape[-1]))) else None

    def _elementwise(self, node: Node, match: _Match, count: Any) -> Any | None:
        if OPS[node.op].kind != "elementwise" or not node.op.startswith("relax."):
            return None
        operands, some = [], False
        for name in node.inputs:
            shape = self.rw.value(name).shape
            done = self._in_order(name, match, count)
            some = some or done is not None
            if done is None:
                done = self._same_for_all(name, shape) or self._taken(name, match, node)
            if done is None:
                return None
            operands.append(done)
        return self.emit(node.op, operands, dict(node.attrs), node) if some else None

    def _same_for_all(self, name: str, shape: Any) -> Any | None:
        """A constant that is one for all rows."""
        array = self.rw.constant(name)
        if array is None or (array.ndim and array.size != array.shape[-1]):
            return None
        return self.rw.const(array.reshape(array.shape[-1:]))

    def _taken(self, name: str, match: _Match, node: Node) -> Any | None:
        """Rows of a constant at the same index, such as each group's bias."""
        taken = self.rw.producer(name, "relax.take")
        table = None if taken is None or taken.inputs[1] != match.index else self.rw.constant(taken.inputs[0])
        rows = table is not None and table.size == table.shape[0] * table.shape[-1] and table.ndim > 1
        if taken is None or table is None or not rows or taken.attrs["axis"] != 0:
            return None
        groups = self.orders[match.index, str(match.rows)][2]
        return self.emit("relax.take", [self.rw.const(table.reshape(len(table), -1)), groups], {"axis": 0}, node)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        state = states.setdefault(id(rw), _Sorted(rw, context))
        return state.handle(rw, node)

    states: dict[int, _Sorted] = {}
    changed = rewrite(module, handle)
    return module if changed is module else simplify_run(changed, context)


PASS = everywhere(Pass(NAME, run))
