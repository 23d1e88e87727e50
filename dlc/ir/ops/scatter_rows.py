"""`dlc.scatter_rows`: a copy of a tensor in which some rows (positions of the first dimension) are replaced.

Inputs: data (rows, ...), positions (n,) int64 and not negative, updates (n, ...). Attribute reduction: none (of several
updates of one row the last one counts), or add, mul, max, min with what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same

_AT = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (data, dtype), (positions, index), (updates, update) = types
    if not index.startswith(("int", "uint")) or len(positions) != 1:
        raise ValueError(f"positions must be a vector of integers, got {index}{list(positions)}")
    if update != dtype:
        raise ValueError(f"updates of {update} for data of {dtype}")
    if len(updates) != len(data) or not all(same(a, b) for a, b in zip(updates, (*positions, *data[1:]), strict=True)):
        raise ValueError(f"updates {list(updates)} do not fit {list(positions)} rows of {list(data)}")
    return data, dtype


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    data, positions, updates = inputs
    result = data.copy()
    if attrs["reduction"] == "none":
        result[positions] = updates
    else:
        _AT[attrs["reduction"]].at(result, positions, updates)
    return result


SCATTER_ROWS = register(OpSpec("dlc.scatter_rows", "opaque", _meaning, _infer))
