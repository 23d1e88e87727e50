"""Operators that write at computed places: Col2Im, MaxUnpool, TensorScatter; all are `dlc.scatter_rows`."""

from __future__ import annotations

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.indexing import count_up
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor
from dlc.frontends.onnx.windows import one_each
from dlc.ir.ops.windows import output_extents


def tap_places(
    extents: list[int], kernel: list[int], outs: list[int], strides: list[int], dilations: list[int]
) -> np.ndarray:
    """Where each tap of each window lies in the flattened, padded plane: (taps, windows) int64."""
    places = np.zeros((int(np.prod(kernel)), int(np.prod(outs))), np.int64)
    ticks, starts = np.indices(kernel).reshape(len(kernel), -1), np.indices(outs).reshape(len(outs), -1)
    for i, extent in enumerate(extents):
        places = places * extent + ticks[i][:, None] * dilations[i] + starts[i][None, :] * strides[i]
    return places


@converter("Col2Im", since=18)
def col2im(c: Context, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """The columns of windows added up where the windows were."""
    extents, kernel = list(c.ints(image, "the input 'image_shape'")), list(c.ints(block, "the input 'block_shape'"))
    rank, taps = len(kernel), int(np.prod(kernel))
    strides, dilations = one_each(c, "strides", rank), one_each(c, "dilations", rank)
    pads = one_each(c, "pads", 2 * rank, 0)
    if len(extents) != rank or min(extents, default=0) < 1 or min(kernel, default=0) < 1:
        raise ConversionError(f"an image {extents} and windows {kernel}")
    try:
        outs = output_extents(extents, kernel, {"strides": strides, "pads": pads, "dilations": dilations})
    except ValueError as error:
        raise ConversionError(str(error)) from error
    windows = int(np.prod(outs))
    if x.rank != 3 or not isinstance(x.shape[1], int) or x.shape[1] % taps or x.shape[2] != windows:
        raise ConversionError(f"columns {x} do not fit an image {extents} and windows {kernel}")
    batch, channels = x.shape[0], x.shape[1] // taps
    planes = c.symbols.product((batch, channels))
    padded = [e + pads[i] + pads[rank + i] for i, e in enumerate(extents)]
    places = c.constant(tap_places(padded, kernel, outs, strides, dilations).reshape(-1))
    rows = c.transpose(c.reshape(x, (batch, channels, taps, windows)), (2, 3, 0, 1))
    rows = c.reshape(rows, (taps * windows, planes))
    empty = c.broadcast(c.like(0, x), (int(np.prod(padded)), planes))
    added = c.emit("dlc.scatter_rows", empty, places, rows, reduction="add")
    plane = c.reshape(added, (*padded, batch, channels))
    for i, extent in enumerate(extents):
        plane = c.slice(plane, i, pads[i], pads[i] + extent)
    return c.transpose(plane, (rank, rank + 1, *range(rank)))


@converter("MaxUnpool", since=9)
def max_unpool(c: Context, x: Tensor, indices: Tensor, shape: Tensor | None = None) -> Tensor:
    """Each maximum back at its place in the flattened tensor, zero elsewhere."""
    kernel = c.require("kernel_shape")
    rank = len(kernel)
    strides, pads = one_each(c, "strides", rank), one_each(c, "pads", 2 * rank, 0)
    if x.rank != rank + 2:
        raise ConversionError(f"a window over {rank} spatial dimensions on {x}")
    extents = [(d - 1) * strides[i] - pads[i] - pads[rank + i] + kernel[i] for i, d in enumerate(x.shape[2:])]
    inferred = [c.symbols.simplify(d) for d in (*x.shape[:2], *extents)]
    count = c.symbols.product(x.shape)
    empty = c.broadcast(c.like(0, x), (c.symbols.product(inferred),))
    places = c.reshape(c.cast(indices, "int64"), (count,))
    result = c.emit("dlc.scatter_rows", empty, places, c.reshape(x, (count,)), reduction="none")
    result = c.reshape(result, inferred)
    if shape is None:
        return result
    widths = [0] * (2 * x.rank)
    for axis, wanted in enumerate(c.ints(shape, "the input 'output_shape'")):
        extent = inferred[axis]
        if not isinstance(extent, int):
            raise HostError(f"'output_shape' needs a known extent, not {extent}")
        if wanted < extent:
            raise ConversionError(f"'output_shape' {wanted} is smaller than the unpooled extent {extent}")
        widths[2 * axis + 1] = wanted - extent
    return c.emit("nn.pad", result, pad_width=tuple(widths), mode="constant", value=0.0) if any(widths) else result


@converter("TensorScatter", since=24)
def tensor_scatter(c: Context, cache: Tensor, update: Tensor, begins: Tensor | None = None) -> Tensor:
    """A cache with new steps written from a position on, which each sequence of the batch has for itself."""
    axis, mode = c.axis(c.attr("axis", -2), cache.rank), c.attr("mode", "linear")
    if mode not in ("linear", "circular") or axis == 0 or update.rank != cache.rank:
        raise ConversionError(f"mode '{mode}' along axis {axis} of {cache} with {update}")
    extent, steps, inner = cache.shape[axis], update.shape[axis], cache.shape[axis + 1 :]
    lead, batch = c.symbols.product(cache.shape[1:axis]), cache.shape[0]
    places = c.reshape(count_up(c, steps), (1, 1, steps))
    if begins is not None:
        places = c.emit("add", places, c.reshape(c.cast(begins, "int64"), (batch, 1, 1)))
    size = c.reshape(c.extents([extent]), ())
    if mode == "circular":
        places = c.emit("floor_mod", places, size)
    sequences = c.reshape(count_up(c, c.symbols.product((batch, lead))), (batch, lead, 1))
    places = c.emit("add", c.emit("multiply", sequences, size), places)
    flat = c.reshape(cache, (c.symbols.product((batch, lead, extent)), *inner))
    count = c.symbols.product((batch, lead, steps))
    rows = c.reshape(update, (count, *inner))
    return c.reshape(c.emit("dlc.scatter_rows", flat, c.reshape(places, (count,)), rows, reduction="none"), cache.shape)
