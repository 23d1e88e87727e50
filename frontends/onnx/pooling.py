"""Pooling, global pooling and local response normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor
from dlc.frontends.onnx.windows import CHANNELS_FIRST, window
from dlc.ir.ops.windows import output_extents


def _pool(c: Context, x: Tensor, mode: str, **extra: Any) -> Tensor:
    kernel = c.require("kernel_shape")
    attrs = {**window(c, x, kernel), "ceil_mode": c.attr("ceil_mode", 0), **extra}
    return c.emit("dlc.pool", x, mode=mode, kernel=tuple(kernel), out_dtype=x.dtype, **attrs)


def _max_places(c: Context, x: Tensor) -> Tensor:
    """Where each window's first maximum lies in the flattened tensor: the windows written out, then argmax."""
    kernel = list(c.require("kernel_shape"))
    attrs, rank = window(c, x, kernel), len(kernel)
    if not x.static:
        raise HostError(f"the output Indices needs known extents, not {x}")
    attrs["ceil_mode"] = c.attr("ceil_mode", 0)
    extents, pads, strides, dilations = x.shape[2:], attrs["pads"], attrs["strides"], attrs["dilations"]
    outs = output_extents(extents, kernel, attrs)
    # Taps and windows by row: positions on the image, -1 outside.
    ticks, starts = np.indices(kernel).reshape(rank, 1, -1), np.indices(outs).reshape(rank, -1, 1)
    spots = [ticks[i] * dilations[i] + starts[i] * strides[i] - pads[i] for i in range(rank)]
    inside = np.all([(s >= 0) & (s < e) for s, e in zip(spots, extents, strict=True)], axis=0)
    column_major = bool(c.attr("storage_order", 0))
    places, order = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.int64)
    for i in range(rank):
        places = places * extents[i] + np.clip(spots[i], 0, extents[i] - 1)
    for i in reversed(range(rank)) if column_major else range(rank):
        order = order * extents[i] + spots[i]
    area, planes = int(np.prod(extents)), x.shape[0] * x.shape[1]
    values = c.emit("take", c.reshape(x, (planes, area)), c.constant(places), axis=1)
    lowest = -np.inf if x.is_float else int(np.iinfo(x.dtype).min)
    best = c.emit("argmax", c.emit("where", c.constant(inside), values, c.like(lowest, x)), axis=2, keepdims=1)
    whole = c.broadcast(c.constant(order[None]), (planes, *order.shape))
    found = c.reshape(c.emit("gather_elements", whole, best, axis=2), (planes, order.shape[0]))
    bases = c.constant((np.arange(planes, dtype=np.int64) * area).reshape(planes, 1))
    return c.reshape(c.emit("add", found, bases), (*x.shape[:2], *outs))


@converter("MaxPool")
def max_pool(c: Context, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The maximum of each window, and where it lies."""
    return _pool(c, x, "max", count_include_pad=0), _max_places(c, x) if c.wants(1) else None


@converter("AveragePool")
def average_pool(c: Context, x: Tensor) -> Tensor:
    """The mean of each window."""
    return _pool(c, x, "average", count_include_pad=c.attr("count_include_pad", 0))


def _power(c: Context, x: Tensor, p: int) -> Tensor:
    """|x| ** p."""
    if p == 2:
        return c.emit("multiply", x, x)
    size = c.emit("abs", x)
    return size if p == 1 else c.emit("power", size, p)


def _root(c: Context, x: Tensor, p: int) -> Tensor:
    if p == 2:
        return c.emit("sqrt", x)
    return x if p == 1 else c.emit("power", x, 1 / p)


@converter("LpPool")
def lp_pool(c: Context, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    p = c.attr("p", 2)
    return _root(c, _pool(c, _power(c, x, p), "sum", count_include_pad=0), p)


def _global(c: Context, x: Tensor, mode: str) -> Tensor:
    if x.rank < 3:
        raise ConversionError(f"global pooling needs 3 dimensions or more, got {x}")
    return c.reduce(mode, x, range(2, x.rank))


@converter("GlobalAveragePool")
def global_average_pool(c: Context, x: Tensor) -> Tensor:
    """The mean over all spatial dimensions."""
    return _global(c, x, "mean")


@converter("GlobalMaxPool")
def global_max_pool(c: Context, x: Tensor) -> Tensor:
    """The maximum over all spatial dimensions."""
    return _global(c, x, "max")


@converter("GlobalLpPool")
def global_lp_pool(c: Context, x: Tensor) -> Tensor:
    """The p-norm over all spatial dimensions."""
    p = c.attr("p", 2)
    return _root(c, _global(c, _power(c, x, p), "sum"), p)


@converter("LRN")
def lrn(c: Context, x: Tensor) -> Tensor:
    """Each element divided by a power of the energy of its neighbours in the channel dimension."""
    size, bias = c.require("size"), c.attr("bias", 1.0)
    alpha, beta = c.attr("alpha", 0.0001), c.attr("beta", 0.75)
    # The channels as a spatial dimension of a window `size` x 1.
    inner = c.symbols.product(x.shape[2:])
    square = c.reshape(c.emit("multiply", x, x), (x.shape[0], 1, x.shape[1], inner))
    before = (size - 1) // 2
    energy = c.emit(
        "dlc.pool",
        square,
        mode="sum",
        kernel=(size, 1),
        strides=(1, 1),
        pads=(before, 0, size - 1 - before, 0),
        dilations=(1, 1),
        ceil_mode=0,
        count_include_pad=0,
        layout=CHANNELS_FIRST,
        out_dtype=x.dtype,
    )
    scale = c.emit("add", c.emit("multiply", c.reshape(energy, x.shape), alpha / size), bias)
    return c.emit("divide", x, c.emit("power", scale, beta))
