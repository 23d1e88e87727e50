"""`dlc.determinant`: the determinants of square matrices (..., n, n), floats, by LU with partial pivoting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, dtype),) = types
    if len(shape) < 2 or not same(shape[-1], shape[-2]):
        raise ValueError(f"determinants of square matrices, got {list(shape)}")
    if not dtype.startswith(("float", "bfloat")):
        raise ValueError(f"determinants of floats, got {dtype}")
    return shape[:-2], dtype


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    wide = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    return np.asarray(np.linalg.det(wide)).astype(x.dtype)


DETERMINANT = register(OpSpec("dlc.determinant", "opaque", _meaning, _infer))
