"""`dlc.cumulate`: running sums and products, one step after the other along their axis.

Vectors run over the last axis where it is another one; along it, the elements are taken one by one. Sums are in the
order of the indices, rounded to the type at every step as numpy does, so floats agree exactly too.
"""

from __future__ import annotations

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import (
    Accumulator,
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
from dlc.targets.cpu.kernels.contract_loops import loop, loops
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ["dlc.cumulate"])
    return "running sums of bool" if reason is None and body.nodes[0].output.dtype == "bool" else reason


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    node = body.nodes[0]
    last = node.attrs["axis"] == len(node.output.shape) - 1
    return "scalar loop: each element along the last axis needs the one before" if last else ""


class _Scan:
    def __init__(self, region: Region) -> None:
        self.region, self.attrs = region, region.anchor.attrs
        self.axis, self.last = int(self.attrs["axis"]), len(region.shape) - 1
        self.dtype = compute_dtype(region.dtype)

    def run(self) -> None:
        """Emit everything."""
        shape = self.region.shape
        between = shape[self.axis + 1 : self.last]
        with loops(shape[: self.axis]) as before, loops(between) as after:
            if self.axis == self.last:
                self.step(before, (), 1, [Piece(0)])
                return
            lanes = vector_lanes(self.region.isa, v.width(self.dtype), shape[self.last])
            sweep(shape[self.last], lanes, 4, lambda pieces: self.step(before, after, lanes, pieces))

    def index(self, before: Index, position: Expr, after: Index, piece: Piece) -> Index:
        """Where a vector lies."""
        return (*before, position, *after, piece.base) if self.axis != self.last else (*before, position)

    def step(self, before: Index, after: Index, lanes: int, pieces: list[Piece]) -> None:
        """The running totals of a few vectors."""
        extent = self.region.shape[self.axis]
        start = v.constant(0 if self.attrs["mode"] == "sum" else 1, self.dtype, lanes)
        totals = [Accumulator(self.dtype, lanes, start) for _ in pieces]
        with loop(extent) as i:
            position = simplify(extent - 1 - i) if self.attrs["reverse"] else i
            for piece, total in zip(pieces, totals, strict=True):
                place = self.index(before, position, after, piece)
                x = self.region.x(place, lanes, piece.mask)
                old = let(total.get())
                new = let(self.combined(old, x))
                total.set(new)
                self.region.finish(place, old if self.attrs["exclusive"] else new, lanes, piece.mask)

    def combined(self, total: Expr, x: Expr) -> Expr:
        """One step, rounded or wrapped around as the type is."""
        adds = self.attrs["mode"] == "sum"
        if not v.is_float(self.dtype):
            return round_trip(wrapping("add" if adds else "mul", total, x), self.region.dtype)
        return round_trip(let(total + x if adds else total * x), self.region.dtype)


emit = emitter(lambda region: _Scan(region).run())
