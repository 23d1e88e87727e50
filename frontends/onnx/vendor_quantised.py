"""Quantised operators of the domain com.microsoft, in the integer arithmetic of docs/arithmetic.md.

ONNX Runtime computes additions, products, averages and concatenations of codes in float32 in orders of its own, so
results may be one step apart where a sum is near a tie; integer products with one term are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlc.frontends.onnx.activation import leaky
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.linear import integer_product, product
from dlc.frontends.onnx.quantisation import dynamic_quantize_linear
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.frontends.onnx.vendor_fused import DOMAIN
from dlc.frontends.onnx.windows import window
from dlc.ir.ops.pool import counts


def _zero(c: Context, zero: Tensor | None, codes: Tensor) -> Tensor:
    """An absent zero point is 0."""
    return c.constant(np.zeros((), codes.dtype)) if zero is None else c.reshape(zero, ())


def _number(c: Context, tensor: Tensor, what: str) -> np.float32:
    return np.float32(c.number(tensor, what))


def _requantized(
    c: Context, terms: Sequence[Tensor], zeros: Sequence[int], multipliers: Sequence[Any], y_zero: Tensor
) -> Tensor:
    """The sum of codes or accumulators, each less its zero point times its multiplier, as codes."""
    if not y_zero.dtype.startswith(("int", "uint")):
        raise ConversionError(f"a zero point must be an integer, got {y_zero}")
    info = np.iinfo(y_zero.dtype)
    return c.emit(
        "dlc.requantize",
        *terms,
        *(c.constant(np.asarray(m, np.float32)) for m in multipliers),
        terms=len(terms),
        mode="float",
        term_zero_points=tuple(int(z) for z in zeros),
        zero_point=int(c.number(y_zero, "the output's zero point")),
        lo=int(info.min),
        hi=int(info.max),
        out_dtype=y_zero.dtype,
    )


@converter("QLinearAdd", "QLinearMul", domain=DOMAIN)
def qlinear_binary(
    c: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
) -> Tensor:
    """The sum or the product of two tensors of codes."""
    scales = [_number(c, s, "a scale") for s in (a_scale, b_scale, y_scale)]
    za, zb, zy = _zero(c, a_zero, a), _zero(c, b_zero, b), _zero(c, y_zero, a)
    if c.node.op_type == "QLinearAdd":
        zeros = [c.number(z, "a zero point") for z in (za, zb)]
        return _requantized(c, [a, b], zeros, [scales[0] / scales[2], scales[1] / scales[2]], zy)
    wide = [c.emit("subtract", c.cast(t, "int32"), c.cast(z, "int32")) for t, z in ((a, za), (b, zb))]
    return _requantized(c, [c.emit("multiply", *wide)], [0], [scales[0] * scales[1] / scales[2]], zy)


@converter("QLinearSigmoid", "QLinearLeakyRelu", domain=DOMAIN)
def qlinear_unary(
    c: Context, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """A function of codes: what a table of 256 entries holds."""
    zx, zy = _zero(c, x_zero, x), _zero(c, y_zero, x)
    real = c.emit("dlc.dequantize", x, c.reshape(x_scale, ()), zx, axis=0, out_dtype="float32")
    curved = c.node.op_type == "QLinearSigmoid"
    result = c.emit("sigmoid", real) if curved else leaky(c, real, c.attr("alpha", 0.01))
    return c.emit("dlc.quantize", result, c.reshape(y_scale, ()), zy, axis=0, out_dtype=zy.dtype)


@converter("QLinearGlobalAveragePool", domain=DOMAIN)
def qlinear_global_average_pool(
    c: Context, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """The mean over all spatial dimensions."""
    axes = range(1, x.rank - 1) if c.attr("channels_last", 0) else range(2, x.rank)
    extents = [x.shape[i] for i in axes]
    if not all(isinstance(d, int) for d in extents):
        raise ConversionError(f"a mean over the extents of {x}, which must be known when compiling")
    centred = c.emit("subtract", c.cast(x, "int32"), c.cast(_zero(c, x_zero, x), "int32"))
    total = c.reduce("sum", centred, axes)
    scale = _number(c, x_scale, "the scale") / (np.float32(np.prod(extents)) * _number(c, y_scale, "the scale"))
    return _requantized(c, [total], [0], [scale], _zero(c, y_zero, x))


@converter("QLinearAveragePool", domain=DOMAIN)
def qlinear_average_pool(
    c: Context, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """The mean of each window, over the elements that it really has."""
    last = bool(c.attr("channels_last", 0))
    image = c.transpose(x, (0, x.rank - 1, *range(1, x.rank - 1))) if last else x
    kernel = tuple(c.require("kernel_shape"))
    if not all(isinstance(d, int) for d in image.shape[2:]):
        raise ConversionError(f"the extents of {x} must be known when compiling")
    attrs = {**window(c, image, kernel), "ceil_mode": c.attr("ceil_mode", 0), "kernel": kernel}
    attrs["count_include_pad"] = c.attr("count_include_pad", 0)
    zero = int(c.number(_zero(c, x_zero, x), "the zero point"))
    total = c.emit("dlc.pool", image, mode="sum", out_dtype="int32", x_zero_point=zero, **attrs)
    scale = _number(c, x_scale, "the scale") / (counts(image.shape[2:], attrs) * _number(c, y_scale, "the scale"))
    result = _requantized(c, [total], [0], [scale], _zero(c, y_zero, x))
    return c.transpose(result, (0, *range(2, x.rank), 1)) if last else result


@converter("QLinearConcat", domain=DOMAIN)
def qlinear_concat(c: Context, y_scale: Tensor, y_zero: Tensor, *parts: Tensor) -> Tensor:
    """Codes of several scales, joined in one."""
    if not parts or len(parts) % 3:
        raise ConversionError(f"{len(parts)} inputs behind the output's, they come in threes")
    scale, made = _number(c, y_scale, "the scale"), []
    for x, x_scale, x_zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        own, zero = _number(c, x_scale, "a scale"), c.number(x_zero, "a zero point")
        same = own == scale and zero == c.number(y_zero, "the output's zero point") and x.dtype == y_zero.dtype
        made.append(x if same else _requantized(c, [x], [zero], [own / scale], y_zero))
    return made[0] if len(made) == 1 else c.emit("concat", *made, axis=c.axis(c.require("axis"), made[0].rank))


# --- matrix products -------------------------------------------------------------------------------------------------


def _dequantized(c: Context, total: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None) -> Tensor:
    """An accumulator in float: times both scales, plus a bias."""
    scale = c.emit("multiply", c.reshape(a_scale, ()), b_scale if b_scale.rank else c.reshape(b_scale, ()))
    result = c.emit("multiply", c.cast(total, "float32"), scale)
    return result if bias is None else c.emit("add", result, bias)


@converter("MatMulIntegerToFloat", domain=DOMAIN)
def matmul_integer_to_float(
    c: Context,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A product of integers, its result in float."""
    return _dequantized(c, integer_product(c, a, b, a_zero, b_zero), a_scale, b_scale, bias)


@converter("DynamicQuantizeMatMul", domain=DOMAIN)
def dynamic_quantize_matmul(
    c: Context, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """A float matrix, quantised by its own range, times an integer one."""
    codes, scale, zero = dynamic_quantize_linear(c, a)
    return _dequantized(c, integer_product(c, codes, b, zero, b_zero), scale, b_scale, bias)


@converter("QGemm", domain=DOMAIN)
def qgemm(
    c: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    bias: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
) -> Tensor:
    """alpha * A B plus an int32 bias; float where no output scale is given."""
    a = c.transpose(a, (1, 0)) if c.attr("transA", 0) else a
    b = c.transpose(b, (1, 0)) if c.attr("transB", 0) else b
    total = integer_product(c, a, b, a_zero, b_zero)
    if bias is not None:
        total = c.emit("add", total, bias)
    scale = np.float32(c.attr("alpha", 1.0)) * c.known(a_scale, "the scale") * c.known(b_scale, "the scale")
    if y_scale is None or y_zero is None:
        return c.emit("multiply", c.cast(total, "float32"), c.constant(np.squeeze(scale), "float32"))
    return _requantized(c, [total], [0], [np.squeeze(scale / c.known(y_scale, "the scale"))], c.reshape(y_zero, ()))


def unpacked(array: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Numbers of 2, 4 or 8 bits in bytes, the lowest bits first; `count` of them in each row."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    if array.dtype != np.uint8 or not array.ndim or array.shape[-1] * len(shifts) < count:
        text = f"{array.dtype}{list(array.shape)}"
        raise ConversionError(f"rows of {count} numbers of {bits} bits must be packed in uint8, got {text}")
    apart = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return apart.reshape(*array.shape[:-1], array.shape[-1] * len(shifts))[..., :count]


def in_shape(array: np.ndarray, shape: Sequence[int], what: str) -> np.ndarray:
    """A constant in the shape that the attributes say; a -1 stands for what is left."""
    known = math.prod(d for d in shape if d != -1)
    if known < 1 or array.size % known or (-1 not in shape and array.size != known):
        raise ConversionError(f"{what} of shape {list(array.shape)} cannot be {list(shape)}")
    return array.reshape(shape)


def block_weight(c: Context, codes: np.ndarray, step: np.ndarray, shift: np.ndarray) -> Tensor:
    """(codes - shift) * step as a float32 tensor (width, blocks * block), for codes (width, blocks, block).

    `step` and `shift` are (width, blocks). Small codes stay what the package holds.
    """
    width, blocks, block = codes.shape
    if step.shape != (width, blocks) or shift.shape != (width, blocks):
        raise ConversionError(
            f"scales {list(step.shape)} and zero points {list(shift.shape)} for {width} x {blocks} blocks"
        )
    codes = codes.astype(np.int16)
    if np.all(shift == np.rint(shift)):
        # Codes less their zero points in a byte where they fit: the product can stay with small weights.
        moved = codes - shift.astype(np.int16)[..., None]
        kind = np.int8 if moved.min(initial=0) >= -128 and moved.max(initial=0) <= 127 else np.int16
        rows = c.constant(moved.reshape(width * blocks, block).astype(kind))
        zero = c.constant(np.zeros(width * blocks, kind))
        scale = c.constant(step.reshape(-1).astype(np.float32))
        wide = c.emit("dlc.dequantize", rows, scale, zero, axis=0, out_dtype="float32")
    else:
        wide = c.constant(((codes - shift[..., None]) * step[..., None]).astype(np.float32))
    return c.reshape(wide, (width, blocks * block))


@converter("MatMulNBits", domain=DOMAIN)
def matmul_nbits(
    c: Context,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A float matrix times one of 4 or 8 bits (N, K), which has a scale and a zero point a block of K."""
    depth, width, bits, block = (c.require(name) for name in ("K", "N", "bits", "block_size"))
    if bits not in (4, 8) or groups is not None:
        raise ConversionError(f"weights of {bits} bits, {'with' if groups is not None else 'without'} group indices")
    if min(depth, width, block) < 1:
        raise ConversionError(f"K = {depth}, N = {width} and block_size = {block} must be positive")
    blocks = -(-depth // block)
    codes = unpacked(in_shape(c.known(b, "the weight"), (width, blocks, -1), "a weight"), bits, block)
    if zeros is None:
        shift = np.full((width, blocks), 1 << (bits - 1), np.float64)
    elif zeros.dtype == "uint8":
        shift = unpacked(in_shape(c.known(zeros, "the zero points"), (width, -1), "zero points"), bits, blocks).astype(
            np.float64
        )
    else:
        shift = in_shape(c.known(zeros, "the zero points"), (width, blocks), "zero points").astype(np.float64)
    step = in_shape(c.known(scales, "the scales"), (width, blocks), "scales")
    weight = c.slice(block_weight(c, codes, step, shift), 1, 0, depth)
    result = product(c, a, c.cast(c.transpose(weight, (1, 0)), a.dtype))
    return result if bias is None else c.emit("add", result, bias)
