"""Quantised operators: QuantizeLinear, DequantizeLinear, QLinearConv, QLinearMatMul.

They become the integer operators of the IR; docs/arithmetic.md defines what those compute.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.convolution import integer_conv
from dlc.frontends.onnx.elementwise import cast_to
from dlc.frontends.onnx.linear import integer_product
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor

_CODES = ("int8", "uint8", "int16", "uint16")


def _spread(c: Context, parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A parameter with one value a block of the axis, repeated to one value an element."""
    if parameter.rank != x.rank:
        raise ConversionError(f"a blocked parameter {parameter} for {x}")
    shape = parameter.shape
    apart = c.reshape(parameter, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    wide = c.broadcast(apart, (*shape[: axis + 1], block, *shape[axis + 1 :]))
    whole = c.reshape(wide, (*shape[:axis], c.symbols.product((shape[axis], block)), *shape[axis + 1 :]))
    return c.slice(whole, axis, 0, x.shape[axis])


def _parameters(c: Context, x: Tensor, scale: Tensor, zero: Tensor | None, dtype: str) -> tuple[Tensor, Tensor, int]:
    """Scale and zero point as the IR's operators take them, and the axis."""
    if not scale.is_float:
        raise ConversionError(f"a scale must be of floats, got {scale}")
    axis = c.axis(c.attr("axis", 1), x.rank) if x.rank > 0 and scale.rank > 0 and scale.shape != (1,) else 0
    if zero is None:
        zero = c.broadcast(c.constant(np.zeros((), dtype)), scale.shape)
    if c.attr("block_size", 0):
        scale, zero = (_spread(c, p, x, axis, c.attr("block_size")) for p in (scale, zero))
    elif scale.shape == (1,):
        scale, zero = c.reshape(scale, ()), c.reshape(zero, ())
    return scale, zero, axis


def _along(c: Context, parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A vector along `axis`, shaped to broadcast against x."""
    if parameter.rank != 1:
        return parameter
    return c.reshape(parameter, [parameter.shape[0] if i == axis else 1 for i in range(x.rank)])


@converter("QuantizeLinear", since=10)
def quantize_linear(c: Context, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """saturate(round(x / scale) + zero point)."""
    given = c.attr("output_dtype", 0)
    dtype = element_type(given) if given else zero.dtype if zero is not None else "uint8"
    scale, zero, axis = _parameters(c, x, scale, zero, dtype)
    if dtype in _CODES:
        return c.emit("dlc.quantize", x, scale, zero, axis=axis, out_dtype=dtype)
    # The small types that the integer arithmetic does not know are only storage: plain float operators make them.
    ratio = c.emit("divide", c.cast(x, "float32"), _along(c, c.cast(scale, "float32"), x, axis))
    if dtype.startswith("float"):
        return cast_to(c, ratio, dtype)
    info = ml_dtypes.iinfo(dtype)
    moved = c.emit("add", c.emit("round", ratio), _along(c, c.cast(zero, "float32"), x, axis))
    return c.cast(c.emit("minimum", c.emit("maximum", moved, int(info.min)), int(info.max)), dtype)


@converter("DequantizeLinear", since=10)
def dequantize_linear(c: Context, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero point) * scale."""
    given = c.attr("output_dtype", 0)
    dtype = element_type(given) if given else scale.dtype
    scale, zero, axis = _parameters(c, x, scale, zero, x.dtype)
    if x.dtype.startswith("float"):
        return c.cast(c.emit("multiply", c.cast(x, "float32"), _along(c, c.cast(scale, "float32"), x, axis)), dtype)
    if x.dtype not in (*_CODES, "int32"):  # narrower than a byte: widened, the values are the same
        wide = "uint8" if x.dtype.startswith("uint") else "int8"
        x, zero = c.cast(x, wide), c.cast(zero, wide)
    return c.emit("dlc.dequantize", x, scale, zero, axis=axis, out_dtype=dtype)


@converter("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(c: Context, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes with a scale and zero point from the tensor's own range, which includes 0."""
    axes = tuple(range(x.rank))
    low = c.emit("minimum", c.reduce("min", x, axes, keepdims=False), 0)
    high = c.emit("maximum", c.reduce("max", x, axes, keepdims=False), 0)
    span = c.emit("divide", c.emit("subtract", high, low), 255)
    scale = c.emit("where", c.emit("equal", span, 0), c.like(1, span), span)  # a tensor of zeros
    exact = c.emit("divide", c.emit("negative", low), scale)
    zero = c.cast(c.emit("round", c.emit("minimum", c.emit("maximum", exact, 0), 255)), "uint8")
    return c.emit("dlc.quantize", x, scale, zero, axis=0, out_dtype="uint8"), scale, zero


def _requantized(
    c: Context, total: Tensor, a_scale: Tensor, b_scale: Tensor, y_scale: Tensor, y_zero: Tensor
) -> Tensor:
    """The accumulator in the output's scale; the multiplier is rounded as ONNX Runtime rounds it."""
    product = c.emit("multiply", c.cast(a_scale, "float32"), c.cast(b_scale, "float32"))
    multiplier = c.emit("divide", product, c.reshape(c.cast(y_scale, "float32"), ()))
    info = np.iinfo(y_zero.dtype)
    if y_zero.value is not None and multiplier.value is not None:
        attrs = {"zero_point": int(c.number(y_zero, "the zero point")), "lo": int(info.min), "hi": int(info.max)}
        options = {"terms": 1, "mode": "float", "term_zero_points": (0,), "out_dtype": y_zero.dtype}
        return c.emit("dlc.requantize", total, multiplier, **attrs, **options)
    # Parameters that are known only when running: the same arithmetic in float operators.
    zero = c.cast(c.reshape(y_zero, ()), "float32")
    low, high = (c.emit("subtract", c.constant(np.float32(v)), zero) for v in (info.min, info.max))
    scaled = c.emit("multiply", c.cast(total, "float32"), multiplier)
    rounded = c.emit("round", c.emit("minimum", c.emit("maximum", scaled, low), high))
    return c.cast(c.emit("add", rounded, zero), y_zero.dtype)


def _as_scalar(c: Context, parameter: Tensor) -> Tensor:
    return c.reshape(parameter, ()) if parameter.shape == (1,) else parameter


@converter("QLinearConv", since=10)
def qlinear_conv(
    c: Context,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """A convolution of integers; the weight's scale and zero point may be per output channel."""
    total = integer_conv(c, x, w, x_zero, w_zero)
    if bias is not None:
        total = c.emit("add", total, c.reshape(bias, (bias.shape[0], *[1] * (x.rank - 2))))
    w_scale = _as_scalar(c, w_scale)
    if w_scale.rank == 1:
        w_scale = c.reshape(w_scale, (w_scale.shape[0], *[1] * (x.rank - 2)))
    return _requantized(c, total, _as_scalar(c, x_scale), w_scale, y_scale, y_zero)


@converter("QLinearMatMul", since=10)
def qlinear_matmul(
    c: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """A matrix product of integers; scales may be one a row of A and one a column of B."""
    total = integer_product(c, a, b, a_zero, b_zero)
    a_scale, b_scale = _as_scalar(c, a_scale), _as_scalar(c, b_scale)
    if a_scale.rank == 1:
        a_scale = c.reshape(a_scale, (a_scale.shape[0], 1))
    return _requantized(c, total, a_scale, b_scale, y_scale, y_zero)
