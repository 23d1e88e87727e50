"""`dlc.scatter_rows`: a copy of the data, then the updates one row after the other, in order.

Vectors run over the last dimension of a row. A negative position counts from the end; an update beyond the rows is
dropped, so nothing is ever written outside the output. Where the output lies in the memory of the data (see `in_place`)
there is nothing to copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import (
    Index,
    Piece,
    Region,
    emitter,
    sweep,
    vector_lanes,
    why_not,
    wrapping,
)
from dlc.targets.cpu.kernels.builder import Expr, let
from dlc.targets.cpu.kernels.contract_loops import loop, loops, whole_index
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip, widen


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ["dlc.scatter_rows"])
    if reason is None and not body.nodes[0].output.shape:
        return "rows of a scalar"
    return reason


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    return "scalar loop: rows of one element" if len(body.nodes[0].output.shape) == 1 else ""


def in_place(body: Graph) -> Graph:
    """`body` without its data operand: its kernel updates what lies where the output is to lie."""
    data = body.nodes[0].inputs[0]
    return replace(body, inputs=tuple(v for v in body.inputs if v.name != data))


class _Scatter:
    def __init__(self, region: Region) -> None:
        self.region, self.mode = region, region.anchor.attrs["reduction"]
        self.data, self.positions, self.updates = region.anchor.inputs
        (self.out,) = region.outputs.values()
        self.rows, *self.inner = self.out.layout.shape
        last = self.inner[-1] if self.inner else 1
        self.lanes = vector_lanes(region.isa, v.width(compute_dtype(self.out.dtype)), last)

    def run(self) -> None:
        """Emit everything."""
        if self.data in self.region.inputs:
            with loop(self.rows) as row:
                self.each(lambda inner, piece: self.store(row, inner, self.load(self.data, row, inner, piece), piece))
        with loop(self.region.body.values()[self.positions].shape[0]) as i:
            given = let(v.convert(self.region.value(self.positions, (i,), 1), "int64"))
            rows = whole_index(self.rows)
            row = let(T.Select(given < T.int64(0), given + rows, given))
            with T.If(T.And(row >= T.int64(0), row < rows)), T.Then():
                self.each(lambda inner, piece: self.update(i, row, inner, piece))

    def each(self, visit: Callable[[Index, Piece], None]) -> None:
        """Visit the vectors of a row."""
        if not self.inner:
            visit((), Piece(0))
            return

        def several(outer: Index, pieces: list[Piece]) -> None:
            for piece in pieces:
                visit((*outer, piece.base), piece)

        with loops(self.inner[:-1]) as outer:
            sweep(self.inner[-1], self.lanes, 4, lambda pieces: several(outer, pieces))

    def load(self, name: str, row: Expr, inner: Index, piece: Piece) -> Expr:
        """A vector of an input."""
        return self.region.value(name, (row, *inner), self.lanes, piece.mask)

    def store(self, row: Expr, inner: Index, value: Expr, piece: Piece) -> None:
        """A vector of the output."""
        self.out.store([whole_index(i) for i in (row, *inner)], value, self.lanes, piece.mask)

    def update(self, i: Expr, row: Expr, inner: Index, piece: Piece) -> None:
        """One vector of one update."""
        new = self.load(self.updates, i, inner, piece)
        if self.mode != "none":
            place = [whole_index(j) for j in (row, *inner)]
            old = let(widen(self.out.load(place, self.lanes, piece.mask), self.out.dtype))
            new = round_trip(let(self.combined(old, new)), self.out.dtype)
        self.store(row, inner, new, piece)

    def combined(self, old: Expr, new: Expr) -> Expr:
        """What is there with the update."""
        if self.out.dtype == "bool":
            return v.either(old, new) if self.mode in ("add", "max") else v.both(old, new)
        if self.mode in ("max", "min"):
            return v.maximum(old, new) if self.mode == "max" else v.minimum(old, new)
        if v.is_float(v.element(old)):
            return old + new if self.mode == "add" else old * new
        return wrapping(self.mode, old, new)


emit = emitter(lambda region: _Scatter(region).run())
