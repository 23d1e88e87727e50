"""`dlc.matmul`: numpy's matmul, float or integer.

Inputs a (..., M, K), b (..., K, N), one-dimensional operands as in numpy. b may be bfloat16 where a is float32, and
both where the result is float32: they are widened, exactly. Attributes: out_dtype and, for integers, a_zero_point and
b_zero_point, subtracted from every element. Integer accumulation is exact in int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import broadcast


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (a, _), (b, _) = types
    if not a or not b:
        raise ValueError("matmul of a scalar")
    left = (1, *a) if len(a) == 1 else a
    right = (*b, 1) if len(b) == 1 else b
    if isinstance(left[-1], int) and isinstance(right[-2], int) and left[-1] != right[-2]:
        raise ValueError(f"inner dimensions differ: {list(a)} x {list(b)}")
    shape = [*broadcast(left[:-2], right[:-2]), left[-2], right[-1]]
    if len(a) == 1:
        del shape[-2]
    if len(b) == 1:
        del shape[-1]
    return shape, attrs["out_dtype"]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    a, b = inputs
    if a.dtype.kind in "iu":
        # Exact below 2^53; numpy has no fast integer matrix product.
        a = a.astype(np.float64) - attrs.get("a_zero_point", 0)
        b = b.astype(np.float64) - attrs.get("b_zero_point", 0)
    elif a.dtype == "bfloat16" and attrs["out_dtype"] == "float32":
        a, b = a.astype(np.float32), b.astype(np.float32)
    elif b.dtype != a.dtype:
        b = b.astype(a.dtype)
    return np.asarray(np.matmul(a, b)).astype(attrs["out_dtype"])


MATMUL = register(OpSpec("dlc.matmul", "contraction", _meaning, _infer))
