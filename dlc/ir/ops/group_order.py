"""`dlc.group_order`: the positions (R,) of a vector of groups, sorted by group; those of one group keep their order.

Attributes: count (groups are below it), inverse (instead, where each position goes: the inverse permutation). Both are
int64. A kernel pulls a group outside of [0, count) to the nearest end; the result is a permutation in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, dtype),) = types
    if len(shape) != 1 or not dtype.startswith(("int", "uint")):
        raise ValueError(f"groups must be a vector of integers, got {dtype}{list(shape)}")
    return shape, "int64"


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    order = np.argsort(np.clip(inputs[0].astype(np.int64), 0, attrs["count"] - 1), kind="stable").astype(np.int64)
    if not attrs["inverse"]:
        return order
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


GROUP_ORDER = register(OpSpec("dlc.group_order", "opaque", _meaning, _infer))
