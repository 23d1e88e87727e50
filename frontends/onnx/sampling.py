"""Operators that read images between their pixels: GridSample, RoiAlign, DeformConv; all are `dlc.sample`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.convolution import add_channels, check_kernel
from dlc.frontends.onnx.indexing import count_up
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor
from dlc.frontends.onnx.windows import one_each

_MOST_POSITIONS = 1 << 24  # along one side of a region
_MODES = {"nearest": "nearest", "bilinear": "linear", "linear": "linear", "bicubic": "cubic", "cubic": "cubic"}


def _wide(c: Context, x: Tensor) -> Tensor:
    """Positions as `dlc.sample` takes them."""
    return x if x.dtype in ("float32", "float64") else c.cast(x, "float32")


def _extents(c: Context, dims: Sequence[Dim], like: Tensor) -> Tensor:
    return c.cast(c.extents(dims), like.dtype)


@converter("GridSample", since=16)
def grid_sample(c: Context, x: Tensor, grid: Tensor) -> Tensor:
    """Positions from -1 to 1, the last spatial dimension first."""
    mode, padding, aligned = c.attr("mode", "linear"), c.attr("padding_mode", "zeros"), c.attr("align_corners", 0)
    if mode not in _MODES or padding not in ("zeros", "border", "reflection"):
        raise ConversionError(f"mode '{mode}' with padding_mode '{padding}'")
    rank = x.rank - 2
    if grid.rank != x.rank:
        raise ConversionError(f"a grid {grid} for {x}")
    c.equal(grid.shape[-1], rank, "the grid's last extent and the number of spatial dimensions")
    back = c.constant(np.arange(rank, dtype=np.int64)[::-1].copy())
    grid = _wide(c, c.emit("take", grid, back, axis=grid.rank - 1))
    sizes = _extents(c, x.shape[2:], grid)
    if aligned:  # -1 and 1 are the centres of the outer pixels
        positions = c.emit("multiply", c.emit("add", grid, 1), c.emit("divide", c.emit("subtract", sizes, 1), 2))
    else:  # their outer edges
        scaled = c.emit("multiply", c.emit("add", grid, 1), sizes)
        positions = c.emit("divide", c.emit("subtract", scaled, 1), 2)
    outside = {"zeros": "zeros", "border": "edge", "reflection": "reflect" if aligned else "symmetric"}[padding]
    return c.emit("dlc.sample", x, positions, mode=_MODES[mode], padding=outside)


# --- regions of interest ---------------------------------------------------------------------------------------------


def _bins(c: Context, begin: Tensor, end: Tensor, bins: int, ratio: int, extent: Dim) -> tuple[Tensor, Tensor]:
    """One dimension of every region: sample positions (regions, bins * ratio) on the image, and which lie on it."""
    size = c.emit("subtract", end, begin)
    if not _half_pixel(c):
        size = c.emit("maximum", size, 1)  # empty regions count as one pixel
    steps = (np.arange(bins)[:, None] + (np.arange(ratio) + 0.5) / ratio).reshape(1, -1) / bins
    places = c.emit("add", begin, c.emit("multiply", size, c.constant(steps.astype(begin.dtype))))
    limit = c.reshape(_extents(c, [extent], begin), ())
    there = c.emit("logical_and", c.emit("greater_equal", places, -1), c.emit("less_equal", places, limit))
    last = c.emit("subtract", limit, 1)
    return c.emit("minimum", c.emit("maximum", places, 0), last), there


def _half_pixel(c: Context) -> bool:
    given = c.attr("coordinate_transformation_mode", "half_pixel" if c.version >= 16 else "output_half_pixel")
    return bool(given == "half_pixel")


def _plane(c: Context, parts: Sequence[Tensor], shape: Sequence[Dim]) -> Tensor:
    """Coordinates, each broadcast to `shape`, as a last dimension."""
    return c.emit("concat", *(c.reshape(c.broadcast(p, shape), (*shape, 1)) for p in parts), axis=len(shape))


def _greatest_corner(c: Context, x: Tensor, lead: Sequence[Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """For mode max: the greatest of the four pixels around each position, each times its weight."""
    count, height, width = rows.shape[0], rows.shape[1], columns.shape[2]
    best: Tensor | None = None
    picks = []
    for places, extent in ((rows, x.shape[-2]), (columns, x.shape[-1])):
        low = c.emit("floor", places)
        last = c.emit("subtract", c.reshape(_extents(c, [extent], places), ()), 1)
        t = c.emit("subtract", places, low)
        picks.append(((low, c.emit("subtract", c.like(1, t), t)), (c.emit("minimum", c.emit("add", low, 1), last), t)))
    for row, row_weight in picks[0]:
        for column, column_weight in picks[1]:
            positions = _plane(c, [*lead, row, column], (count, height, width))
            positions = c.reshape(positions, (1, *positions.shape))
            pixel = c.emit("dlc.sample", x, positions, mode="nearest", padding="edge")
            value = c.emit("multiply", pixel, c.cast(c.emit("multiply", row_weight, column_weight), x.dtype))
            best = value if best is None else c.emit("maximum", best, value)
    assert best is not None
    return best


@converter("RoiAlign", since=10)
def roi_align(c: Context, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """Bins of each region, averaged (or the greatest) over a fixed number of positions in each."""
    ratio, mode = c.attr("sampling_ratio", 0), c.attr("mode", "avg")
    height, width = c.attr("output_height", 1), c.attr("output_width", 1)
    if ratio < 1:
        raise HostError("sampling_ratio 0: the number of positions depends on the regions")
    if x.rank != 4 or rois.rank != 2 or mode not in ("avg", "max"):
        raise ConversionError(f"mode '{mode}' for {x} and regions {rois}")
    if max(height, width) * ratio > _MOST_POSITIONS:
        raise ConversionError(f"{height} x {width} bins of {ratio} x {ratio} positions")
    count = rois.shape[0]
    scaled = c.emit("multiply", _wide(c, rois), c.attr("spatial_scale", 1.0))
    if _half_pixel(c):
        scaled = c.emit("subtract", scaled, 0.5)
    x1, y1, x2, y2 = (c.slice(scaled, 1, i, i + 1) for i in range(4))
    rows, rows_there = _bins(c, y1, y2, height, ratio, x.shape[2])
    columns, columns_there = _bins(c, x1, x2, width, ratio, x.shape[3])
    shape = (count, height * ratio, width * ratio)
    rows, rows_there = (c.reshape(t, (count, shape[1], 1)) for t in (rows, rows_there))
    columns, columns_there = (c.reshape(t, (count, 1, shape[2])) for t in (columns, columns_there))
    lead: list[Tensor] = []
    if x.shape[0] != 1:
        # The image's number is one more coordinate, so that no image is copied for each of its regions.
        x = c.reshape(c.transpose(x, (1, 0, 2, 3)), (1, x.shape[1], x.shape[0], *x.shape[2:]))
        lead = [c.reshape(c.cast(batch, rows.dtype), (count, 1, 1))]
    if mode == "avg":
        positions = _plane(c, [*lead, rows, columns], shape)
        values = c.emit("dlc.sample", x, c.reshape(positions, (1, *positions.shape)), mode="linear", padding="edge")
    else:
        values = _greatest_corner(c, x, lead, rows, columns)
    values = c.emit("where", c.emit("logical_and", rows_there, columns_there), values, c.like(0, values))
    apart = c.reshape(values, (values.shape[1], count, height, ratio, width, ratio))
    pooled = c.reduce("mean" if mode == "avg" else "max", apart, (3, 5), keepdims=False)
    return c.transpose(pooled, (1, 0, 2, 3))


# --- deformable convolution ------------------------------------------------------------------------------------------


@converter("DeformConv", since=19)
def deform_conv(
    c: Context, x: Tensor, w: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A convolution whose window positions are moved by offsets: sampled, then one matrix product a group."""
    kernel, groups, parts = check_kernel(c, w), c.attr("group", 1), c.attr("offset_group", 1)
    rank, taps = len(kernel), int(np.prod(kernel))
    strides, dilations = one_each(c, "strides", rank), one_each(c, "dilations", rank)
    pads = list(c.attr("pads") or [0] * (2 * rank))
    batch, channels, outs = x.shape[0], x.shape[1], offset.shape[2:]
    if x.rank != rank + 2 or offset.rank != rank + 2 or offset.shape[1] != parts * taps * rank:
        raise ConversionError(f"offsets {offset} with {parts} offset groups do not fit {x} and a kernel {kernel}")
    if channels != w.shape[1] * groups or channels % parts or w.shape[0] % groups:
        raise ConversionError(f"activation {x}, weight {w}, {groups} groups and {parts} offset groups do not fit")
    images = c.symbols.product((batch, parts))
    moves = _wide(c, c.reshape(offset, (images, taps, rank, *outs)))
    places = []
    for i, ticks in enumerate(np.indices(kernel).reshape(rank, taps)):
        start = c.constant((ticks * dilations[i] - pads[i]).reshape(-1, *[1] * rank).astype(moves.dtype))
        steps = c.emit("multiply", count_up(c, outs[i], moves.dtype), strides[i])
        steps = c.reshape(steps, [outs[i] if j == i else 1 for j in range(rank)])
        move = c.reshape(c.slice(moves, 2, i, i + 1), (images, taps, *outs))
        places.append(c.emit("add", move, c.emit("add", start, steps)))
    positions = _plane(c, places, (images, taps, *outs))
    apart = c.reshape(x, (images, channels // parts, *x.shape[2:]))
    values = c.emit("dlc.sample", apart, positions, mode="linear", padding="zeros")
    if mask is not None:
        values = c.emit("multiply", values, c.reshape(mask, (images, 1, taps, *outs)))
    area = c.symbols.product(outs)
    columns = c.reshape(values, (batch, groups, channels // groups * taps, area))
    weight = c.reshape(w, (groups, w.shape[0] // groups, w.shape[1] * taps))
    result = c.reshape(c.emit("dlc.matmul", weight, columns, out_dtype=x.dtype), (batch, w.shape[0], *outs))
    return result if bias is None else add_channels(c, result, bias)
