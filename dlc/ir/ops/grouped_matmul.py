"""`dlc.grouped_matmul`: rows that are each multiplied by a matrix of their own choice.

Inputs x (R, K), w (G, K, N), groups (R,) integer; row r of the result (R, N) is ``x[r] @ w[groups[r]]``. Negative
groups count from the end. Attributes as of `dlc.matmul`: out_dtype, and for integers a_zero_point. The rows are in any
order, but neighbours of one group share a kernel's reading of their matrix: see `dlc.group_order`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.matmul import MATMUL
from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (x, _), (w, _), (groups, index) = types
    if len(x) != 2 or len(w) != 3 or len(groups) != 1:
        raise ValueError(f"grouped matmul of {list(x)} by {list(w)} with groups {list(groups)}")
    if not index.startswith(("int", "uint")):
        raise ValueError(f"groups must be integers, got {index}")
    if not same(x[1], w[1]):
        raise ValueError(f"inner dimensions differ: {list(x)} x {list(w)}")
    if not same(x[0], groups[0]):
        raise ValueError(f"{x[0]} rows and {groups[0]} groups")
    return (x[0], w[2]), attrs["out_dtype"]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, w, groups = inputs
    result = np.zeros((x.shape[0], w.shape[2]), attrs["out_dtype"])
    chosen = np.where(groups < 0, groups + w.shape[0], groups)
    for group in np.unique(chosen):
        rows = chosen == group
        result[rows] = MATMUL.meaning([x[rows], w[group]], attrs)
    return result


GROUPED_MATMUL = register(OpSpec("dlc.grouped_matmul", "contraction", _meaning, _infer))
