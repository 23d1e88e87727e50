"""Sliding-window pooling of channels-last activations, with what is computed after it.

Vectors run over channels. A window inside the input is straight-line code; at the borders the bounds of the loops over
the window are clipped instead, so the input needs no halo (it may have one). A float sum adds the window's elements in
the order of the indices, one after the other: its error is at most as many half-units in the last place of the sum of
the magnitudes as there are elements; an average divides and rounds once. A NaN is the maximum of its
window.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import product
from math import inf, prod
from typing import Any

import numpy as np
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
    tree,
    vector_lanes,
    why_not,
)
from dlc.targets.cpu.kernels.builder import Expr, hold, let, splat
from dlc.targets.cpu.kernels.contract_loops import loops
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify

_POOL = "dlc.pool"
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_SMALL = ("uint8", "int8")
_STRAIGHT = 64  # elements of a window, times vectors of channels, up to which its code is straight


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, [_POOL])
    if reason is not None:
        return reason
    anchor = anchor_of(body)
    assert anchor is not None
    attrs, dtype, out = anchor.attrs, body.values()[anchor.inputs[0]].dtype, anchor.output.dtype
    if attrs["layout"] != CHANNELS_LAST:
        return f"a pool in layout {attrs['layout']}"
    if not 1 <= len(attrs["kernel"]) <= 3:
        return f"a window of rank {len(attrs['kernel'])}"
    wanted = {"max": dtype == out, "sum": dtype == out or out == "int32", "average": out in _FLOATS}
    known = {"max": (*_FLOATS, *_SMALL, "int32", "int64"), "sum": (*_FLOATS, *_SMALL), "average": (*_FLOATS, *_SMALL)}
    if dtype not in known[attrs["mode"]] or not wanted[attrs["mode"]] or (dtype in _FLOATS and out != dtype):
        return f"a pool of {dtype} to {out} in mode {attrs['mode']}"
    return None


class _Pool:
    """The loops of one pooling."""

    def __init__(self, region: Region) -> None:
        attrs = region.anchor.attrs
        self.region, self.mode = region, attrs["mode"]
        self.window, self.strides, self.dilations = attrs["kernel"], attrs["strides"], attrs["dilations"]
        rank = self.rank = len(self.window)
        self.begins, self.ends = attrs["pads"][:rank], attrs["pads"][rank:]
        self.batch, *self.extents, self.channels = region.shape
        self.outs = region.anchor.output.shape[1:-1]
        self.integer = region.dtype not in _FLOATS
        kind = compute_dtype(region.dtype)
        self.acc_dtype = "int32" if self.integer and self.mode != "max" else kind
        self.lanes = vector_lanes(region.isa, v.width(self.acc_dtype), self.channels)
        self.include_pad = bool(attrs.get("count_include_pad"))
        self.zero_point = int(attrs.get("x_zero_point", 0)) if self.integer and self.mode != "max" else 0

    def run(self) -> None:
        """Emit everything."""
        with loops([self.batch, *self.outs], self.region.share) as (n, *position):
            starts = [
                let(simplify(o * s - p)) if not isinstance(o, int) else o * s - p
                for o, s, p in zip(position, self.strides, self.begins, strict=True)
            ]
            most = max(1, min(8, self.region.isa.registers // 4))
            inside = self._inside(starts)
            out = (n, *position)
            straight = max(1, min(most, _STRAIGHT // prod(self.window)))
            if prod(self.window) > _STRAIGHT or inside is False:
                self._sweep(most, lambda pieces: self._clipped(out, starts, pieces))
            elif inside is True:
                self._sweep(straight, lambda pieces: self._straight(out, starts, pieces))
            else:
                with T.If(inside):
                    with T.Then():
                        self._sweep(straight, lambda pieces: self._straight(out, starts, pieces))
                    with T.Else():
                        self._sweep(most, lambda pieces: self._clipped(out, starts, pieces))

    def _sweep(self, most: int, visit: Any) -> None:
        sweep(self.channels, self.lanes, most, visit, overlap=self.region.isa.vector_bits < 512)

    def _reach(self, axis: int) -> int:
        """Distance from the first to the last element of a window."""
        return (self.window[axis] - 1) * self.dilations[axis]

    def _inside(self, starts: Sequence[Expr]) -> Any:
        """Whether the window lies inside the input: True, False, or a condition."""
        terms = []
        for axis, start in enumerate(starts):
            extent, reach = self.extents[axis], self._reach(axis)
            if isinstance(start, int) and isinstance(extent, int):
                if start < 0 or start + reach >= extent:
                    return False
                continue
            out = self.outs[axis]
            if self.begins[axis]:
                terms.append(start >= 0)
            last = out * self.strides[axis] - self.strides[axis] - self.begins[axis] + reach
            if not isinstance(last, int) or not isinstance(extent, int) or last >= extent:
                terms.append(start + reach < extent)
        if not terms:
            return True
        condition = terms[0]
        for term in terms[1:]:
            condition = T.And(condition, term)
        return condition

    def _load(self, n: Expr, place: Sequence[Expr], piece: Piece) -> Expr:
        x = self.region.x((n, *place, piece.base), self.lanes, piece.mask)
        return v.convert(x, self.acc_dtype)

    # --- a window inside the input ---

    def _straight(self, out: Index, starts: Sequence[Expr], pieces: list[Piece]) -> None:
        taps = list(product(*(range(0, self._reach(a) + 1, self.dilations[a]) for a in range(self.rank))))
        totals: list[Expr] = [None] * len(pieces)
        loaded: list[list[Expr]] = [[] for _ in pieces]
        for tap in taps:
            place = [simplify(start + t) for start, t in zip(starts, tap, strict=True)]
            for p, piece in enumerate(pieces):
                x = let(self._load(out[0], place, piece))
                loaded[p].append(x)
                if self.mode == "max":
                    # Held: the analyser would write a maximum of n elements out as 2^n.
                    totals[p] = x if totals[p] is None else hold(v.larger(x, totals[p]))
                else:
                    totals[p] = x if totals[p] is None else let(x + totals[p])
        for p, piece in enumerate(pieces):
            total = totals[p]
            if self.mode == "max" and not self.integer:
                total = self._with_nan(total, loaded[p])
            self._finish(out, total, prod(self.window), prod(self.window), piece)

    def _with_nan(self, total: Expr, values: list[Expr]) -> Expr:
        """NaN where one of `values` is: two of them are compared at a time."""
        if len(values) == 1:
            return total
        pairs = [*zip(values[::2], values[1::2], strict=False)]
        if len(values) % 2:
            pairs.append((values[-2], values[-1]))
        # LLVM makes one unordered comparison of the two.
        known = tree([v.either(a <= b, a > b) for a, b in pairs], v.both)
        return let(v.select(known, total, v.like(np.nan, total)))

    # --- a window that may reach over a border ---

    def _bounds(self, starts: Sequence[Expr], beyond: Sequence[int]) -> list[tuple[Expr, Expr]]:
        """(first, end) of the window's elements along each axis that lie in [0, extent + beyond)."""
        found = []
        for axis, start in enumerate(starts):
            step, extent = self.dilations[axis], self.extents[axis] + beyond[axis]
            begin = T.int64(0) + start if isinstance(start, int) else start
            first = T.max(T.truncdiv(T.int64(step - 1) - begin, T.int64(step)), T.int64(0))
            end = T.min(T.truncdiv(extent - begin + (step - 1), T.int64(step)), T.int64(self.window[axis]))
            found.append((let(first), let(T.max(end, first))))
        return found

    def _clipped(self, out: Index, starts: Sequence[Expr], pieces: list[Piece]) -> None:
        bounds = self._bounds(starts, [0] * self.rank)
        lowest = -inf if not self.integer else int(np.iinfo(self.acc_dtype).min)
        start = v.constant(lowest if self.mode == "max" else 0, self.acc_dtype, self.lanes)
        totals = [Accumulator(self.acc_dtype, self.lanes, start) for _ in pieces]
        combine = v.maximum if self.mode == "max" else operator.add

        def walk(place: tuple[Expr, ...]) -> None:
            axis = len(place)
            if axis < self.rank:
                first, end = bounds[axis]
                with T.serial(T.int64(0), end - first) as tap:
                    walk((*place, let(starts[axis] + (first + tap) * self.dilations[axis])))
                return
            for total, piece in zip(totals, pieces, strict=True):
                total.set(combine(let(self._load(out[0], place, piece)), total.get()))

        walk(())
        present = let(prod((end - first for first, end in bounds), start=T.int64(1)))
        counted: Expr = present
        if self.include_pad:
            # From the padding's begin on every window starts inside.
            wide = self._bounds(starts, self.ends)
            counted = let(prod((end for _, end in wide), start=T.int64(1)))
        for total, piece in zip(totals, pieces, strict=True):
            self._finish(out, total.get(), present, counted, piece)

    def _finish(self, out: Index, total: Expr, present: Expr, counted: Expr, piece: Piece) -> None:
        """Correct and divide the sum of `present` elements of a window that counts `counted`, and store."""
        if self.zero_point:
            known = isinstance(present, int)
            offset = T.int32(self.zero_point * present) if known else T.cast(present * self.zero_point, "int32")
            total = let(total - splat(let(offset), self.lanes))
        dtype = self.region.anchor.output.dtype
        if self.mode == "average":
            kind = compute_dtype(dtype)
            known = isinstance(counted, int)
            size = v.constant(counted, kind, self.lanes) if known else splat(let(T.cast(counted, kind)), self.lanes)
            total = v.convert(let(total), kind) / size
        if self.mode != "max":
            total = round_trip(total, dtype)
        self.region.finish((*out, piece.base), total, self.lanes, piece.mask)


def _outputs(body: Graph) -> list[Expr]:
    """The extents of the loops over windows."""
    anchor = anchor_of(body)
    assert anchor is not None
    return list(anchor.output.shape[:-1])


emit = emitter(lambda region: _Pool(region).run(), _outputs)
