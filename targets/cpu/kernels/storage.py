"""Types whose memory form is not what vectors compute with: bool (a byte), short floats (as float32), short integers.

Floats of 4, 8 and 16 bits are computed as float32 and rounded once, half to even, when they are stored or cast to.
Integers of 2 and 4 bits lie in the low bits of a byte each, as numpy keeps them, and are computed as 8-bit integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import STORAGE, Expr, hold
from dlc.targets.cpu.kernels.vector import constant, convert, element, lanes_of, like, reinterpret, select, unbits


@dataclass(frozen=True)
class _Format:
    """A float type shorter than float32.

    Attributes:
        bits: of one element, sign included.
        mantissa: stored bits of the significand.
        bias: of the exponent.
        largest: code of the largest finite magnitude.
        overflow: code of what lies beyond (infinity, NaN, or the largest value again).
        nan: code of NaN.
        signed_zero: whether -0 exists; in the types without it, its code is NaN.
    """

    bits: int
    mantissa: int
    bias: int
    largest: int
    overflow: int
    nan: int
    signed_zero: bool = True


_FORMATS = {
    "float16": _Format(16, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    "float8_e5m2": _Format(8, 2, 15, 0x7B, 0x7C, 0x7E),
    "float8_e4m3fn": _Format(8, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e5m2fnuz": _Format(8, 2, 16, 0x7F, 0x80, 0x80, signed_zero=False),
    "float8_e4m3fnuz": _Format(8, 3, 8, 0x7F, 0x80, 0x80, signed_zero=False),
    # Without infinity and NaN: ml_dtypes makes -0 of NaN.
    "float4_e2m1fn": _Format(4, 1, 1, 0x7, 0x7, 0x8),
}
_SHORT_INTEGERS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
SHORT_FLOATS = frozenset({*_FORMATS, "bfloat16"})


def compute_dtype(dtype: str) -> str:
    """The type that values of `dtype` have inside a kernel."""
    if dtype in SHORT_FLOATS:
        return "float32"
    return {"int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8"}.get(dtype, dtype)


def widen(stored: Expr, dtype: str) -> Expr:
    """What lies in memory for `dtype` as a value to compute with."""
    if dtype == "bool":
        return T.NE(stored, like(0, stored))
    if dtype == "bfloat16":
        return unbits(convert(stored, "uint32") << constant(16, "uint32", lanes_of(stored)))
    if dtype in _FORMATS:
        return _from_short(stored, _FORMATS[dtype])
    if dtype in _SHORT_INTEGERS:
        value = hold(reinterpret(stored, compute_dtype(dtype)))
        unused = like(8 - _SHORT_INTEGERS[dtype], value)
        return hold(value << unused) >> unused
    return stored


def narrow(value: Expr, dtype: str) -> Expr:
    """The inverse of `widen`: rounds half to even, NaN stays NaN. A value in its memory form comes back unchanged."""
    if dtype in _SHORT_INTEGERS:
        raw = reinterpret(value, "uint8")
        return raw & like(2 ** _SHORT_INTEGERS[dtype] - 1, raw)
    if dtype not in STORAGE or element(value) == STORAGE[dtype]:
        return value
    if dtype == "bool":
        return convert(value, "uint8")
    return _to_bfloat16(value) if dtype == "bfloat16" else _to_short(value, _FORMATS[dtype])


def round_trip(value: Expr, dtype: str) -> Expr:
    """A value of `dtype`'s compute type rounded (or wrapped around) to what `dtype` can hold."""
    return widen(hold(narrow(value, dtype)), dtype) if dtype in SHORT_FLOATS or dtype in _SHORT_INTEGERS else value


def odd_float32(value: Expr) -> Expr:
    """A float64 as a float32 rounded to odd: what is then rounded to a shorter type is rounded as if at once.

    (S. Boldo, G. Melquiond: Emulation of FMA and correctly rounded sums, 2008.)
    """
    value = hold(value)
    near = hold(convert(value, "float32"))
    back = hold(convert(near, "float64"))
    raw = hold(reinterpret(near, "uint32"))
    beyond = hold(v.absolute(back) > v.absolute(value))
    towards_zero = hold(select(beyond, raw - like(1, raw), raw))
    inexact = hold(v.both(v.unequal(back, value), v.equal(value, value)))
    return unbits(hold(select(inexact, towards_zero | like(1, raw), raw)))


def _to_bfloat16(value: Expr) -> Expr:
    value = hold(value)
    raw = hold(reinterpret(value, "uint32"))
    odd = (raw >> like(16, raw)) & like(1, raw)
    rounded = (raw + like(0x7FFF, raw) + odd) >> like(16, raw)
    nan = (raw & like(0x7FFFFFFF, raw)) > like(0x7F800000, raw)
    quiet = (raw >> like(16, raw)) | like(0x40, raw)
    return convert(hold(select(nan, quiet, rounded)), "uint16")


def _from_short(stored: Expr, form: _Format) -> Expr:
    """By integer steps and one product, which every instruction set has (F. Giesen's method: shift, then rebias)."""
    raw = hold(convert(stored, "uint32"))
    sign_bit = 1 << (form.bits - 1)
    code = hold(raw & like(sign_bit - 1, raw))
    magnitude = hold(code << like(23 - form.mantissa, raw))
    # The power of two moves the bias to 127 and normalises denormals; infinities and NaN need the top exponent.
    factor = constant(2.0 ** (127 - form.bias), "float32", lanes_of(raw))
    scaled = hold(reinterpret(unbits(magnitude) * factor, "uint32"))
    if form.overflow != form.nan and form.overflow > form.largest:  # infinities: the whole top exponent is special
        special = code > like(form.largest, raw)
        scaled = select(special, magnitude | like(0x7F800000, raw), scaled)
    elif form.nan > form.largest and form.bits == 8:
        special = v.equal(raw if form.nan == sign_bit else code, like(form.nan, raw))
        scaled = select(special, like(0x7FC00000, raw), scaled)
    return unbits(hold(scaled | ((raw & like(sign_bit, raw)) << like(32 - form.bits, raw))))


def _to_short(value: Expr, form: _Format) -> Expr:
    raw = hold(reinterpret(hold(value), "uint32"))
    sign = (raw >> like(32 - form.bits, raw)) & like(1 << (form.bits - 1), raw)
    size = hold(raw & like(0x7FFFFFFF, raw))
    shift, rebias = 23 - form.mantissa, (127 - form.bias) << 23
    # Normal results: rebias the exponent, round half to even at the last bit that stays.
    odd = (size >> like(shift, raw)) & like(1, raw)
    normal = (size + like(((1 << (shift - 1)) - 1 - rebias) % 2**32, raw) + odd) >> like(shift, raw)
    # Denormal results: adding a power of two leaves the rounded multiple of the least denormal in the low bits.
    power = 2.0 ** (24 - form.bias - form.mantissa)
    tiny = reinterpret(unbits(size) + constant(power, "float32", lanes_of(raw)), "uint32")
    tiny = tiny - like(int(np.float32(power).view(np.uint32)), raw)
    result = hold(select(size < like((128 - form.bias) << 23, raw), hold(tiny), hold(normal)))
    result = hold(select(result > like(form.largest, raw), like(form.overflow, raw), result))
    nan = size > like(0x7F800000, raw)
    result = hold(select(nan, like(form.nan, raw), result))
    signed = result | sign
    if form.nan >> (form.bits - 1):  # the code of NaN has the sign bit
        keep = v.equal(result, like(form.nan, raw))
        keep = keep if form.signed_zero else v.either(keep, v.equal(result, like(0, raw)))
        signed = select(keep, result, hold(signed))
    return convert(hold(signed), "uint16" if form.bits == 16 else "uint8")
