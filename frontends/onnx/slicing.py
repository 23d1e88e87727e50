"""Slice and Pad, in every form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor


def _bounds(c: Context, extent: Dim, begin: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """Slice's begin and end counted from the front and clamped, as numpy does; an end of -1 is before the front."""

    def from_front(position: Dim) -> Dim:
        negative = c.symbols.decide("less", position, 0)
        return c.symbols.simplify(position + extent) if negative else position

    def clamp(position: Dim, low: Dim, high: Dim) -> Dim:
        return c.symbols.smaller(c.symbols.larger(position, low), high)

    begin, end = from_front(begin), from_front(end)
    if step > 0:
        begin, end = clamp(begin, 0, extent), clamp(end, 0, extent)
        return begin, c.symbols.larger(begin, end)
    top = c.symbols.simplify(extent - 1)
    begin, end = clamp(begin, -1, top), clamp(end, -1, top)
    return begin, c.symbols.smaller(begin, end)


def _slice(
    c: Context, x: Tensor, starts: Sequence[Dim], ends: Sequence[Dim], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ConversionError(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    if any(s == 0 for s in steps):
        raise ConversionError("a step of 0")
    picked, bounds, strides = [], [], []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = c.axis(axis, x.rank)
        begin, stop = _bounds(c, x.shape[place], start, end, step)
        if step == 1 and c.symbols.same(begin, 0) and c.symbols.same(stop, x.shape[place]):
            continue
        picked.append(place)
        bounds.append((begin, stop))
        strides.append(step)
    if not picked:
        return x
    empty = [i for i, (b, e) in enumerate(bounds) if isinstance(b, int) and isinstance(e, int) and b == e]
    if empty and -1 in bounds[empty[0]]:
        bounds[empty[0]], strides[empty[0]] = (0, 0), 1
    return c.emit(
        "strided_slice",
        x,
        axes=tuple(picked),
        begin=tuple(b for b, _ in bounds),
        end=tuple(e for _, e in bounds),
        strides=tuple(strides),
    )


@converter("Slice")
def slice_attributes(c: Context, x: Tensor) -> Tensor:
    """Bounds as attributes (up to opset 9)."""
    starts, ends = c.require("starts"), c.require("ends")
    return _slice(c, x, starts, ends, c.attr("axes") or range(len(starts)), [1] * len(starts))


@converter("Slice", since=10)
def slice_inputs(
    c: Context, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """A range along each of some axes."""
    begins, stops = c.dims(starts, "the input 'starts'"), c.dims(ends, "the input 'ends'")
    places = c.ints(axes, "the input 'axes'") if axes is not None else range(len(begins))
    strides = c.ints(steps, "the input 'steps'") if steps is not None else [1] * len(begins)
    return _slice(c, x, begins, stops, places, strides)


# --- padding ---------------------------------------------------------------------------------------------------------

_WIDEST = 1 << 60  # what extents and widths add up to stays within 64 bits
_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(c: Context, x: Tensor, pads: Sequence[int], axes: Sequence[int], fill: Tensor | None) -> Tensor:
    """Pad, or with negative widths crop, the given axes."""
    mode = c.attr("mode", "constant")
    if mode not in _MODES or len(pads) != 2 * len(axes):
        raise ConversionError(f"mode '{mode}' with {len(pads)} widths for {len(axes)} axes")
    if any(abs(width) > _WIDEST for width in pads):
        raise ConversionError(f"widths {list(pads)}")
    before, after = [0] * x.rank, [0] * x.rank
    for i, axis in enumerate(axes):
        before[c.axis(axis, x.rank)], after[c.axis(axis, x.rank)] = pads[i], pads[len(axes) + i]
    for axis in range(x.rank):
        begin, end = max(-before[axis], 0), c.symbols.simplify(x.shape[axis] - max(-after[axis], 0))
        if isinstance(end, int) and end < begin:
            raise ConversionError(f"widths {list(pads)} crop more than {x} has")
        x = c.slice(x, axis, begin, end)
    widths = tuple(v for pair in zip(before, after, strict=True) for v in (max(pair[0], 0), max(pair[1], 0)))
    if not any(widths):
        return x
    options: dict[str, Any] = {"pad_width": widths, "mode": _MODES[mode]}
    if mode != "constant" or fill is None:
        return c.emit("nn.pad", x, **options, value=0.0)
    if fill.value is not None:
        return c.emit("nn.pad", x, **options, value=float(c.number(fill, "the fill")))
    # A fill that is computed when running: where the padding of a tensor of ones is.
    inside = c.emit("nn.pad", c.broadcast(c.constant(np.ones((), bool)), x.shape), **options, value=0.0)
    return c.emit("where", inside, c.emit("nn.pad", x, **options, value=0.0), c.reshape(fill, ()))


@converter("Pad", since=2)
def pad_attributes(c: Context, x: Tensor) -> Tensor:
    """Widths and fill as attributes (up to opset 10)."""
    return _pad(c, x, c.require("pads"), range(x.rank), c.like(c.attr("value", 0.0), x))


@converter("Pad", since=11)
def pad(c: Context, x: Tensor, pads: Tensor, fill: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """Widths and fill as inputs, from opset 18 for some axes only."""
    places = c.ints(axes, "the input 'axes'") if axes is not None else range(x.rank)
    return _pad(c, x, c.ints(pads, "the input 'pads'"), places, fill)
