"""Types whose memory form is not what vectors compute with: bool (a byte), float16 and bfloat16 (float32 inside)."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels.builder import STORAGE, Expr, hold
from dlc.targets.cpu.kernels.vector import constant, convert, element, lanes_of, like, reinterpret, select, unbits


def compute_dtype(dtype: str) -> str:
    """The type that values of `dtype` have inside a kernel."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def widen(stored: Expr, dtype: str) -> Expr:
    """What lies in memory for `dtype` as a value to compute with."""
    if dtype == "bool":
        return T.NE(stored, like(0, stored))
    if dtype == "bfloat16":
        return unbits(convert(stored, "uint32") << constant(16, "uint32", lanes_of(stored)))
    if dtype == "float16":
        return _from_half(stored)
    return stored


def narrow(value: Expr, dtype: str) -> Expr:
    """The inverse of `widen`: rounds half to even, NaN stays NaN. A value in its memory form comes back unchanged."""
    if dtype not in STORAGE or element(value) == STORAGE[dtype]:
        return value
    if dtype == "bool":
        return convert(value, "uint8")
    return _to_bfloat16(value) if dtype == "bfloat16" else _to_half(value)


def round_trip(value: Expr, dtype: str) -> Expr:
    """A float32 rounded to `dtype`, as a float32."""
    return widen(hold(narrow(value, dtype)), dtype)


def _to_bfloat16(value: Expr) -> Expr:
    value = hold(value)
    raw = hold(reinterpret(value, "uint32"))
    odd = (raw >> like(16, raw)) & like(1, raw)
    rounded = (raw + like(0x7FFF, raw) + odd) >> like(16, raw)
    nan = (raw & like(0x7FFFFFFF, raw)) > like(0x7F800000, raw)
    quiet = (raw >> like(16, raw)) | like(0x40, raw)
    return convert(hold(select(nan, quiet, rounded)), "uint16")


def _from_half(stored: Expr) -> Expr:
    """By integer steps and one product, which every instruction set has (F. Giesen's method: shift, then rebias)."""
    raw = hold(convert(stored, "uint32"))
    magnitude = hold((raw & like(0x7FFF, raw)) << like(13, raw))
    # 2**112 moves the bias from 15 to 127 and normalises denormals; infinities and NaN need the top exponent.
    scaled = hold(reinterpret(unbits(magnitude) * constant(2.0**112, "float32", lanes_of(raw)), "uint32"))
    special = (raw & like(0x7FFF, raw)) >= like(0x7C00, raw)
    scaled = select(special, magnitude | like(0x7F800000, raw), scaled)
    return unbits(hold(scaled | ((raw & like(0x8000, raw)) << like(16, raw))))


def _to_half(value: Expr) -> Expr:
    raw = hold(reinterpret(hold(value), "uint32"))
    sign = (raw >> like(16, raw)) & like(0x8000, raw)
    size = hold(raw & like(0x7FFFFFFF, raw))
    # Normal results: rebias the exponent by subtracting 112 << 23, round half to even at bit 13.
    odd = (size >> like(13, raw)) & like(1, raw)
    normal = (size + like((0xFFF - (112 << 23)) % 2**32, raw) + odd) >> like(13, raw)
    # Denormal results: adding 1/2 leaves the rounded multiple of 2**-24 in the low bits.
    tiny = reinterpret(unbits(size) + constant(0.5, "float32", lanes_of(raw)), "uint32") - like(0x3F000000, raw)
    result = hold(select(size < like(113 << 23, raw), hold(tiny), hold(normal)))
    # 65520 and above round to infinity; NaN keeps a set bit.
    result = hold(select(size >= like(0x477FF000, raw), like(0x7C00, raw), result))
    result = select(size > like(0x7F800000, raw), like(0x7E00, raw), result)
    return convert(hold(result | sign), "uint16")
