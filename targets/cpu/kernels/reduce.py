"""Reductions with what is computed before and after them: sum, mean, prod, max, min, argmax, argmin over any axes.

Vectors run along the last axis, whether it is kept (accumulators are vectors of outputs) or reduced (their lanes are
folded in the end).

The order of a float sum or product is the same in every call, and depends on the shape and the vector width alone:
- last axis kept: element i of the innermost reduced axis goes to partial sum i mod u, in the order of the indices. u is
  8 (4 with 16 registers) divided by the number of vectors that are accumulated at once. The u are added pairwise.
- last axis reduced: vector i of the last axis, of L elements, goes to partial sum i mod 4, in the order of the indices
  (where the extent is symbolic, what is left of a multiple of 4 L elements goes to the first). The four are added
  pairwise, then the upper half of the lanes to the lower half until one lane is left.

So the error is at most n half-units in the last place of the sum of the n magnitudes; a mean divides and rounds once.
Integer sums wrap around; the mean of integers is computed in float64 and truncated. Short floats are reduced in
float32 and rounded once. A NaN is the maximum and the minimum of what it is in; argmax and argmin take the first NaN,
or else the first of equals.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import (
    Accumulator,
    Index,
    Piece,
    Region,
    across,
    anchor_of,
    emitter,
    masked,
    sweep,
    tree,
    vector_lanes,
    why_not,
    wrapping,
)
from dlc.targets.cpu.kernels.builder import Expr, let, positions, splat
from dlc.targets.cpu.kernels.contract_loops import loop, loops, whole_index
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify

_ARG = ("relax.argmax", "relax.argmin")
_OPERATORS = frozenset({"relax.sum", "relax.mean", "relax.prod", "relax.max", "relax.min", *_ARG})
_DTYPES = frozenset(
    {"float32", "float64", "float16", "bfloat16", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64))}
)
_IN_FLIGHT = 8  # accumulators that hide the latency of an addition
_PARTIAL = 4  # of them along a reduced last axis


@dataclass(frozen=True)
class _Rule:
    """How one operator accumulates: its type, its start value, and how two partial results are combined."""

    dtype: str
    start: Any
    combine: Callable[[Expr, Expr], Expr]


def _rule(op: str, dtype: str) -> _Rule:
    kind = compute_dtype(dtype)
    if op in _ARG:
        return _Rule(kind if v.width(kind) >= 32 else "int32", 0, operator.add)  # the last two are not used
    if op == "relax.mean":
        return _Rule(kind if v.is_float(kind) else "float64", 0, operator.add)
    if op == "relax.sum":
        return _Rule(kind, 0, operator.add if v.is_float(kind) else partial(wrapping, "add"))
    if op == "relax.prod":
        return _Rule(kind, 1, operator.mul if v.is_float(kind) else partial(wrapping, "mul"))
    low, high = (-inf, inf) if v.is_float(kind) else (np.iinfo(kind).min, np.iinfo(kind).max)
    return _Rule(kind, low, v.maximum) if op == "relax.max" else _Rule(kind, high, v.minimum)


def _axes(anchor: Node, rank: int) -> list[int]:
    """The reduced axes in order."""
    axes = [anchor.attrs["axis"]] if anchor.op in _ARG else anchor.attrs["axes"]
    return sorted(a % rank for a in axes)


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, _OPERATORS)
    if reason is not None:
        return reason
    anchor = anchor_of(body)
    assert anchor is not None
    value = body.values()[anchor.inputs[0]]
    if not value.shape:
        return f"{anchor.op} of a scalar"
    return None if value.dtype in _DTYPES else f"{anchor.op} of {value.dtype}"


def _walk(extent: Expr, copies: int, step: Callable[[Expr, int], None]) -> None:
    """Call `step` (position, position mod `copies`) in order along an axis, `copies` positions a turn."""
    if isinstance(extent, int):
        full, rest = divmod(extent, copies)
        if full:
            with loop(full) as turn:
                for copy in range(copies):
                    step(turn * copies + copy, copy)
        for copy in range(rest):
            step(full * copies + copy, copy)
        return
    full = let(T.truncdiv(extent, T.int64(copies)))
    with loop(full) as turn:
        for copy in range(copies):
            step(turn * copies + copy, copy)
    for copy in range(copies - 1):
        with T.If(full * copies + copy < extent), T.Then():
            step(full * copies + copy, copy)


def _better(op: str, x: Expr, best: Expr) -> Expr:
    """Whether `x`, later in order, displaces `best`: a NaN displaces all but a NaN."""
    if not v.is_float(v.element(x)):
        return x > best if op == "relax.argmax" else x < best
    stays = x <= best if op == "relax.argmax" else x >= best
    return v.invert(v.either(stays, v.is_nan(best)))


class _Reduction:
    """The loops of one reduction."""

    def __init__(self, region: Region) -> None:
        self.region, self.shape = region, region.shape
        self.axes = _axes(region.anchor, len(self.shape))
        self.op, self.keepdims = region.anchor.op, bool(region.anchor.attrs["keepdims"])
        self.last = len(self.shape) - 1
        self.is_arg = self.op in _ARG
        self.rule = _rule(self.op, region.dtype)
        self.lanes = vector_lanes(region.isa, v.width(self.rule.dtype), self.shape[self.last])
        self.outer = [a for a in range(self.last) if a not in self.axes]

    def run(self) -> None:
        """Emit everything."""
        with loops([self.shape[a] for a in self.outer], self.region.share) as kept:
            where = dict(zip(self.outer, kept, strict=True))
            if self.last not in self.axes:
                overlap = self.region.isa.vector_bits < 512
                visit = self._arg_kept if self.is_arg else self._kept
                most = self._most()
                sweep(self.shape[self.last], self.lanes, most, lambda pieces: visit(where, pieces), overlap)
            elif self.is_arg:
                self._arg_folded(where)
            else:
                self._folded(where)

    def _most(self) -> int:
        return max(1, min(_IN_FLIGHT, self.region.isa.registers // 4))

    def _index(self, where: Mapping[int, Expr]) -> Index:
        """The input's index from the positions along all axes."""
        return tuple(where[a] for a in range(len(self.shape)))

    def _out_index(self, where: Mapping[int, Expr]) -> Index:
        axes = range(len(self.shape))
        if self.keepdims:
            return tuple(0 if a in self.axes else where[a] for a in axes)
        return tuple(where[a] for a in axes if a not in self.axes)

    def _start(self) -> Expr:
        return v.constant(self.rule.start, self.rule.dtype, self.lanes)

    def _load(self, where: Mapping[int, Expr], piece: Piece) -> Expr:
        index = self._index({**where, self.last: piece.base})
        return v.convert(self.region.x(index, self.lanes, piece.mask), self.rule.dtype)

    def _finish(self, where: Mapping[int, Expr], result: Expr, lanes: int, mask: Expr = None) -> None:
        dtype = self.region.dtype
        if self.op == "relax.mean":
            count = simplify(prod([self.shape[a] for a in self.axes], start=1))
            kind = self.rule.dtype
            size = v.constant(count, kind) if isinstance(count, int) else T.cast(count, kind)
            result = v.convert(let(result / let(splat(size, lanes))), compute_dtype(dtype))
        if not self.is_arg:
            result = round_trip(result, dtype)
        self.region.finish(self._out_index(where), result, lanes, mask)

    # --- the last axis is kept ---

    def _kept(self, where: Mapping[int, Expr], pieces: list[Piece]) -> None:
        combine, inner = self.rule.combine, self.axes[-1] if self.axes else None
        extent = 1 if inner is None else self.shape[inner]
        copies = max(1, self._most() // len(pieces))
        if isinstance(extent, int):
            copies = min(copies, extent)
        sums = [[Accumulator(self.rule.dtype, self.lanes, self._start()) for _ in pieces] for _ in range(copies)]

        with loops([self.shape[a] for a in self.axes[:-1]]) as reduced:
            at = {**where, **dict(zip(self.axes[:-1], reduced, strict=True))}

            def step(position: Expr, copy: int) -> None:
                here = at if inner is None else {**at, inner: simplify(position)}
                for p, piece in enumerate(pieces):
                    sums[copy][p].set(combine(self._load(here, piece), sums[copy][p].get()))

            _walk(extent, copies, step)
        for p, piece in enumerate(pieces):
            total = tree([row[p].get() for row in sums], combine)
            self._finish({**where, self.last: piece.base}, total, self.lanes, piece.mask)

    # --- the last axis is reduced ---

    def _partial(self) -> int:
        """Partial results along a reduced last axis."""
        extent = self.shape[self.last]
        return max(1, min(_PARTIAL, -(-extent // self.lanes))) if isinstance(extent, int) else _PARTIAL

    def _folded(self, where: Mapping[int, Expr]) -> None:
        combine, start = self.rule.combine, self._start()
        extent = self.shape[self.last]
        sums = [Accumulator(self.rule.dtype, self.lanes, start) for _ in range(self._partial())]
        axes = [a for a in self.axes if a != self.last]
        with loops([self.shape[a] for a in axes]) as reduced:
            at = {**where, **dict(zip(axes, reduced, strict=True))}

            def visit(pieces: list[Piece]) -> None:
                for p, piece in enumerate(pieces):
                    x = masked(piece, self._load(at, piece), start)
                    sums[p].set(combine(x, sums[p].get()))

            sweep(extent, self.lanes, len(sums), visit)
        total = tree([a.get() for a in sums], combine)
        total = across(total, self.rule.dtype, self.lanes, combine)
        self._finish({**where, self.last: 0}, total, 1)

    # --- positions of extremes ---

    def _arg_step(self, best: _Best, x: Expr, position: Expr, mask: Expr = None) -> None:
        """Let `x` at `position` (int32 vectors) compete."""
        x = let(x)
        wins = _better(self.op, x, best.value.get())
        wins = let(wins if mask is None else v.both(wins, mask))
        best.value.set(v.select(wins, x, best.value.get()))
        best.index.set(v.select(wins, position, best.index.get()))

    def _best(self, first: Expr) -> _Best:
        zero = v.constant(0, "int32", self.lanes)
        return _Best(Accumulator(self.rule.dtype, self.lanes, first), Accumulator("int32", self.lanes, zero))

    def _arg_kept(self, where: Mapping[int, Expr], pieces: list[Piece]) -> None:
        (axis,) = self.axes
        found = [self._best(self._load({**where, axis: 0}, piece)) for piece in pieces]
        with loop(self.shape[axis]) as i:
            position = splat(T.cast(whole_index(i), "int32"), self.lanes)
            for best, piece in zip(found, pieces, strict=True):
                self._arg_step(best, self._load({**where, axis: i}, piece), position)
        for best, piece in zip(found, pieces, strict=True):
            result = v.convert(best.index.get(), "int64")
            self._finish({**where, self.last: piece.base}, result, self.lanes, piece.mask)

    def _arg_folded(self, where: Mapping[int, Expr]) -> None:
        first = self.region.x(self._index({**where, self.last: 0}), 1)
        first = let(splat(let(v.convert(first, self.rule.dtype)), self.lanes))
        found = [self._best(first) for _ in range(self._partial())]

        def visit(pieces: list[Piece]) -> None:
            for best, piece in zip(found, pieces, strict=False):
                base = T.cast(whole_index(piece.base), "int32")
                position = T.ramp(base, T.int32(1), self.lanes) if self.lanes > 1 else base
                self._arg_step(best, self._load(where, piece), position, piece.mask)

        sweep(self.shape[self.last], self.lanes, len(found), visit)
        pairs, lanes = [(best.value.get(), best.index.get()) for best in found], self.lanes
        while len(pairs) > 1:
            won = [self._winner(one, other) for one, other in zip(pairs[::2], pairs[1::2], strict=False)]
            pairs = won + pairs[len(pairs) // 2 * 2 :]
        while lanes > 1:
            value, index = (let(part) for part in pairs[0])
            values, indices = Accumulator(self.rule.dtype, lanes, value), Accumulator("int32", lanes, index)
            lanes //= 2
            halves = [
                (let(values.slot[place]), let(indices.slot[place]))
                for place in (positions(0, lanes), positions(lanes, lanes))
            ]
            pairs = [self._winner(*halves)]
        self._finish({**where, self.last: 0}, v.convert(pairs[0][1], "int64"), 1)

    def _winner(self, one: tuple[Expr, Expr], other: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
        """The better of two (value, position) pairs; the first of equals."""
        (a, i), (b, j) = one, other
        worse = let(_better(self.op, b, a))
        equal = v.invert(v.either(worse, _better(self.op, a, b)))
        wins = let(v.either(worse, v.both(equal, j < i)))
        return let(v.select(wins, b, a)), let(v.select(wins, j, i))


@dataclass(frozen=True)
class _Best:
    """The best values so far and their positions (int32), lane by lane."""

    value: Accumulator
    index: Accumulator


def _kept(body: Graph) -> list[Expr]:
    """The extents of the loops over what is kept, but for the last axis."""
    anchor = anchor_of(body)
    assert anchor is not None
    shape = body.values()[anchor.inputs[0]].shape
    axes = _axes(anchor, len(shape))
    return [extent for axis, extent in enumerate(shape[:-1]) if axis not in axes]


emit = emitter(lambda region: _Reduction(region).run(), _kept)
