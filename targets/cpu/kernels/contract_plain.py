"""Contractions that the packed kernels do not take, as plain loops: any numeric types, computed weights too.

Vectors run over the output channels; a few rows share each vector of weights. The weight is read where it lies: by rows
for a matmul, gathered for a convolution, whose output channels are its outermost dimension. Sums are in the order of
the contracted indices, in the compute type of the output: integers wrap around, a float error is at most k half-units
in the last place of the sum of the k magnitudes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.ir.ops.windows import CHANNELS_LAST
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import (
    Accumulator,
    Index,
    Piece,
    Region,
    anchor_of,
    emitter,
    sweep,
    vector_lanes,
    why_not,
    wrapping,
)
from dlc.targets.cpu.kernels.builder import Expr, let, splat
from dlc.targets.cpu.kernels.contract_loops import cut, each, loop, loops, whole_index
from dlc.targets.cpu.kernels.evaluate import At, Evaluator, is_one
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify

_ROWS, _VECTORS = 4, 2  # of a register tile


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ("dlc.conv", "dlc.matmul"))
    if reason is not None:
        return reason
    anchor = anchor_of(body)
    assert anchor is not None
    if anchor.op == "dlc.conv" and anchor.attrs["layout"] != CHANNELS_LAST:
        return f"a convolution in layout {anchor.attrs['layout']}"
    if "bool" in (anchor.output.dtype, *(body.values()[n].dtype for n in anchor.inputs)):
        return "a contraction of bool"
    return None


class _Plain:
    """The loops over one register tile, common to both operators."""

    def __init__(self, region: Region) -> None:
        self.region, self.attrs = region, region.anchor.attrs
        self.a, self.w = region.anchor.inputs
        self.values = region.body.values()
        self.dtype = compute_dtype(region.anchor.output.dtype)
        self.lanes = 1

    def number(self, name: str, index: Index, lanes: int, zero: str, mask: Expr = None, gather: bool = False) -> Expr:
        """Elements of an operand in the compute type of the sums, its zero point subtracted."""
        place = At(tuple(whole_index(i) for i in index), lanes, mask, gather)
        value = v.convert(Evaluator(self.region.body, self.region.inputs, self.region.isa).at(name, place), self.dtype)
        offset = int(self.attrs.get(zero, 0))
        if not offset:
            return let(value)
        minus = v.like(-offset if v.is_signed(self.dtype) or v.is_float(self.dtype) else -offset % 2**32, value)
        return let(value + minus if v.is_float(self.dtype) else wrapping("add", value, minus))

    def accumulators(self, rows: int, pieces: Sequence[Piece]) -> list[list[Accumulator]]:
        """Zeros, by row and vector."""
        zero = v.constant(0, self.dtype, self.lanes)
        return [[Accumulator(self.dtype, self.lanes, zero) for _ in pieces] for _ in range(rows)]

    def add(self, total: Accumulator, a: Expr, w: Expr) -> None:
        """total += a * w, with the scalar `a` in all lanes."""
        a = splat(a, self.lanes)
        if v.is_float(self.dtype):
            total.set(total.get() + a * w)
        else:
            total.set(wrapping("add", total.get(), wrapping("mul", a, w)))

    def finish(self, index: Index, total: Accumulator, mask: Expr) -> None:
        """Compute what follows and store."""
        result = round_trip(let(total.get()), self.region.anchor.output.dtype)
        self.region.finish(index, result, self.lanes, mask)


class _Matmul(_Plain):
    """a (..., m, k) times w (..., k, n); one-dimensional operands as numpy has them."""

    def run(self) -> None:
        """Emit everything."""
        a, w, out = self.values[self.a].shape, self.values[self.w].shape, self.region.anchor.output.shape
        self.has_rows, self.has_columns = len(a) > 1, len(w) > 1
        n = w[-1] if self.has_columns else 1
        batch = out[: len(out) - self.has_rows - self.has_columns]
        self.lanes = vector_lanes(self.region.isa, v.width(self.dtype), n)
        with loops(batch) as outer:
            for segment in cut(a[-2] if self.has_rows else 1, _ROWS):
                with each(segment) as row:
                    rows = [simplify(row + i) for i in range(segment.size)]
                    sweep(n, self.lanes, _VECTORS, functools.partial(self.tile, outer, rows))

    def place(self, name: str, outer: Index, inner: Index) -> Index:
        """The index of an operand: the batch dimensions that it has, broadcast, then `inner`."""
        shape = self.values[name].shape
        own = shape[: len(shape) - len(inner)]
        used = outer[len(outer) - len(own) :]
        return (*(0 if is_one(extent) else i for extent, i in zip(own, used, strict=True)), *inner)

    def tile(self, outer: Index, rows: Sequence[Expr], pieces: list[Piece]) -> None:
        """One register tile."""
        sums = self.accumulators(len(rows), pieces)
        with loop(self.values[self.a].shape[-1]) as k:
            weights = []
            for piece in pieces:
                inner = (k, piece.base) if self.has_columns else (k,)
                place = self.place(self.w, outer, inner)
                weights.append(self.number(self.w, place, self.lanes, "b_zero_point", piece.mask))
            for row, totals in zip(rows, sums, strict=True):
                place = self.place(self.a, outer, (row, k) if self.has_rows else (k,))
                x = self.number(self.a, place, 1, "a_zero_point")
                for total, w in zip(totals, weights, strict=True):
                    self.add(total, x, w)
        for row, totals in zip(rows, sums, strict=True):
            for piece, total in zip(pieces, totals, strict=True):
                inner = (row,) * self.has_rows + (piece.base,) * self.has_columns
                self.finish((*outer, *inner), total, piece.mask)


class _Conv(_Plain):
    """x (N, spatial..., C), whose halo holds the padding, and w (O, C / groups, kernel...)."""

    def run(self) -> None:
        """Emit everything."""
        self.groups = int(self.attrs["groups"])
        outputs, self.depth, *self.kernel = self.values[self.w].shape
        self.per_group = outputs // self.groups
        self.lanes = vector_lanes(self.region.isa, v.width(self.dtype), self.per_group)
        batch, *outs, _ = self.region.anchor.output.shape
        with loop(self.groups) as group, loops([batch, *outs[:-1]]) as outer:
            for segment in cut(outs[-1], _ROWS):
                with each(segment) as column:
                    columns = [simplify(column + i) for i in range(segment.size)]
                    self.columns(group, outer, columns)

    def columns(self, group: Expr, outer: Index, columns: Sequence[Expr]) -> None:
        """All output channels of a group at a few neighbouring places."""
        sweep(self.per_group, self.lanes, _VECTORS, lambda pieces: self.tile(group, outer, columns, pieces))

    def tile(self, group: Expr, outer: Index, columns: Sequence[Expr], pieces: list[Piece]) -> None:
        """One register tile."""
        strides, dilations = self.attrs["strides"], self.attrs["dilations"]
        rank, (n, *lines) = len(self.kernel), outer
        pads = self.attrs["pads"][:rank]
        sums = self.accumulators(len(columns), pieces)
        with loops(self.kernel) as tap, loop(self.depth) as channel:
            weights = [self.weights(group, piece, (channel, *tap)) for piece in pieces]
            for column, totals in zip(columns, sums, strict=True):
                where = [
                    simplify(o * s - p + t * d)
                    for o, s, p, t, d in zip((*lines, column), strides, pads, tap, dilations, strict=True)
                ]
                place = (n, *where, simplify(group * self.depth + channel))
                x = self.number(self.a, place, 1, "x_zero_point")
                for total, w in zip(totals, weights, strict=True):
                    self.add(total, x, w)
        for column, totals in zip(columns, sums, strict=True):
            for piece, total in zip(pieces, totals, strict=True):
                channel = simplify(group * self.per_group + piece.base)
                self.finish((n, *lines, column, channel), total, piece.mask)

    def weights(self, group: Expr, piece: Piece, inner: Index) -> Expr:
        """The weights of one vector of output channels at one tap: they lie a whole filter apart."""
        base = whole_index(simplify(group * self.per_group + piece.base))
        if self.lanes == 1:
            return self.number(self.w, (base, *inner), 1, "")
        channels = T.ramp(base, T.int64(1), self.lanes)
        if piece.mask is not None:
            channels = T.Select(piece.mask, channels, splat(base, self.lanes))
        return self.number(self.w, (let(channels), *inner), self.lanes, "", None, True)


emit = emitter(lambda region: (_Conv if region.anchor.op == "dlc.conv" else _Matmul)(region).run())
