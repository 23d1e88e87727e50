"""`dlc.set_rows`: a copy of a tensor in which consecutive rows along an axis are replaced.

Inputs: data and update, of the same extents but along the axis, where the update may have fewer. Attributes: axis, and
begin, a tuple of one extent (an int or a symbolic expression): the first row that is replaced. All rows lie inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (data, dtype), (update, given) = types
    axis = attrs["axis"]
    if given != dtype:
        raise ValueError(f"an update of {given} for data of {dtype}")
    others = [dims[:axis] + dims[axis + 1 :] for dims in (update, data)]
    fits = len(update) == len(data) > axis >= 0 and all(map(same, *others))
    if not fits:
        raise ValueError(f"rows {list(update)} along axis {axis} do not fit {list(data)}")
    return data, dtype


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    data, update = inputs
    axis, (begin,) = attrs["axis"], attrs["begin"]
    end = begin + update.shape[axis]
    if not 0 <= begin <= end <= data.shape[axis]:
        raise ValueError(f"rows {begin} to {end} of {data.shape[axis]}")
    result = data.copy()
    result[(*[slice(None)] * axis, slice(begin, end))] = update
    return result


SET_ROWS = register(OpSpec("dlc.set_rows", "opaque", _meaning, _infer))
