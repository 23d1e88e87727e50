"""Operators of the integer arithmetic: `dlc.quantize`, `dlc.dequantize`, `dlc.requantize`, `dlc.table`.

Their meaning is `dlc.ir.arithmetic`, derived in docs/arithmetic.md; this file only states their operands and types.

- ``dlc.quantize(x, scale, zero_point)``; attributes axis, out_dtype. Scale and zero point are scalars or vectors along
  `axis`, or have x's rank with one scale a block of the axis (ONNX's blocked form is expanded by the frontend).
- ``dlc.dequantize(q, scale, zero_point)``; attributes axis, out_dtype.
- ``dlc.requantize(t_0 .. t_n-1, m_0 .. m_n-1 [, shift])``; attributes terms (n), mode (``float`` or ``fixed``),
  term_zero_points (subtracted from each term), zero_point, lo, hi, out_dtype. Multipliers broadcast against the terms.
- ``dlc.table(q, table)``: table has 256 entries, indexed by the unsigned value of q (int8: by q + 128).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import broadcast

Types = Sequence[tuple[tuple[Any, ...], str]]


def along_axis(parameter: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A per-axis vector reshaped so that it broadcasts against a tensor of `rank`; other shapes are left alone."""
    if parameter.ndim != 1 or rank <= 1:
        return parameter
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


def _infer_scaled(types: Types, attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (x, _), axis = types[0], attrs["axis"]
    for role, (shape, _) in zip(("scale", "zero point"), types[1:], strict=True):
        spread = [shape[0] if i == axis else 1 for i in range(len(x))] if len(shape) == 1 and len(x) > 1 else shape
        if len(spread) > len(x) or any(isinstance(b, int) and b not in (1, a) for a, b in _pairs(x, spread)):
            raise ValueError(f"a {role} {list(shape)} does not fit {list(x)} along axis {axis}")
    return x, attrs["out_dtype"]


def _pairs(x: Sequence[Any], shape: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The extents that meet in broadcasting `shape` to x, as far as both are numbers."""
    return [(a, b) for a, b in zip(x[len(x) - len(shape) :], shape, strict=True) if isinstance(a, int)]


def _quantize(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, scale, zero = inputs[0], *(along_axis(p, inputs[0].ndim, attrs["axis"]) for p in inputs[1:])
    return arithmetic.quantize(x, scale, zero, attrs["out_dtype"])


def _dequantize(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    q, scale, zero = inputs[0], *(along_axis(p, inputs[0].ndim, attrs["axis"]) for p in inputs[1:])
    return ((q.astype(np.int64) - zero).astype(np.float32) * scale.astype(np.float32)).astype(attrs["out_dtype"])


def _infer_requantize(types: Types, attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    count = attrs["terms"]
    expected = 2 * count + (attrs["mode"] == "fixed")
    if len(types) != expected:
        form = f"requantize of {count} terms in mode {attrs['mode']}"
        raise ValueError(f"{form} takes {expected} inputs, got {len(types)}")
    shape: Sequence[Any] = types[0][0]
    for term, _ in types[1:count]:
        shape = broadcast(shape, term)
    return shape, attrs["out_dtype"]


def _requantize(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    count = attrs["terms"]
    terms = [t.astype(np.int32) - np.int32(z) for t, z in zip(inputs[:count], attrs["term_zero_points"], strict=True)]
    multipliers = inputs[count : 2 * count]
    bounds = (attrs["zero_point"], attrs["lo"], attrs["hi"], attrs["out_dtype"])
    if attrs["mode"] == "float":
        return arithmetic.requantize_float(terms, multipliers, *bounds)
    fixed = arithmetic.FixedMultiplier(tuple(multipliers), inputs[2 * count])
    return arithmetic.requantize_fixed(terms, fixed, *bounds)


def _table(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    q, table = inputs
    index = q.astype(np.int32) + (128 if q.dtype == np.int8 else 0)
    return table[index]


def _infer_table(types: Types, attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (shape, _), (table, dtype) = types
    if list(table) != [256]:
        raise ValueError(f"a table has 256 entries, got {list(table)}")
    return shape, dtype


QUANTIZE = register(OpSpec("dlc.quantize", "elementwise", _quantize, _infer_scaled))
DEQUANTIZE = register(OpSpec("dlc.dequantize", "elementwise", _dequantize, _infer_scaled))
REQUANTIZE = register(OpSpec("dlc.requantize", "elementwise", _requantize, _infer_requantize))
TABLE = register(OpSpec("dlc.table", "elementwise", _table, _infer_table))
