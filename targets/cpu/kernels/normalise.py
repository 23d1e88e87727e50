"""Softmax, log-softmax and layer normalisation of floats, with what is computed before and after them.

Vectors run along the last axis. Where it is normalised over, a row's statistics are folded lanes; elsewhere
they are vectors. Sums are in the order that `reduce` documents for the last axis, or of the indices.

Short floats are computed in float32 and rounded once, float64 in float64 with libm's functions.

Error bounds for rows of n elements, with e = 2**-24 (half a unit in the last place of 1), to first order:
- softmax: (n + 6 + ln n + max - x) e relative. Each subtraction's rounding grows by the exponential, whose own error is
  2 e; the sum adds at most n e and the weighted mean of max - x, which is at most ln n.
- log_softmax: (n + 4 + ln n + 3 |result|) e absolute.
- layer_norm: ((n + 8) |gamma| (mean |x| + |x - mean|) / sqrt(variance + epsilon) + |result|) e absolute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vecmath
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
)
from dlc.targets.cpu.kernels.builder import Expr, let, load, splat, stack, store
from dlc.targets.cpu.kernels.contract_loops import loops
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify

_SOFTMAX, _LOG_SOFTMAX, _LAYER_NORM = "relax.nn.softmax", "relax.nn.log_softmax", "relax.nn.layer_norm"
_OPERATORS = (_SOFTMAX, _LOG_SOFTMAX, _LAYER_NORM)
_UNROLL = 4  # vectors of a row that are computed together
_ROW_BYTES = 1 << 16  # of a row kept on the stack between the passes; longer ones are computed again


def _axes(body: Graph) -> list[int]:
    anchor = anchor_of(body)
    assert anchor is not None
    rank = len(anchor.output.shape)
    axes = anchor.attrs["axes"] if anchor.op == _LAYER_NORM else [anchor.attrs["axis"]]
    return sorted(a % rank for a in axes)


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, _OPERATORS)
    if reason is not None:
        return reason
    anchor = anchor_of(body)
    assert anchor is not None
    rank, values = len(anchor.output.shape), body.values()
    if not v.is_float(compute_dtype(anchor.output.dtype)):
        return f"{anchor.op} of {values[anchor.inputs[0]].dtype}"
    if not rank:
        return f"{anchor.op} of a scalar"
    if anchor.op == _LAYER_NORM and _axes(body) != list(range(rank - len(_axes(body)), rank)):
        return f"layer_norm over axes {_axes(body)} of {rank}"
    return None


@dataclass(frozen=True)
class _Spot:
    """A vector of a row: the positions along the normalised axes but the last one, and where in the last axis."""

    inner: Index
    piece: Piece


class _Rows:
    """Passes over rows: everything but the axes that are normalised over, and the lanes where the last axis is kept.

    Between passes a row is kept in the output's own memory where that is float32, on the stack where it is short, or
    not at all: then it is computed again.
    """

    def __init__(self, region: Region, axes: list[int]) -> None:
        self.region, self.axes, self.isa = region, axes, region.isa
        self.shape = region.shape
        self.last = len(self.shape) - 1
        self.folds = self.last in axes
        self.dtype = compute_dtype(region.dtype)
        self.short = self.dtype != region.dtype
        self.lanes = vector_lanes(self.isa, v.width(self.dtype), self.shape[self.last])
        self.inner_axes = [a for a in axes if a != self.last]
        self.kept_axes = [a for a in range(self.last) if a not in axes]
        self.kept: Index = ()
        self.pieces: list[Piece] = []
        self.computed = region.anchor.inputs[0] not in region.inputs  # not merely loaded
        out = region.outputs[region.body.outputs[0]]
        self.in_output = out if out.dtype == self.dtype else None
        self.scratch: Any = None
        row = simplify(prod([self.shape[a] for a in axes], start=1)) * (1 if self.folds else self.lanes)
        if self.in_output is None and isinstance(row, int) and v.width(self.dtype) // 8 * row <= _ROW_BYTES:
            self.scratch = stack(self.dtype, row + self.lanes)

    def run(self) -> None:
        """Emit all rows."""
        with loops([self.shape[a] for a in self.kept_axes], self.region.share) as kept:
            self.kept = kept
            if self.folds:
                self.rows()
                return

            def visit(pieces: list[Piece]) -> None:
                self.pieces = pieces
                self.rows()

            sweep(self.shape[self.last], self.lanes, 1, visit)

    def rows(self) -> None:
        """Emit all passes over one row (or over one row a lane)."""
        raise NotImplementedError

    @property
    def keeps(self) -> bool:
        """Whether a pass can leave something for the next one."""
        return self.in_output is not None or self.scratch is not None

    def rounded(self, value: Expr) -> Expr:
        """`value` as the anchor's type holds it."""
        return let(round_trip(let(value), self.region.dtype))

    # --- places ---

    def index(self, spot: _Spot) -> Index:
        """The logical index of a spot."""
        where = dict(zip(self.kept_axes, self.kept, strict=True)) | dict(zip(self.inner_axes, spot.inner, strict=True))
        return (*(where[a] for a in range(self.last)), spot.piece.base)

    def _flat(self, spot: _Spot) -> Expr:
        """A spot's place on the stack."""
        flat: Expr = 0
        for axis, position in zip(self.inner_axes, spot.inner, strict=True):
            flat = flat * self.shape[axis] + position
        return simplify(flat * self.shape[self.last] + spot.piece.base if self.folds else flat * self.lanes)

    def load(self, spot: _Spot) -> Expr:
        """The anchor's input, computed."""
        return self.region.x(self.index(spot), self.lanes, spot.piece.mask)

    def keep(self, spot: _Spot, value: Expr) -> None:
        """Leave a value for the next pass."""
        if self.in_output is not None:
            self.in_output.store(self.index(spot), value, self.lanes, spot.piece.mask)
        elif self.scratch is not None:
            store(self.scratch, self._flat(spot), value, self.lanes, spot.piece.mask)

    def kept_value(self, spot: _Spot) -> Expr:
        """What `keep` left."""
        if self.in_output is not None:
            return let(self.in_output.load(self.index(spot), self.lanes, spot.piece.mask))
        return let(load(self.scratch, self.dtype, self._flat(spot), self.lanes, spot.piece.mask))

    def again(self, spot: _Spot) -> Expr:
        """The anchor's input once more: loaded, kept by the first pass, or computed again."""
        return self.kept_value(spot) if self.computed and self.keeps else self.load(spot)

    # --- passes ---

    def each(self, visit: Callable[[list[_Spot]], None]) -> None:
        """Visit the row in order, several vectors at a time."""
        with loops([self.shape[a] for a in self.inner_axes]) as inner:
            if self.folds:
                sweep(
                    self.shape[self.last], self.lanes, _UNROLL, lambda pieces: visit([_Spot(inner, p) for p in pieces])
                )
            else:
                visit([_Spot(inner, p) for p in self.pieces])

    def reduce(self, start: float, combine: Callable[[Expr, Expr], Expr], value: Callable[[_Spot], Expr]) -> Expr:
        """Combine `value` over the row: a vector with the same number in all lanes, or one number a lane."""
        neutral = v.constant(start, self.dtype, self.lanes)
        partial = [Accumulator(self.dtype, self.lanes, neutral) for _ in range(_UNROLL if self.folds else 1)]

        def visit(spots: list[_Spot]) -> None:
            values = [value(spot) for spot in spots]
            for spot, x, total in zip(spots, values, partial, strict=False):
                x = masked(spot.piece, x, neutral) if self.folds else x
                total.set(combine(x, total.get()))

        self.each(visit)
        total = tree([p.get() for p in partial], combine)
        if self.folds:
            total = splat(across(total, self.dtype, self.lanes, combine), self.lanes)
        return let(total)

    def finish(self, value: Callable[[_Spot], Expr]) -> None:
        """The last pass: `value` is the anchor's result."""

        def visit(spots: list[_Spot]) -> None:
            for spot in spots:
                result = round_trip(let(value(spot)), self.region.dtype)
                self.region.finish(self.index(spot), result, self.lanes, spot.piece.mask)

        self.each(visit)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


class _Softmax(_Rows):
    """e**(x - max) / sum."""

    def peak(self) -> Expr:
        """The row's maximum. A NaN may be lost: it comes back in the sum."""

        def first(spot: _Spot) -> Expr:
            x = self.load(spot)
            if self.computed:
                self.keep(spot, x)
            return x

        return self.reduce(-inf, v.larger, first)

    def rows(self) -> None:
        """Three passes; the exponentials are kept between the last two."""
        peak = self.peak()

        def power(spot: _Spot) -> Expr:
            e = self.power(self.again(spot), peak)
            self.keep(spot, e)
            return e

        total = self.rounded(self.reduce(0, _add, power))
        if self.short:
            self.finish(lambda spot: self._power_again(spot, peak) / total)
            return
        inverse = let(v.constant(1, self.dtype, self.lanes) / total)
        self.finish(lambda spot: self._power_again(spot, peak) * inverse)

    def power(self, x: Expr, peak: Expr) -> Expr:
        """e**(x - peak), each step rounded to the anchor's type."""
        return self.rounded(vecmath.unary("exp", self.rounded(x - peak), self.isa))

    def _power_again(self, spot: _Spot, peak: Expr) -> Expr:
        return self.kept_value(spot) if self.keeps else self.power(self.load(spot), peak)


class _LogSoftmax(_Softmax):
    """x - max - log(sum)."""

    def rows(self) -> None:
        """Three passes."""
        peak = self.peak()
        total = self.rounded(self.reduce(0, _add, lambda spot: self.power(self.again(spot), peak)))
        log = self.rounded(vecmath.unary("log", total, self.isa))
        self.finish(lambda spot: self.rounded(self.again(spot) - peak) - log)


class _LayerNorm(_Rows):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""

    def rows(self) -> None:
        """Mean, variance, result."""
        count = simplify(prod([self.shape[a] for a in self.axes], start=1))
        size = v.constant(count, self.dtype) if isinstance(count, int) else let(T.cast(count, self.dtype))
        size = let(splat(size, self.lanes))
        epsilon = v.constant(self.region.anchor.attrs["epsilon"], self.dtype, self.lanes)

        def first(spot: _Spot) -> Expr:
            x = self.load(spot)
            if self.computed:
                self.keep(spot, x)
            return x

        def square(spot: _Spot) -> Expr:
            centred = let(self.again(spot) - mean)
            return centred * centred

        mean = let(self.reduce(0, _add, first) / size)
        variance = let(self.reduce(0, _add, square) / size)
        inverse = let(v.constant(1, self.dtype, self.lanes) / v.intrinsic("llvm.sqrt", variance + epsilon))
        self.finish(lambda spot: self._scaled(spot, let((self.again(spot) - mean) * inverse)))

    def _scaled(self, spot: _Spot, centred: Expr) -> Expr:
        _, gamma, beta = self.region.anchor.inputs
        place, mask = (*spot.inner, spot.piece.base), spot.piece.mask
        scale, shift = (v.convert(self.region.value(n, place, self.lanes, mask), self.dtype) for n in (gamma, beta))
        return let(centred * scale) + shift


_KINDS = {_SOFTMAX: _Softmax, _LOG_SOFTMAX: _LogSoftmax, _LAYER_NORM: _LayerNorm}


def _kept(body: Graph) -> list[Expr]:
    """The extents of the loops over rows."""
    anchor = anchor_of(body)
    assert anchor is not None
    shape, axes = anchor.output.shape, _axes(body)
    return [extent for axis, extent in enumerate(shape[:-1]) if axis not in axes]


emit = emitter(lambda region: _KINDS[region.anchor.op](region, _axes(region.body)).run(), _kept)


def softmax_row(region: Region, row: Index) -> None:
    """Emit the passes over one row of a softmax along the last axis: `row` is the index without that axis.

    The output may be the memory of the anchor's input.
    """
    softmax = _Softmax(region, [len(region.shape) - 1])
    softmax.kept = row
    softmax.rows()
