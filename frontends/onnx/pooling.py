"""Pooling, global pooling and local response normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.frontends.onnx.activation import widened
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.indexing import count_up
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor
from dlc.frontends.onnx.windows import CHANNELS_FIRST, window
from dlc.ir.ops.windows import output_extents


def _pool(c: Context, x: Tensor, mode: str, **extra: Any) -> Tensor:
    kernel = c.require("kernel_shape")
    attrs = {**window(c, x, kernel), "ceil_mode": c.attr("ceil_mode", 0), **extra}
    return c.emit("dlc.pool", x, mode=mode, kernel=tuple(kernel), out_dtype=x.dtype, **attrs)


def _spots(c: Context, outs: Sequence[Dim], kernel: Sequence[int], attrs: Mapping[str, Any]) -> list[Tensor]:
    """For each spatial dimension the positions that windows read, broadcasting to (outs..., kernel...)."""
    rank, spots = len(kernel), []
    for i, out in enumerate(outs):
        starts = c.reshape(count_up(c, out), [out if j == i else 1 for j in range(2 * rank)])
        taps = np.arange(kernel[i]) * attrs["dilations"][i] - attrs["pads"][i]
        taps = taps.reshape([kernel[i] if j == rank + i else 1 for j in range(2 * rank)])
        spots.append(c.emit("add", c.emit("multiply", starts, attrs["strides"][i]), c.constant(taps)))
    return spots


def _max_places(c: Context, x: Tensor) -> Tensor:
    """Where each window's first maximum lies in the flattened tensor: the windows written out, then argmax."""
    kernel = list(c.require("kernel_shape"))
    attrs = {**window(c, x, kernel), "ceil_mode": c.attr("ceil_mode", 0)}
    extents, outs = x.shape[2:], output_extents(x.shape[2:], kernel, attrs)
    area, planes, windows = (c.symbols.product(dims) for dims in (extents, x.shape[:2], outs))
    taps = int(np.prod(kernel))

    def whole(tensor: Tensor) -> Tensor:
        return c.reshape(c.broadcast(tensor, (*outs, *kernel)), (windows, taps))

    def number(dim: Dim) -> Tensor:
        return c.reshape(c.extents([dim]), ())

    spots = _spots(c, outs, kernel, attrs)
    inside, place, order = (c.constant(np.asarray(v)) for v in (True, 0, 0))
    column_major = bool(c.attr("storage_order", 0))
    for i, spot in enumerate(spots):
        last = number(c.symbols.simplify(extents[i] - 1))
        within = c.emit("logical_and", c.emit("greater_equal", spot, 0), c.emit("less_equal", spot, last))
        inside = c.emit("logical_and", inside, within)
        spot = c.emit("minimum", c.emit("maximum", spot, 0), last)
        place = c.emit("add", place, c.emit("multiply", spot, number(c.symbols.product(extents[i + 1 :]))))
        step = c.symbols.product(extents[:i] if column_major else extents[i + 1 :])
        order = c.emit("add", order, c.emit("multiply", spot, number(step)))
    values = c.emit("take", c.reshape(x, (planes, area)), whole(place), axis=1)
    lowest = -np.inf if x.is_float else int(np.iinfo(x.dtype).min)
    best = c.emit("argmax", c.emit("where", whole(inside), values, c.like(lowest, x)), axis=2, keepdims=1)
    every = c.broadcast(c.reshape(whole(order), (1, windows, taps)), (planes, windows, taps))
    found = c.reshape(c.emit("gather_elements", every, best, axis=2), (planes, windows))
    bases = c.reshape(c.emit("multiply", count_up(c, planes), number(area)), (planes, 1))
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
@widened
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
