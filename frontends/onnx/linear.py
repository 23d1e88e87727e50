"""MatMul, Gemm and the integer matrix product."""

from __future__ import annotations

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.convolution import split_zero, subtract_zeros, without_zero
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.ir.convert import infer_type


def product(c: Context, a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in the operands' type."""
    if a.dtype != b.dtype:
        raise ConversionError(f"operands of different types: {a} and {b}")
    check_inner(c, a, b)
    if a.rank and isinstance(a.shape[-1], int) and a.shape[-1] == 0:
        return _nothing(c, a, b, a.dtype)
    return c.emit("dlc.matmul", a, b, out_dtype=a.dtype)


def _nothing(c: Context, a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """A product whose inner dimension is empty: zeros."""
    shape, _ = infer_type("dlc.matmul", [(a.shape, a.dtype), (b.shape, b.dtype)], {"out_dtype": dtype})
    return c.broadcast(c.constant(np.zeros((), dtype)), shape)


def check_inner(c: Context, a: Tensor, b: Tensor) -> None:
    """Make symbolic inner dimensions one extent."""
    if a.rank and b.rank:
        inner = b.shape[0] if b.rank == 1 else b.shape[-2]
        if not (isinstance(a.shape[-1], int) and isinstance(inner, int)):
            c.equal(a.shape[-1], inner, "the inner dimensions")


@converter("MatMul")
def matmul(c: Context, a: Tensor, b: Tensor) -> Tensor:
    """numpy's matmul."""
    return product(c, a, b)


@converter("Gemm")
def gemm(c: Context, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """alpha * A B + beta * C; constants are transposed and scaled here."""
    if a.rank != 2 or b.rank != 2:
        raise ConversionError(f"Gemm needs matrices, got {a} and {b}")
    if c.attr("transA", 0):
        a = c.transpose(a, (1, 0))
    if c.attr("transB", 0):
        b = c.transpose(b, (1, 0))
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    if alpha != 1.0 and b.value is not None:
        b = c.emit("multiply", b, alpha)
    elif alpha != 1.0 and a.value is not None:
        a = c.emit("multiply", a, alpha)
    result = product(c, a, b)
    if alpha != 1.0 and a.value is None and b.value is None:
        result = c.emit("multiply", result, alpha)
    if bias is None or beta == 0.0:
        return result
    result = c.emit("add", result, bias if beta == 1.0 else c.emit("multiply", bias, beta))
    if result.rank != 2:
        raise ConversionError(f"the bias {bias} does not broadcast to a matrix")
    return result


def integer_product(c: Context, a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """The int32 accumulator of a product of integers; zero points are scalars, or one a row of A, a column of B."""
    check_inner(c, a, b)
    b, b_number = _weight(c, b, b_zero)
    if b.value is not None and b.dtype == "uint8":
        # sum a (b - z) = sum a (b - 128) + (128 - z) sum a: kernels multiply by int8.
        total = integer_product(c, a, c.constant((b.value.astype(np.int16) - 128).astype(np.int8)), a_zero, None)
        sums = c.emit("sum", _without_zero_wide(c, a, a_zero), axes=(a.rank - 1,), keepdims=b.rank > 1)
        return c.emit("add", total, c.emit("multiply", sums, 128 - b_number))
    if (
        a_zero is not None
        and a_zero.value is None
        and a_zero.shape in ((), (1,))
        and b.value is not None
        and b.rank > 1
    ):
        # sum (a - z) b = sum a b - z sum b: the product stays one of bytes. Both sums may wrap around, their
        # difference is right.
        total = c.emit("dlc.matmul", a, b, out_dtype="int32", a_zero_point=0, b_zero_point=b_number)
        columns = (b.value.astype(np.int32) - np.int32(b_number)).sum(-2, keepdims=a.rank > 1, dtype=np.int32)
        return subtract_zeros(c, total, a_zero, c.constant(columns))
    if a_zero is not None and a_zero.rank == 1 and a_zero.shape[0] != 1:
        a, a_number = without_zero(c, a, c.reshape(a_zero, (*a_zero.shape, 1))), 0
    else:
        a, a_number = split_zero(c, a, a_zero)
    return c.emit("dlc.matmul", a, b, out_dtype="int32", a_zero_point=a_number, b_zero_point=b_number)


def _without_zero_wide(c: Context, a: Tensor, zero: Tensor | None) -> Tensor:
    """An activation less its zero point, a scalar or one a row, as int32."""
    wide = c.cast(a, "int32")
    if zero is None:
        return wide
    rows = zero.rank == 1 and zero.shape[0] != 1
    return c.emit("subtract", wide, c.cast(c.reshape(zero, (*zero.shape, 1) if rows else ()), "int32"))


def _weight(c: Context, b: Tensor, zero: Tensor | None) -> tuple[Tensor, int]:
    """A weight and its zero point as an attribute, 0 where the codes less their zero points are the weight."""
    if zero is not None and zero.rank > 0 and (b.value is not None or zero.shape != (1,)):
        return without_zero(c, b, zero, axis=b.rank - 1), 0
    if zero is not None and b.value is not None and zero.value is not None:
        moved = without_zero(c, b, zero)
        if moved.dtype == "int8":
            return moved, 0
    return split_zero(c, b, zero)


@converter("MatMulInteger", since=10)
def matmul_integer(
    c: Context, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """Integers in, int32 out."""
    return integer_product(c, a, b, a_zero, b_zero)


@converter("Det", since=11)
def det(c: Context, x: Tensor) -> Tensor:
    """The determinants of square matrices."""
    return c.emit("dlc.determinant", x)
