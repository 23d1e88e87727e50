"""The quantisation operators in C, equal to `dlc.ir.arithmetic` bit for bit (see docs/arithmetic.md).

Nothing here overflows, as that document proves, so plain signed arithmetic is exact. Each float operation is a
statement of its own or stands where no contraction is allowed (see `dlc.targets.gpu.source`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.targets.gpu.kernels.elementwise import Call
from dlc.targets.gpu.source import c_type, literal


def _saturate(call: Call, real: str, low: str, high: str, zero_point: str) -> str:
    """clamp(real) to [low, high] in float32, round half to even, add the zero point. NaN becomes `low`."""
    above = call.let(f"{real} > {low} ? {real} : {low}", "float32")
    within = call.let(f"{above} < {high} ? {above} : {high}", "float32")
    return f"({c_type(call.out)})((i32)rint({within}) + {zero_point})"


def quantize(call: Call, args: Sequence[str]) -> str:
    """``saturate(rint(x / scale) + zero_point)`` with one true division."""
    ratio = call.let(f"(f32){args[0]} / (f32){args[1]}", "float32")
    zero = call.let(f"(i32){args[2]}", "int32")
    info = np.iinfo(call.out)
    low, high = (call.let(f"(f32)({literal(int(b), 'int32')} - {zero})", "float32") for b in (info.min, info.max))
    return _saturate(call, ratio, low, high, zero)


def dequantize(call: Call, args: Sequence[str]) -> str:
    """``float32(q - zero_point) * scale``; int32 codes may need 33 bits for the difference."""
    wide = "i64" if call.dtype.endswith("32") else "i32"
    return f"(f32)(({wide}){args[0]} - ({wide}){args[2]}) * (f32){args[1]}"


def requantize(call: Call, args: Sequence[str]) -> str:
    """Several int32 terms into one 8- or 16-bit output, in mode ``float`` or ``fixed``."""
    count = call.attrs["terms"]
    terms = [
        call.let(f"(i32){term} - {literal(int(zero), 'int32')}" if zero else f"(i32){term}", "int32")
        for term, zero in zip(args[:count], call.attrs["term_zero_points"], strict=True)
    ]
    multipliers = args[count : 2 * count]
    if call.attrs["mode"] == "fixed":
        return _requantize_fixed(call, terms, multipliers, args[2 * count])
    total = ""
    for term, multiplier in zip(terms, multipliers, strict=True):
        product = call.let(f"(f32){term} * (f32){multiplier}", "float32")
        total = call.let(f"{total} + {product}", "float32") if total else product
    zero = int(call.attrs["zero_point"])
    low, high = (literal(int(call.attrs[key]) - zero, "float32") for key in ("lo", "hi"))
    return _saturate(call, total, low, high, literal(zero, "int32"))


def _requantize_fixed(call: Call, terms: Sequence[str], multipliers: Sequence[str], shift: str) -> str:
    """``clamp(((sum t * m + 2**(s-1)) >> s) + z, lo, hi)`` in 64 bits."""
    products = [f"(i64){t} * (i64){m}" for t, m in zip(terms, multipliers, strict=True)]
    total = call.let(" + ".join(products), "int64")
    places = call.let(f"(i32){shift}", "int32")
    half = call.let(f"((i64)1 << {places}) >> 1", "int64")  # zero at shift 0
    rounded = call.let(f"(({total} + {half}) >> {places}) + {literal(int(call.attrs['zero_point']), 'int64')}", "int64")
    low, high = (literal(int(call.attrs[key]), "int64") for key in ("lo", "hi"))
    above = call.let(f"{rounded} > {low} ? {rounded} : {low}", "int64")
    return f"({c_type(call.out)})({above} < {high} ? {above} : {high})"


def table_index(q: str, dtype: str) -> str:
    """Position of a code in a 256-entry table: the unsigned value; int8 is moved up by 128."""
    return f"(i32){q} + 128" if dtype == "int8" else f"(i32){q}"


EMIT_QUANTIZED = {"dlc.quantize": quantize, "dlc.dequantize": dequantize, "dlc.requantize": requantize}
