"""Small operations on vectors that TVM's own expressions lack or get wrong: typed constants, bits, rounding, NaN rules.

Everything works for a scalar (one lane) as well. `isa` decides only between forms that give the same bits.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, hold, positions, stack, vector_type

_BITS = {"float32": "int32", "float64": "int64", "float16": "int16"}
# Adding it rounds to an integer, half to even, and leaves that integer in the low bits: for |x| < 2**22 (2**51).
_MAGIC = {"float32": 12582912.0, "float64": 6755399441055744.0}
_EXACT = {"float32": 2.0**23, "float64": 2.0**52}  # from here on every value is an integer


def lanes_of(value: Expr) -> int:
    """Number of lanes of an expression."""
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def element(value: Expr) -> str:
    """Element type of an expression, ``float32`` for ``float32x16``."""
    return str(value.ty.dtype).partition("x")[0]


def is_float(dtype: str) -> bool:
    """Whether `dtype` is a floating-point type."""
    return "float" in dtype


def is_signed(dtype: str) -> bool:
    """Whether `dtype` is a signed integer."""
    return dtype.startswith("int")


def width(dtype: str) -> int:
    """Bits of one element of `dtype`; 8 for bool, as in memory."""
    return 8 if dtype == "bool" else int(tvm.DataType(dtype).bits)


def constant(value: Any, dtype: str, lanes: int = 1) -> Expr:
    """An immediate in all lanes."""
    if is_float(dtype):
        scalar: Expr = tirx.FloatImm(dtype, float(value))
    elif dtype == "bool":
        scalar = T.bool(bool(value))
    elif dtype == "uint64" and int(value) >= 2**63:
        scalar = T.reinterpret("uint64", T.int64(int(value) - 2**64))
    else:
        scalar = tirx.IntImm(dtype, int(value))
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def like(value: Any, other: Expr) -> Expr:
    """An immediate of the type of `other`."""
    return constant(value, element(other), lanes_of(other))


def intrinsic(name: str, *args: Expr, dtype: str | None = None) -> Expr:
    """Call a pure LLVM intrinsic; it returns the type of its first argument unless `dtype` says otherwise."""
    return T.call_llvm_pure_intrin(dtype or str(args[0].ty.dtype), name, *args)


def _wrapped(number: int, dtype: str) -> int:
    """`number` modulo 2**bits, in the range of an integer type."""
    span = 2 ** width(dtype)
    number %= span
    return number - span if is_signed(dtype) and number >= span // 2 else number


def reinterpret(value: Expr, dtype: str) -> Expr:
    """The same bits as another element type of the same width."""
    if element(value) == dtype:
        return value
    scalar = value.value if isinstance(value, tirx.Broadcast) else value
    if isinstance(scalar, tirx.IntImm) and not is_float(dtype):
        # TVM takes the reinterpretation of a constant zero for a null pointer.
        return constant(_wrapped(int(scalar.value), dtype), dtype, lanes_of(value))
    return T.reinterpret(vector_type(dtype, lanes_of(value)), value)


def convert(value: Expr, dtype: str) -> Expr:
    """Convert as C does; a float outside the integer's range is undefined."""
    source, lanes = element(value), lanes_of(value)
    if source == dtype:
        return value
    if isinstance(value, tirx.IntImm) and source != "bool" and not is_float(dtype) and dtype != "bool":
        # Folded here, because TVM substitutes a constant only later, where `reinterpret` would meet it unprepared.
        return constant(_wrapped(int(value.value), dtype), dtype)
    if source == "bool":
        return T.Select(value, constant(1, dtype, lanes), constant(0, dtype, lanes))
    if dtype == "bool":
        return unequal(value, constant(0, source, lanes))
    return T.Cast(vector_type(dtype, lanes), value)


def both(a: Expr, b: Expr) -> Expr:
    """Conjunction of masks. TVM's own And, Or and Not send its simplifier into minutes of work on vectors."""
    return T.bitwise_and(a, b)


def either(a: Expr, b: Expr) -> Expr:
    """Disjunction of masks."""
    return T.bitwise_or(a, b)


def differ(a: Expr, b: Expr) -> Expr:
    """Exclusive or of masks. (TVM compares bools as floats.)"""
    return T.bitwise_xor(a, b)


def invert(mask: Expr) -> Expr:
    """Negation of a mask."""
    return T.bitwise_not(mask)


def equal(a: Expr, b: Expr) -> Expr:
    """Per lane; false where either is NaN."""
    return T.EQ(a, b)


def unequal(a: Expr, b: Expr) -> Expr:
    """Per lane; true where either is NaN. (TVM's own NE is an ordered comparison, false for NaN.)"""
    return invert(T.EQ(a, b)) if is_float(element(a)) else T.NE(a, b)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Per lane; both sides are evaluated."""
    return T.Select(condition, yes, no)


def select_any(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`select`, also between masks."""
    if element(yes) == "bool":
        return either(both(condition, yes), both(invert(condition), no))
    return select(condition, yes, no)


def bits(value: Expr) -> Expr:
    """The bits of a float as a signed integer of its width."""
    return reinterpret(value, _BITS[element(value)])


def unbits(value: Expr) -> Expr:
    """The float (or double) with these bits."""
    return reinterpret(value, "float32" if element(value).endswith("32") else "float64")


def _sign_bit(value: Expr) -> Expr:
    raw = bits(value)
    return raw & like(-(2 ** (width(element(raw)) - 1)), raw)


def absolute(value: Expr) -> Expr:
    """|x| by clearing the sign bit; NaN stays NaN."""
    raw = bits(value)
    return reinterpret(raw & like(2 ** (width(element(raw)) - 1) - 1, raw), element(value))


def negated(value: Expr) -> Expr:
    """-x by the sign bit: right for zeros, which 0 - x is not."""
    raw = bits(value)
    return reinterpret(raw ^ like(-(2 ** (width(element(raw)) - 1)), raw), element(value))


def with_sign(magnitude: Expr, sign: Expr) -> Expr:
    """`magnitude` (not negative) with the sign of `sign`."""
    return reinterpret(bits(magnitude) | _sign_bit(sign), element(magnitude))


def named(value: Expr) -> Expr:
    """`value` under a name if it is not one already: for expressions that are used twice."""
    plain = isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm | tvm.ir.expr.TensorLoad)
    plain = plain or (isinstance(value, tirx.Broadcast) and isinstance(value.value, tirx.IntImm | tirx.FloatImm))
    return value if plain else hold(value)


def larger(a: Expr, b: Expr) -> Expr:
    """a > b ? a : b, which is one instruction; b where either is NaN."""
    a, b = named(a), named(b)
    return select(a > b, a, b)


def smaller(a: Expr, b: Expr) -> Expr:
    """a < b ? a : b, which is one instruction; b where either is NaN."""
    a, b = named(a), named(b)
    return select(a < b, a, b)


def is_nan(value: Expr) -> Expr:
    """Per lane. The fence keeps TVM from folding the comparison, which it does for floats too."""
    value = named(value)
    return unequal(fence(value), value)


def maximum(a: Expr, b: Expr) -> Expr:
    """numpy's maximum: NaN where either is NaN."""
    a, b = named(a), named(b)
    return select(is_nan(a), a, larger(a, b)) if is_float(element(a)) else larger(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """numpy's minimum: NaN where either is NaN."""
    a, b = named(a), named(b)
    return select(is_nan(a), a, smaller(a, b)) if is_float(element(a)) else smaller(a, b)


def fma(a: Expr, b: Expr, c: Expr, isa: Isa) -> Expr:
    """a * b + c, fused where the instruction set has it (a libm call otherwise, hence two operations)."""
    return intrinsic("llvm.fma", a, b, c) if isa.has_fma else a * b + c


def polynomial(x: Expr, coefficients: tuple[float, ...], isa: Isa) -> Expr:
    """Horner's rule; coefficients from the constant upwards."""
    total = like(coefficients[-1], x)
    for coefficient in reversed(coefficients[:-1]):
        total = fma(total, x, like(coefficient, x), isa)
    return total


def _native_rounding(isa: Isa) -> bool:
    return isa.has_fma  # else, as below AVX, LLVM calls libm's rint for every lane


def nearest_small(x: Expr) -> tuple[Expr, Expr]:
    """(rint(x), the same as an integer of x's width) for |x| < 2**22 (float32) or 2**51 (float64); a NaN stays one.

    Two additions and one subtraction on every instruction set; no undefined conversion of a NaN.
    """
    magic = like(_MAGIC[element(x)], x)
    shifted = hold(fence(x + magic))
    return hold(shifted - magic), hold(bits(shifted) - bits(magic))


def fence(value: Expr) -> Expr:
    """The same float, opaque to algebra: neither TVM's simplifier nor contraction looks through. No instruction."""
    return intrinsic("llvm.arithmetic.fence", value)


def rint(x: Expr, isa: Isa) -> Expr:
    """Round to an integer, half to even, over the whole range, signed zeros kept."""
    if _native_rounding(isa):
        return intrinsic("llvm.rint", x)
    x = hold(x)
    size = hold(absolute(x))
    half = like(_EXACT[element(x)] / 2, x)
    rounded = hold(with_sign(nearest_small(smaller(size, half))[0], x))
    # Between 2**22 and 2**23 (2**51, 2**52) halves exist: adding the least value without any rounds them away.
    exact = like(_EXACT[element(x)], x)
    upper = with_sign(fence(size + exact) - exact, x)
    rounded = select(size < half, rounded, upper)
    return select(size < exact, rounded, x)


def floor(x: Expr, isa: Isa) -> Expr:
    """Round towards minus infinity."""
    if _native_rounding(isa):
        return intrinsic("llvm.floor", x)
    x = hold(x)
    near = hold(rint(x, isa))
    return with_sign(absolute(select(near > x, near - like(1, x), near)), x)


def ceil(x: Expr, isa: Isa) -> Expr:
    """Round towards plus infinity."""
    if _native_rounding(isa):
        return intrinsic("llvm.ceil", x)
    return negated(floor(negated(x), isa))


def truncate(x: Expr, isa: Isa) -> Expr:
    """Round towards zero."""
    if _native_rounding(isa):
        return intrinsic("llvm.trunc", x)
    x = hold(x)
    return with_sign(floor(absolute(x), isa), x)


def any_lane(mask: Expr) -> Expr:
    """Whether any lane of a mask is set: a scalar bool."""
    return mask if lanes_of(mask) == 1 else intrinsic("llvm.vector.reduce.or", mask, dtype="bool")


def libm(name: str, *args: Expr, keep: tuple[Expr, Expr] | None = None) -> Expr:
    """Call a libm function lane by lane: ``expf`` for float32, ``exp`` for float64 (the caller gives the exact name).

    With ``keep = (mask, value)`` only the lanes in `mask` are computed, and nothing at all when none is; the others
    take `value`.
    """
    dtype, lanes = element(args[0]), lanes_of(args[0])
    if lanes == 1 and keep is None:
        return T.call_pure_extern(dtype, name, *args)
    inputs = [stack(dtype, lanes) for _ in args]
    result = stack(dtype, lanes)
    whole = [positions(0, lanes)]

    def each(chosen: Expr = None) -> None:
        for buffer, arg in zip(inputs, args, strict=True):
            T.buffer_store(buffer, arg, whole)
        with T.serial(lanes) as lane:
            value = T.call_pure_extern(dtype, name, *(buffer[lane] for buffer in inputs))
            if chosen is None:
                T.buffer_store(result, value, [lane])
            else:
                with T.If(chosen[lane] != 0), T.Then():
                    T.buffer_store(result, value, [lane])

    if keep is None:
        each()
    else:
        mask, value = keep
        T.buffer_store(result, value, whole)
        with T.If(any_lane(mask)), T.Then():
            chosen = stack("uint8", lanes)
            T.buffer_store(chosen, convert(mask, "uint8"), whole)
            each(chosen)
    return hold(result[positions(0, lanes)])
