"""Writing a linear form: one `dlc.requantize`, or a float value where no codes are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node, Origin
from dlc.passes.quantize.integer_forms import INT32_MAX, Linear, Reader, Term
from dlc.passes.simplify.match import unnamed


@dataclass(frozen=True)
class Target:
    """The codes that are wanted: uint8 of this scale and zero point."""

    scale: np.float32
    zero_point: int

    def code(self, real: float) -> int:
        """The code of a real bound; an infinite one is the end of the range."""
        return int(arithmetic.quantize(np.float32(real), self.scale, self.zero_point, np.uint8))


def multipliers(terms: Sequence[Term], target: Target, arithmetic_mode: str) -> list[np.ndarray]:
    """The operands of `dlc.requantize` after the terms: one multiplier a term, then the shift in fixed mode.

    Raises:
        ValueError: no such multiplier exists, with the reason.
    """
    if arithmetic_mode == "float":
        return [arithmetic.float_multiplier(t.x_scale, t.w_scale, np.float32(t.count) * target.scale) for t in terms]
    if arithmetic_mode == "shift" and any(t.count & (t.count - 1) for t in terms):
        raise ValueError(f"no shift divides by the {max(t.count for t in terms)} elements of the average")
    reals = [arithmetic.real_multiplier(t.x_scale, t.w_scale, target.scale) / t.count for t in terms]
    derive = arithmetic.shift_multiplier if arithmetic_mode == "shift" else arithmetic.fixed_multiplier
    fixed = derive(reals)
    return [*fixed.multipliers, fixed.shift]


def bias_codes(term: Term, bias: np.ndarray) -> np.ndarray:
    """The bias in the term's step, int32; ValueError where it, or the sum with it, leaves int32."""
    sign = -1 if term.negative else 1
    codes = np.rint(sign * bias / term.unit())
    greatest = float(np.max(np.abs(codes), initial=0))
    if not greatest + term.bound <= INT32_MAX:
        raise ValueError(f"its sum with the bias can reach {greatest + term.bound:.0f}, beyond int32 ({INT32_MAX})")
    return codes.astype(np.int32)


def carrier(linear: Linear) -> Term | None:
    """The term whose accumulator takes the bias."""
    return next((t for t in linear.terms if not t.codes), None)


def _integer(reader: Reader, term: Term, bias: np.ndarray | None) -> Any:
    """The term's integer value with bias and sign."""
    state, origin = reader.state, unnamed(term.node.origin)
    expr = term.build()
    if bias is not None and np.any(bias):
        expr = state.emit("relax.add", [expr, state.const(bias)], {}, origin)
    if not term.negative:
        return expr
    if not term.codes:
        return state.emit("relax.negative", [expr], {}, origin)
    wide = state.emit("relax.astype", [expr], {"dtype": "int32"}, origin)
    return state.emit("relax.subtract", [state.const(np.asarray(term.zero_point, np.int32)), wide], {}, origin)


def requantize(reader: Reader, linear: Linear, target: Target, arithmetic_mode: str, node: Node, origin: Origin) -> Any:
    """Write the form as codes; None with a reason for `node` where the arithmetic cannot hold it."""
    state, taker = reader.state, carrier(linear)
    try:
        bias = None
        if linear.bias is not None and np.any(linear.bias):
            if taker is None:
                raise ValueError("it adds a constant to codes, which have too coarse a step for it")
            bias = bias_codes(taker, linear.bias)
        numbers = multipliers(linear.terms, target, arithmetic_mode)
    except ValueError as error:
        reader.fail(node, str(error))
        return None
    terms = [_integer(reader, t, bias if t is taker else None) for t in linear.terms]
    attrs = {
        "terms": len(terms),
        "mode": "float" if arithmetic_mode == "float" else "fixed",
        "term_zero_points": tuple(t.zero_point if t.codes and not t.negative else 0 for t in linear.terms),
        "zero_point": target.zero_point,
        "lo": target.code(linear.lo),
        "hi": target.code(linear.hi),
        "out_dtype": "uint8",
    }
    return state.emit("dlc.requantize", [*terms, *(state.const(n) for n in numbers)], attrs, origin)


def dequantize(reader: Reader, linear: Linear, origin: Origin) -> Any:
    """Write a form of one accumulator, without a clip, as float32: ``float32(acc) * fl32(x_scale * w_scale)``.

    The bias is inside the accumulator; None where it does not fit there.
    """
    (term,) = linear.terms
    try:
        bias = bias_codes(term, linear.bias) if linear.bias is not None else None
    except ValueError as error:
        reader.fail(term.node, str(error))
        return None
    state = reader.state
    wide = state.emit("relax.astype", [_integer(reader, term, bias)], {"dtype": "float32"}, unnamed(origin))
    return state.emit("relax.multiply", [wide, state.const(term.x_scale * term.w_scale)], {}, origin)
