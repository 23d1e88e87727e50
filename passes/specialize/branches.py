"""Experts that are branches of the graph: the same operators, each with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import shape_of
from dlc.ir.graph import Node
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter
from dlc.passes.specialize.chosen_rows import ChosenRows, UnfitError


@dataclass(frozen=True)
class Column:
    """One term of a weighted sum: a value times one column of the gates."""

    gates: str
    expert: int
    value: str


def terms_of(rw: Rewriter, node: Node) -> list[str]:
    """The terms of a sum, through its sums of terms that nothing else reads."""
    found: list[str] = []
    for name in node.inputs:
        inner = rw.producer(name, "relax.add")
        found += [name] if inner is None or rw.only_consumer(name) is None else terms_of(rw, inner)
    return found


def column_of(rw: Rewriter, term: str) -> Column | None:
    """A term as a value times one column of a tensor of gates (rows..., experts)."""
    product = rw.producer(term, "relax.multiply")
    if product is None:
        return None
    for column, value in (product.inputs, product.inputs[::-1]):
        piece = rw.producer(column)
        while piece is not None and piece.op == "relax.reshape":
            piece = rw.producer(piece.inputs[0])
        if piece is None or piece.op not in ("relax.strided_slice", "relax.take"):
            continue
        gates = piece.inputs[0]
        rows, expert = rw.value(column).shape, _picked(rw, piece)
        # Reshapes keep the order of the rows.
        fits = rows and same(rows[-1], 1) and same(prod(rows), prod(rw.value(gates).shape[:-1], start=1))
        if expert is not None and fits:
            return Column(gates, expert, value)
    return None


def _picked(rw: Rewriter, piece: Node) -> int | None:
    """The one position of the last axis that a slice or a take picks."""
    last = len(rw.value(piece.inputs[0]).shape) - 1
    if piece.op == "relax.take":
        position = rw.scalar(piece.inputs[1])
        return int(position) if position is not None and piece.attrs["axis"] == last else None
    attrs = piece.attrs
    one = tuple(attrs["axes"]) == (last,) and attrs["strides"] == (1,) and isinstance(attrs["begin"][0], int)
    return int(attrs["begin"][0]) if one and attrs["end"][0] == attrs["begin"][0] + 1 else None


class Branches:
    """Follows the branches side by side and writes one row a pair."""

    def __init__(self, pairs: ChosenRows) -> None:
        self.pairs, self.rw = pairs, pairs.rw

    def value(self, names: Sequence[str]) -> Any:
        """One value of each expert's branch, at the pairs: (pairs, features), or what broadcasts to it.

        Raises:
            UnfitError: the branches differ, or are not computed row by row.
        """
        if len(set(names)) == 1:
            return self._common(names[0])
        arrays = [self.rw.constant(name) for name in names]
        if all(array is not None for array in arrays):
            return self._table([array for array in arrays if array is not None])
        nodes = [self.rw.producer(name) for name in names]
        first = nodes[0]
        if first is None or any(n is None or n.op != first.op or dict(n.attrs) != dict(first.attrs) for n in nodes):
            raise UnfitError("the experts are not the same operators with different weights")
        every = [n for n in nodes if n is not None]
        operands = [[n.inputs[i] for n in every] for i in range(len(first.inputs))]
        if first.op == "dlc.matmul":
            return self._matmul(first, operands)
        if OPS[first.op].kind == "elementwise" and first.op.startswith("relax."):
            return self.pairs.elementwise(first, lambda i: self.value(operands[i]))
        raise UnfitError(f"node {first.origin} has no form for single rows")

    def _common(self, name: str) -> Any:
        """What all branches read: rows, or numbers that are the same for all rows."""
        shape = self.rw.value(name).shape
        if prod(shape[:-1], start=1) == 1 and not same(self.pairs.rows, 1):
            return self.pairs.reshape(self.rw.new(name), shape[-1:])
        if not shape or not same(prod(shape[:-1], start=1), self.pairs.rows):
            raise UnfitError(f"'{name}' of shape {[str(d) for d in shape]} is not of rows")
        return self.pairs.of_rows(self.pairs.reshape(self.rw.new(name), (self.pairs.rows, shape[-1])))

    def _table(self, arrays: Sequence[np.ndarray]) -> Any:
        """A constant of each expert."""
        features = {a.shape[-1] if a.ndim else 1 for a in arrays}
        if len(features) != 1 or any(a.size != a.shape[-1] for a in arrays if a.ndim):
            raise UnfitError("the experts' constants differ in shape, or between rows")
        table = np.stack([a.reshape(-1) for a in arrays])
        return self.pairs.take(self.rw.const(table), self.pairs.expert)

    def _matmul(self, node: Node, operands: Sequence[Sequence[str]]) -> Any:
        weights = [self.rw.constant(name) for name in operands[1]]
        if any(w is None or w.ndim != 2 or w.dtype != np.float32 for w in weights):
            raise UnfitError(f"the matrices of node {node.origin} are not constant float32 ones")
        matrices = [w for w in weights if w is not None]
        if len({w.shape for w in matrices}) != 1:
            raise UnfitError(f"the matrices of node {node.origin} and its like differ in shape")
        x = self.value(operands[0])
        if len(shape_of(x)) != 2:
            raise UnfitError(f"node {node.origin} multiplies what is no row")
        return self.pairs.product(x, np.stack(matrices), node.origin)
