"""`dlc.top_indices`: the positions of the k largest or smallest elements along an axis, best first, int64.

Attributes: axis, k, largest. Of equal elements the one at the lower position comes first. NaN counts as largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, _),) = types
    axis = attrs["axis"]
    if not 0 <= axis < len(shape):
        raise ValueError(f"axis {axis} of a tensor with {len(shape)} dimensions")
    return (*shape[:axis], attrs["k"], *shape[axis + 1 :]), "int64"


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,), axis = inputs, attrs["axis"]
    if attrs["largest"]:
        # A stable sort of the reversed axis, read backwards, keeps equal elements in order.
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    return np.ascontiguousarray(np.take(order, np.arange(attrs["k"]), axis=axis)).astype(np.int64)


TOP_INDICES = register(OpSpec("dlc.top_indices", "opaque", _meaning, _infer))
