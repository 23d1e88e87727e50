"""The quantisation operators on vectors, equal to `dlc.ir.arithmetic` bit for bit (see docs/arithmetic.md).

Nothing here overflows, as that document proves, so plain signed arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp
from typing import Any

import numpy as np

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, hold, unfused_add
from dlc.targets.cpu.kernels.elementwise import Call


def round_to_int(x: Expr, isa: Isa) -> Expr:
    """rint(x) as int32, for |x| < 2**22 and no NaN: one conversion instruction where the rounding is native."""
    if isa.has_fma:
        return v.convert(v.rint(x, isa), "int32")
    return v.nearest_small(x)[1]


def saturate(real: Expr, low: Expr, high: Expr, zero_point: Expr, out: str, isa: Isa) -> Expr:
    """clamp(real) to [low, high] in float32, round half to even, add the int32 zero point, as `out`.

    NaN becomes `low`. `low` and `high` are float32 and within +-2**17, so nothing overflows.
    """
    clamped = hold(v.smaller(hold(v.larger(hold(real), low)), high))
    return v.convert(round_to_int(clamped, isa) + zero_point, out)


def quantize(call: Call, args: Sequence[Expr]) -> Expr:
    """``saturate(rint(x / scale) + zero_point)`` with one true division."""
    x, scale = v.convert(args[0], "float32"), v.convert(args[1], "float32")
    constant = call.scalars[1]
    if constant is not None and frexp(float(constant))[0] == 0.5 and 2.0**-100 < float(constant) < 2.0**100:
        ratio = x * v.like(1 / float(constant), x)  # by a power of two the product is the quotient
    else:
        ratio = x / scale
    info, zero = np.iinfo(call.out), hold(v.convert(args[2], "int32"))
    low, high = (hold(v.convert(v.like(int(b), zero) - zero, "float32")) for b in (info.min, info.max))
    return saturate(ratio, low, high, zero, call.out, call.isa)


def dequantize(call: Call, args: Sequence[Expr]) -> Expr:
    """``float32(q - zero_point) * scale``."""
    q, scale, zero = args
    # int32 codes may need 33 bits; the narrower ones never do.
    wide = "int64" if v.width(v.element(q)) == 32 and call.scalars[2] != 0 else "int32"
    difference = v.convert(q, wide)
    if call.scalars[2] != 0:
        difference = difference - v.convert(zero, wide)
    return v.convert(difference, "float32") * v.convert(scale, "float32")


def requantize(call: Call, args: Sequence[Expr]) -> Expr:
    """Several int32 terms into one 8- or 16-bit output, in mode ``float`` or ``fixed``."""
    count = call.attrs["terms"]
    *zeros, zero, low, high = _numbers(call, args)
    terms = []
    for term, offset in zip(args[:count], zeros, strict=True):
        wide = v.convert(term, "int32")
        terms.append(wide if _is_zero(offset) else wide - _typed(offset, wide))
    if call.attrs["mode"] == "fixed":
        return _requantize_fixed(call, terms, args[count : 2 * count], args[2 * count], (zero, low, high))
    total: Expr = None
    for term, multiplier in zip(terms, args[count : 2 * count], strict=True):
        product = v.convert(term, "float32") * v.convert(multiplier, "float32")
        total = product if total is None else hold(unfused_add(total, product))
    zero_lanes = v.constant(zero, "int32", v.lanes_of(total)) if isinstance(zero, int) else zero
    least, largest = (_typed(bound - zero, total) for bound in (low, high))
    return saturate(total, least, largest, zero_lanes, call.out, call.isa)


NUMBERS = ("zero_point", "lo", "hi")  # attributes of a requantisation besides its terms' zero points


def _numbers(call: Call, args: Sequence[Expr]) -> list[Any]:
    """The terms' zero points, the result's, its least and largest value: ints, or int32 lanes of operands.

    They are attributes, or the last operands where `lifted` made them that.
    """
    if "term_zero_points" in call.attrs:
        return [*call.attrs["term_zero_points"], *(call.attrs[key] for key in NUMBERS)]
    count = call.attrs["terms"] + 3
    return [
        hold(v.convert(arg, "int32")) if known is None else int(known)
        for arg, known in zip(args[-count:], call.scalars[-count:], strict=True)
    ]


def _is_zero(number: Any) -> bool:
    return isinstance(number, int) and number == 0


def _typed(number: Any, like: Expr) -> Expr:
    """An int or int32 lanes as lanes of the type of `like`."""
    return v.like(number, like) if isinstance(number, int) else v.convert(number, v.element(like))


def _requantize_fixed(
    call: Call, terms: Sequence[Expr], multipliers: Sequence[Expr], shift: Expr, bounds: Sequence[Any]
) -> Expr:
    """``clamp(((sum t * m + 2**(s-1)) >> s) + z, lo, hi)`` in 64-bit lanes; `bounds` are z, lo, hi."""
    total: Expr = None
    for term, multiplier in zip(terms, multipliers, strict=True):
        product = v.convert(hold(term), "int64") * v.convert(multiplier, "int64")
        total = product if total is None else total + product
    total, shift = hold(total), hold(v.convert(shift, "int64"))
    zero, low, high = (_typed(bound, total) for bound in bounds)
    half = (v.like(1, shift) << shift) >> v.like(1, shift)  # zero at shift 0
    rounded = hold((hold(total + hold(half)) >> shift) + zero)
    return v.convert(hold(v.smaller(hold(v.larger(rounded, low)), high)), call.out)


def table_index(q: Expr) -> Expr:
    """Positions of codes in a 256-entry table, int32: the unsigned value; int8 is moved up by 128."""
    if v.element(q) == "int8":
        return v.convert(q, "int32") + v.constant(128, "int32", v.lanes_of(q))
    return v.convert(q, "int32")


EMIT_QUANTIZED = {"dlc.quantize": quantize, "dlc.dequantize": dequantize, "dlc.requantize": requantize}
