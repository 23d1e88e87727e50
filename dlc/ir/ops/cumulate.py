"""`dlc.cumulate`: running sums or products along an axis.

Attributes: mode (sum, prod), axis, exclusive (an element is not part of its own sum), reverse (from the end).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, dtype),) = types
    if not 0 <= attrs["axis"] < len(shape):
        raise ValueError(f"axis {attrs['axis']} of a tensor with {len(shape)} dimensions")
    return shape, dtype


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,), axis = inputs, attrs["axis"]
    function, neutral = (np.cumsum, 0) if attrs["mode"] == "sum" else (np.cumprod, 1)
    work = np.flip(x, axis) if attrs["reverse"] else x
    if attrs["exclusive"]:
        first = np.full_like(np.take(work, [0], axis) if work.shape[axis] else work, neutral)
        work = np.concatenate([first, np.delete(work, -1, axis) if work.shape[axis] else work], axis)
    result = function(work, axis=axis, dtype=x.dtype)
    return np.ascontiguousarray(np.flip(result, axis) if attrs["reverse"] else result)


CUMULATE = register(OpSpec("dlc.cumulate", "opaque", _meaning, _infer))
