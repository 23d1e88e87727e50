"""Pooling, global pooling and local response normalisation."""

from __future__ import annotations

from typing import Any

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.frontends.onnx.windows import CHANNELS_FIRST, window


def _pool(c: Context, x: Tensor, mode: str, **extra: Any) -> Tensor:
    kernel = c.require("kernel_shape")
    attrs = {**window(c, x, kernel), "ceil_mode": c.attr("ceil_mode", 0), **extra}
    return c.emit("dlc.pool", x, mode=mode, kernel=tuple(kernel), out_dtype=x.dtype, **attrs)


@converter("MaxPool")
def max_pool(c: Context, x: Tensor) -> Tensor:
    """The maximum of each window."""
    if c.wants(1):
        raise ConversionError("the output Indices is not supported")
    return _pool(c, x, "max", count_include_pad=0)


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
