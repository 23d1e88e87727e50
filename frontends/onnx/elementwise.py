"""Unary, binary and variadic elementwise operators, comparison, logic, bits, casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import ml_dtypes
import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor

_UNARY = {
    "Abs": "abs", "Neg": "negative", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Sign": "sign", "Sigmoid": "sigmoid", "Erf": "erf", "IsNaN": "isnan", "Not": "logical_not",
    "BitwiseNot": "bitwise_not", "Relu": "nn.relu",
}  # fmt: skip

_BINARY = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "And": "logical_and",
    "Or": "logical_or", "Xor": "logical_xor", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}  # fmt: skip


def _unary(op: str) -> Callable[[Context, Tensor], Tensor]:
    return lambda c, x: c.emit(op, x)


def _binary(op: str) -> Callable[[Context, Tensor, Tensor], Tensor]:
    return lambda c, a, b: c.emit(op, a, b)


for _name, _op in _UNARY.items():
    converter(_name)(_unary(_op))
for _name, _op in _BINARY.items():
    converter(_name, since=7)(_binary(_op))


def _old_binary(op: str) -> Callable[[Context, Tensor, Tensor], Tensor]:
    def convert(c: Context, a: Tensor, b: Tensor) -> Tensor:
        if c.attr("broadcast", 0) and "axis" in c.node.attrs:
            # b's dimensions are a's from this axis on, not its last ones.
            after = a.rank - c.axis(c.attr("axis"), a.rank) - b.rank
            b = c.reshape(b, (*b.shape, *[1] * max(after, 0)))
        return c.emit(op, a, b)

    return convert


for _name in ("Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater", "And", "Or", "Xor"):
    converter(_name)(_old_binary(_BINARY[_name]))
converter("Pow")(_old_binary("power"))


def _variadic(op: str) -> Callable[..., Tensor]:
    def convert(c: Context, *inputs: Tensor) -> Tensor:
        return reduce(lambda a, b: c.emit(op, a, b), inputs)

    return convert


converter("Max")(_variadic("maximum"))
converter("Min")(_variadic("minimum"))
converter("Sum")(_variadic("add"))


@converter("Mean")
def mean(c: Context, *inputs: Tensor) -> Tensor:
    """The mean of tensors, elementwise."""
    total = _variadic("add")(c, *inputs)
    return c.emit("divide", total, len(inputs)) if len(inputs) > 1 else total


@converter("Reciprocal")
def reciprocal(c: Context, x: Tensor) -> Tensor:
    """1 / x."""
    return c.emit("divide", c.like(1, x), x)


@converter("Pow", since=7)
def power(c: Context, x: Tensor, exponent: Tensor) -> Tensor:
    """The result has the base's type; an integer base with a float exponent is computed in float."""
    if x.dtype == exponent.dtype:
        return c.emit("power", x, exponent)
    if x.is_float:
        return c.emit("power", x, c.cast(exponent, x.dtype))
    if exponent.is_float:
        return c.cast(c.emit("power", c.cast(x, exponent.dtype), exponent), x.dtype)
    return c.emit("power", x, c.cast(exponent, x.dtype))


@converter("Mod", since=10)
def mod(c: Context, a: Tensor, b: Tensor) -> Tensor:
    """fmod=1: the sign of the dividend (C); else that of the divisor (Python)."""
    return c.emit("mod" if c.attr("fmod", 0) else "floor_mod", a, b)


@converter("BitShift", since=11)
def bit_shift(c: Context, x: Tensor, count: Tensor) -> Tensor:
    """Shift by elements."""
    return c.emit("left_shift" if c.require("direction") == "LEFT" else "right_shift", x, count)


@converter("IsInf", since=10)
def is_inf(c: Context, x: Tensor) -> Tensor:
    """Infinity of the signs that the attributes ask for."""
    negative, positive = c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if negative and positive:
        return c.emit("isinf", x)
    if not negative and not positive:
        return c.emit("logical_and", c.emit("isinf", x), c.constant(False))
    return c.emit("equal", x, np.inf if positive else -np.inf)


@converter("Clip")
def clip_attributes(c: Context, x: Tensor) -> Tensor:
    """Bounds as attributes (up to opset 10)."""
    low, high = c.attr("min"), c.attr("max")
    bounds = [None if v is None else c.like(v, x) for v in (low, high)]
    return clip_inputs(c, x, *bounds)


@converter("Clip", since=11)
def clip_inputs(c: Context, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds as inputs."""
    if low is not None:
        x = c.emit("maximum", x, low)
    return x if high is None else c.emit("minimum", x, high)


@converter("Where", since=9)
def where(c: Context, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose by elements."""
    return c.emit("where", condition, a, b)


# --- casts -----------------------------------------------------------------------------------------------------------


_EXPONENT = "float8_e8m0fnu"


def _saturated(c: Context, x: Tensor, dtype: str) -> Tensor:
    """`x` clamped to the finite range of a small float type, which has no room for infinity or rounds to NaN."""
    limit = float(ml_dtypes.finfo(dtype).max)
    return c.emit("minimum", c.emit("maximum", x, -limit), limit)


def _to_exponent(c: Context, x: Tensor) -> Tensor:
    """A cast to float8_e8m0, which is an exponent alone, by the bits of float32; negative numbers lose their sign."""
    bits = c.emit("dlc.bitcast", c.cast(x, "float32"), dtype="int32")
    exponent = c.emit("bitwise_and", c.emit("right_shift", bits, 23), 0xFF)
    fraction = c.emit("bitwise_and", bits, 0x7FFFFF)
    mode, saturate = c.attr("round_mode", "up"), c.attr("saturate", 1)
    if mode not in ("up", "down", "nearest"):
        raise ConversionError(f"attribute 'round_mode' is '{mode}'")
    code = exponent
    if mode != "down":
        # Above which fraction a number goes up; with exponent 0, 2^-127 itself has the fraction of a half.
        usual, least = (0, 0x400000) if mode == "up" else (0x3FFFFF, 0x5FFFFF)
        limit = c.emit("where", c.emit("equal", exponent, 0), c.like(least, bits), c.like(usual, bits))
        above = c.emit("greater", fraction, limit)
        code = c.emit("add", exponent, c.cast(above, "int32"))
    if saturate:
        code = c.emit("minimum", code, 254)
    code = c.emit("where", c.emit("equal", exponent, 255), c.like(255, code), code)
    return c.emit("dlc.bitcast", c.cast(code, "uint8"), dtype=_EXPONENT)


def _from_exponent(c: Context, x: Tensor) -> Tensor:
    """float8_e8m0 as float32: 2^(code - 127), of which code 0 is subnormal; code 255 is NaN."""
    code = c.cast(c.emit("dlc.bitcast", x, dtype="uint8"), "int32")
    bits = c.emit("left_shift", code, 23)
    bits = c.emit("where", c.emit("equal", code, 0), c.like(0x400000, bits), bits)
    bits = c.emit("where", c.emit("equal", code, 255), c.like(0x7FC00000, bits), bits)
    return c.emit("dlc.bitcast", bits, dtype="float32")


def cast_to(c: Context, x: Tensor, dtype: str) -> Tensor:
    """ONNX Cast to a type by numpy's name."""
    if x.dtype == dtype:
        return x
    if x.dtype == _EXPONENT:
        return cast_to(c, _from_exponent(c, x), dtype)
    if dtype == _EXPONENT:
        return _to_exponent(c, x)
    if x.is_float and dtype.startswith("float8") and c.attr("saturate", 1):
        x = _saturated(c, x, dtype)
    return c.cast(x, dtype)


@converter("Cast", since=6)
def cast(c: Context, x: Tensor) -> Tensor:
    """Change the element type."""
    return cast_to(c, x, element_type(c.require("to")))


@converter("BitCast", since=26)
def bit_cast(c: Context, x: Tensor) -> Tensor:
    """The same bits as another type of the same width."""
    dtype = element_type(c.require("to"))
    if any(t.startswith(("int4", "uint4", "int2", "uint2", "float4")) for t in (x.dtype, dtype)):
        raise HostError(f"the bits of {x.dtype} as {dtype}: no kernel packs types narrower than a byte")
    return x if x.dtype == dtype else c.emit("dlc.bitcast", x, dtype=dtype)


@converter("CastLike", since=15)
def cast_like(c: Context, x: Tensor, like: Tensor) -> Tensor:
    """Change the element type to another tensor's."""
    if x.is_object or like.is_object:  # a tensor whose rank is known when running alone
        raise HostError(f"no kernel handles {x if x.is_object else like}")
    return cast_to(c, x, like.dtype)


@converter("Identity", "Dropout")
def identity(c: Context, x: Tensor) -> tuple[Tensor, ...]:
    """Up to opset 11 dropout is inference and keeps everything; its mask is not defined, and 0 as in ONNX Runtime."""
    if c.node.op_type == "Identity" or not c.wants(1):
        return (x,)
    kept = np.zeros((), bool) if c.version >= 10 else np.zeros((), x.dtype)
    return x, c.broadcast(c.constant(kept), x.shape)


@converter("Constant")
def constant(c: Context) -> Tensor:
    """A constant in any of its attribute forms."""
    forms: dict[str, type | None] = {
        "value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for name, dtype in forms.items():
        if name in c.node.attrs:
            return c.constant(np.asarray(c.node.attrs[name], dtype=dtype))
    raise HostError("a constant of strings, or a sparse one")
