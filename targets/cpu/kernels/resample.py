"""`dlc.resize`: every output element from a few inputs along each dimension.

The positions and weights are computed in the kernel in float64, by the same steps as `dlc.ir.ops.resize` and rounded
alike, so that nearest neighbours and integer results are those of the interpreter, for symbolic extents too. Floats up
to 32 bits are summed in float32: along an axis with t inputs the error is at most t + 1 half-units in the last place of
the sum of the magnitudes.

Vectors run over the last dimension. Where that is resized itself, its positions and weights are tables on the stack,
computed once, and the inputs are gathered; where a table would be too large, or of unknown size, elements are computed
one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.ir.ops import resize
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
)
from dlc.targets.cpu.kernels.builder import Expr, hold, let, positions, splat, stack, unfused_add
from dlc.targets.cpu.kernels.contract_loops import loop, whole_index
from dlc.targets.cpu.kernels.evaluate import At, Evaluator
from dlc.targets.cpu.kernels.resample_weights import Weights
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip
from dlc.targets.layout import simplify

_TABLE_BYTES = 1 << 16  # of positions and weights along the last dimension


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ["dlc.resize"])
    if reason is None and body.nodes[0].output.dtype == "bool" and body.nodes[0].attrs["mode"] != "nearest":
        return f"{body.nodes[0].attrs['mode']} interpolation of bool"
    return reason


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    node, last = body.nodes[0], len(body.nodes[0].output.shape) - 1
    if not _is_resized(body, last):
        return ""
    tabled = _table_size(node.output.shape[last], resize.tap_count(last, node.attrs)) is not None
    return "inputs are gathered along the last dimension" if tabled else "scalar loop along the last dimension"


def _is_resized(body: Graph, axis: int) -> bool:
    node = body.nodes[0]
    return resize.is_resized(body.inputs[0].shape[axis], node.output.shape[axis], axis, node.attrs)


def _table_size(extent: Expr, taps: int) -> int | None:
    """Elements of the tables of the last dimension, with room for a vector; None where they are too large."""
    size = (extent + 16) * taps if isinstance(extent, int) else None
    return size if size is not None and size * 17 <= _TABLE_BYTES else None


@dataclass
class _Axis:
    """What is known about one resized axis: where its taps lie on the stack.

    Tap t of the output at `base` is element ``t * stride + base`` of `index` (int64) and `weight` (the compute type);
    `outside` (uint8) is element `base`. A table covers all outputs, else `base` is 0.
    """

    taps: int
    stride: int
    index: Any
    weight: Any
    outside: Any
    base: Expr = 0


class _Resize:
    def __init__(self, region: Region) -> None:
        self.region, self.attrs, self.isa = region, region.anchor.attrs, region.isa
        self.outs = region.anchor.output.shape
        self.last = len(self.outs) - 1
        self.nearest, dtype = self.attrs["mode"] == "nearest", region.dtype
        # Nearest neighbours are moved as they are.
        self.integer = not v.is_float(compute_dtype(dtype)) and not self.nearest
        self.dtype = "float64" if self.integer else compute_dtype(dtype)
        self.resized = [a for a in range(len(self.outs)) if _is_resized(region.body, a)]
        self.crops = self.attrs["coordinates"] == "tf_crop_and_resize"
        self.axes: dict[int, _Axis] = {}
        self.tabled = self.last in self.resized
        self.lanes = vector_lanes(self.isa, max(8, v.width(self.dtype)), self.outs[self.last]) if self.outs else 1

    def run(self) -> None:
        """Emit everything."""
        for axis in self.resized:
            self.axes[axis] = self.places(axis)
        if self.tabled and self.axes[self.last].stride > 1:
            with loop(self.outs[self.last]) as i:
                self.fill(self.last, i, let(whole_index(i)))
            self.clear_tail()
        elif self.tabled:
            self.lanes = 1
        self.level(0, ())

    def places(self, axis: int) -> _Axis:
        """Stack memory for the taps of an axis."""
        taps, stride = resize.tap_count(axis, self.attrs), 1
        if axis == self.last and _table_size(self.outs[axis], taps) is not None:
            stride = int(self.outs[axis]) + 16
        kind = "float32" if self.dtype == "float32" else "float64"
        return _Axis(taps, stride, stack("int64", taps * stride), stack(kind, taps * stride), stack("uint8", stride))

    def fill(self, axis: int, i: Expr, base: Expr) -> None:
        """Compute the taps of output `i` of an axis and leave them at `base`."""
        found = self.axes[axis]
        weights = Weights(self.region.shape[axis], self.outs[axis], axis, self.attrs, self.isa)
        position = weights.position(i)
        if self.crops:
            T.buffer_store(found.outside, v.convert(weights.is_outside(position), "uint8"), [base])
        for tap, (index, weight) in enumerate(weights.taps(position)):
            T.buffer_store(found.index, index, [base + tap * found.stride])
            if not self.nearest:
                kind = "float32" if self.dtype == "float32" else "float64"
                T.buffer_store(found.weight, v.convert(weight, kind), [base + tap * found.stride])

    def clear_tail(self) -> None:
        """Let what lies behind a table be valid positions, for the last vector."""
        found, extent = self.axes[self.last], int(self.outs[self.last])
        for tap in range(found.taps):
            for i in range(extent, found.stride):
                T.buffer_store(found.index, T.int64(0), [tap * found.stride + i])
                T.buffer_store(found.weight, v.constant(0, str(found.weight.dtype)), [tap * found.stride + i])
        for i in range(extent, found.stride if self.crops else extent):
            T.buffer_store(found.outside, T.uint8(0), [i])

    # --- loops over the output ---

    def level(self, axis: int, index: Index) -> None:
        """The loop over one axis; the taps of a resized one are computed at its start."""
        if axis > self.last or (axis == self.last and self.lanes > 1):
            self.line(index)
            return
        with loop(self.outs[axis]) as i:
            if axis in self.axes:
                self.fill(axis, i, T.int64(0))
            self.level(axis + 1, (*index, i))

    def line(self, index: Index) -> None:
        """The last dimension in vectors, or one element."""
        if self.lanes == 1:
            self.element(index, None)
            return

        def visit(pieces: list[Piece]) -> None:
            for piece in pieces:
                self.element((*index, piece.base), piece.mask)

        sweep(self.outs[self.last], self.lanes, 1, visit)

    def element(self, index: Index, mask: Expr) -> None:
        """One vector of outputs."""
        if self.tabled and self.axes[self.last].stride > 1:
            self.axes[self.last].base = whole_index(index[-1])
        result = self.value(self.last, index, mask)
        if self.integer:
            info = np.iinfo(self.region.dtype)
            result = let(v.rint(result, self.isa))
            result = v.smaller(let(v.larger(result, v.like(info.min, result))), v.like(info.max, result))
            result = self.narrowed(let(result))
        if self.crops:
            result = self.extrapolated(let(result))
        self.region.finish(index, round_trip(let(result), self.region.dtype), self.lanes, mask)

    def narrowed(self, value: Expr) -> Expr:
        """A float64 that holds an integer of the output's type, as such."""
        kind = compute_dtype(self.region.dtype)
        return v.convert(v.convert(value, "int32"), kind) if v.width(kind) < 32 else v.convert(value, kind)

    def extrapolated(self, value: Expr) -> Expr:
        """The given number where any position is outside the input."""
        outside: Expr = None
        for axis in self.resized:
            flag = self.tap_of(axis, self.axes[axis].outside, 0)
            flag = flag if v.lanes_of(flag) == self.lanes else splat(flag, self.lanes)
            outside = flag if outside is None else let(outside | flag)
        chosen = v.unequal(let(outside), v.like(0, outside))
        return v.select_any(hold(chosen), v.like(self.attrs["extrapolation"], value), value)

    # --- the sum over the taps ---

    def tap_of(self, axis: int, table: Any, tap: Expr) -> Expr:
        """One tap's entry: a vector along a tabled last axis."""
        found = self.axes[axis]
        place = simplify(found.base + tap * found.stride)
        return let(table[positions(place, self.lanes if found.stride > 1 else 1)])

    def value(self, axis: int, index: Index, mask: Expr) -> Expr:
        """The input resized along all axes up to `axis`, at a place with positions of the input behind it."""
        if axis < 0:
            return self.load(index, mask)
        if axis not in self.axes:
            return self.value(axis - 1, index, mask)
        found = self.axes[axis]

        def at(tap: Expr) -> Expr:
            position = self.tap_of(axis, found.index, tap)
            return self.value(axis - 1, (*index[:axis], position, *index[axis + 1 :]), mask)

        if self.nearest:
            return at(0)
        total = Accumulator(self.dtype, self.lanes, v.constant(0, self.dtype, self.lanes))
        with loop(found.taps) as tap:
            weight = self.tap_of(axis, found.weight, tap)
            weight = weight if v.lanes_of(weight) == self.lanes else splat(weight, self.lanes)
            total.set(unfused_add(total.get(), let(at(tap) * weight)))
        return let(total.get())

    def load(self, index: Index, mask: Expr) -> Expr:
        """The input, as the type that is summed."""
        gather = any(not isinstance(i, int) and v.lanes_of(i) > 1 for i in index)
        place = At(tuple(whole_index(i) for i in index), self.lanes, None if gather else mask, gather)
        evaluator = Evaluator(self.region.body, self.region.inputs, self.isa)
        x = evaluator.at(self.region.anchor.inputs[0], place)
        return let(x if self.nearest else v.convert(x, self.dtype))


emit = emitter(lambda region: _Resize(region).run())
