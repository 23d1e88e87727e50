"""Activation functions, as short compositions of elementwise operators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor

_F = TypeVar("_F", bound=Callable[..., Tensor])


def widened(function: _F) -> _F:
    """Compute a composition on 16-bit floats in float32: rounding after every step would add up."""

    @functools.wraps(function)
    def convert(c: Context, x: Tensor, *rest: Tensor) -> Tensor:
        if x.dtype not in ("float16", "bfloat16"):
            return function(c, x, *rest)
        return c.cast(function(c, *(c.cast(t, "float32") for t in (x, *rest))), x.dtype)

    return convert  # type: ignore[return-value]


def _positive_or(c: Context, x: Tensor, negative: Tensor) -> Tensor:
    """x where x >= 0, `negative` elsewhere."""
    return c.emit("where", c.emit("less", x, 0), negative, x)


def leaky(c: Context, x: Tensor, alpha: float) -> Tensor:
    """alpha * x below zero."""
    return _positive_or(c, x, c.emit("multiply", x, alpha))


@converter("LeakyRelu")
def leaky_relu(c: Context, x: Tensor) -> Tensor:
    """alpha * x below zero."""
    return leaky(c, x, c.attr("alpha", 0.01))


@converter("PRelu")
def prelu_channels(c: Context, x: Tensor, slope: Tensor) -> Tensor:
    """Up to opset 6 a vector of slopes is one a channel, and so is one slope for all."""
    if slope.rank == 1:
        slope = c.reshape(slope, (slope.shape[0], *[1] * max(x.rank - 2, 0)))
    return prelu(c, x, slope)


@converter("PRelu", since=7)
def prelu(c: Context, x: Tensor, slope: Tensor) -> Tensor:
    """slope * x below zero; the slope broadcasts to x."""
    return _positive_or(c, x, c.emit("multiply", x, slope))


def exponential(c: Context, x: Tensor, alpha: float, inner: float = 1.0) -> Tensor:
    """alpha * (exp(x / inner) - 1) below zero."""
    # exp of the negative part alone, so that large positive inputs do not overflow on the way to being dropped.
    low = c.emit("minimum", x, 0)
    low = low if inner == 1.0 else c.emit("multiply", low, 1 / inner)
    rise = c.emit("subtract", c.emit("exp", low), 1)
    return _positive_or(c, x, rise if alpha == 1.0 else c.emit("multiply", rise, alpha))


@converter("Elu")
@widened
def elu(c: Context, x: Tensor) -> Tensor:
    """alpha * (exp(x) - 1) below zero."""
    return exponential(c, x, c.attr("alpha", 1.0))


@converter("Celu", since=12)
@widened
def celu(c: Context, x: Tensor) -> Tensor:
    """alpha * (exp(x / alpha) - 1) below zero."""
    alpha = c.attr("alpha", 1.0)
    if alpha == 0:
        raise ConversionError("attribute 'alpha' is 0, by which the operator divides")
    return exponential(c, x, alpha, alpha)


@converter("Selu")
@widened
def selu(c: Context, x: Tensor) -> Tensor:
    """A scaled Elu."""
    alpha, gamma = c.attr("alpha", 1.6732632423543772), c.attr("gamma", 1.0507009873554805)
    return c.emit("multiply", exponential(c, x, alpha), gamma)


@converter("Gelu", since=20)
@widened
def gelu(c: Context, x: Tensor) -> Tensor:
    """0.5 * x * (1 + erf(x / sqrt 2)), or its approximation by tanh."""
    if c.attr("approximate", "none") == "tanh":
        cube = c.emit("multiply", c.emit("multiply", x, x), x)
        inner = c.emit("add", x, c.emit("multiply", cube, 0.044715))
        curve = c.emit("tanh", c.emit("multiply", inner, math.sqrt(2 / math.pi)))
    else:
        curve = c.emit("erf", c.emit("multiply", x, math.sqrt(0.5)))
    return c.emit("multiply", c.emit("multiply", x, 0.5), c.emit("add", curve, 1))


def clipped_line(c: Context, x: Tensor, alpha: float, beta: float) -> Tensor:
    """max(0, min(1, alpha * x + beta))."""
    line = c.emit("add", c.emit("multiply", x, alpha), beta)
    return c.emit("minimum", c.emit("maximum", line, 0), 1)


@converter("HardSigmoid")
@widened
def hard_sigmoid(c: Context, x: Tensor) -> Tensor:
    """max(0, min(1, alpha * x + beta))."""
    return clipped_line(c, x, c.attr("alpha", 0.2), c.attr("beta", 0.5))


@converter("HardSwish", since=14)
@widened
def hard_swish(c: Context, x: Tensor) -> Tensor:
    """x * max(0, min(1, x / 6 + 1/2))."""
    return c.emit("multiply", x, clipped_line(c, x, 1 / 6, 0.5))


@converter("Swish", since=24)
@widened
def swish(c: Context, x: Tensor) -> Tensor:
    """x * sigmoid(alpha * x)."""
    alpha = c.attr("alpha", 1.0)
    inner = x if alpha == 1.0 else c.emit("multiply", x, alpha)
    return c.emit("multiply", x, c.emit("sigmoid", inner))


def soft_positive(c: Context, x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    # max(x, 0) + log(1 + exp(-|x|)): no overflow for large x.
    tail = c.emit("log", c.emit("add", c.emit("exp", c.emit("negative", c.emit("abs", x))), 1))
    return c.emit("add", c.emit("nn.relu", x), tail)


@converter("Softplus")
@widened
def softplus(c: Context, x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return soft_positive(c, x)


@converter("Mish", since=18)
@widened
def mish(c: Context, x: Tensor) -> Tensor:
    """x * tanh(softplus(x))."""
    return c.emit("multiply", x, c.emit("tanh", soft_positive(c, x)))


@converter("Softsign")
@widened
def softsign(c: Context, x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return c.emit("divide", x, c.emit("add", c.emit("abs", x), 1))


def above(c: Context, x: Tensor, alpha: float) -> Tensor:
    """x above alpha, else 0."""
    return c.emit("where", c.emit("greater", x, alpha), x, c.like(0, x))


@converter("ThresholdedRelu", since=10)
def thresholded_relu(c: Context, x: Tensor) -> Tensor:
    """x above alpha, else 0."""
    return above(c, x, c.attr("alpha", 1.0))


@converter("Shrink", since=9)
def shrink(c: Context, x: Tensor) -> Tensor:
    """x moved towards zero by bias outside [-lambd, lambd], else 0."""
    bias, lambd = c.attr("bias", 0.0), c.attr("lambd", 0.5)
    wide = x if x.is_float else c.cast(x, "float32")
    low = c.emit("where", c.emit("less", wide, -lambd), c.emit("add", wide, bias), c.like(0, wide))
    result = c.emit("where", c.emit("greater", wide, lambd), c.emit("subtract", wide, bias), low)
    return c.cast(result, x.dtype)


# --- softmax family --------------------------------------------------------------------------------------------------


def _over_rows(c: Context, op: str, x: Tensor) -> Tensor:
    """Before opset 13: over all the dimensions from `axis` on, as if they were one."""
    axis = c.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    if axis == x.rank - 1:
        return _along(c, op, x, axis)
    rows = c.reshape(x, (c.symbols.product(x.shape[:axis]), c.symbols.product(x.shape[axis:])))
    return c.reshape(_along(c, op, rows, 1), x.shape)


def _along(c: Context, op: str, x: Tensor, axis: int) -> Tensor:
    if op == "hardmax":
        best = c.emit("argmax", x, axis=axis, keepdims=1)
        extent = x.shape[axis]
        if not isinstance(extent, int):
            extent = int(c.ints(c.extents([extent]), "the extent of Hardmax's axis")[0])
        counting = np.arange(extent, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(x.rank)])
        return c.cast(c.emit("equal", best, c.constant(counting)), x.dtype)
    return c.emit(op, x, axis=axis)


_SOFTMAX = {"Softmax": "nn.softmax", "LogSoftmax": "nn.log_softmax", "Hardmax": "hardmax"}


@converter(*_SOFTMAX)
def softmax_rows(c: Context, x: Tensor) -> Tensor:
    """Up to opset 12."""
    return _over_rows(c, _SOFTMAX[c.node.op_type], x)


@converter(*_SOFTMAX, since=13)
def softmax(c: Context, x: Tensor) -> Tensor:
    """From opset 13: along one axis."""
    return _along(c, _SOFTMAX[c.node.op_type], x, c.axis(c.attr("axis", -1), x.rank))
