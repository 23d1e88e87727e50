"""`dlc.pool`: max, average or sum over sliding windows, 1 to 3 spatial dimensions.

Attributes: mode (max, average, sum), kernel, strides, pads (begins then ends), dilations, ceil_mode,
count_include_pad, layout, out_dtype and, for ``sum`` of integers, x_zero_point: subtracted from every element (padding
adds nothing). Padding never wins a maximum. ``sum`` is the integer half of an average: a requantise divides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops import windows as win
from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((x, _),) = types
    layout = attrs["layout"]
    if len(x) != len(attrs["kernel"]) + 2:
        raise ValueError(f"a window of rank {len(attrs['kernel'])} over an activation {list(x)}")
    extents = win.output_extents(win.spatial(x, layout), attrs["kernel"], attrs)
    return win.join(x[0], win.channels(x, layout), extents, layout), attrs["out_dtype"]


def _lowest(dtype: np.dtype) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def counts(extents: Sequence[int], attrs: Mapping[str, Any]) -> np.ndarray:
    """How many elements each window averages over: shape of the output's spatial extents, float32."""
    rank = len(extents)
    pads = attrs["pads"]
    outs = win.output_extents(extents, attrs["kernel"], attrs)
    ones = np.ones((1, *extents, 1), np.float32)
    if attrs.get("count_include_pad"):
        # Padding counts, but what ceil_mode adds beyond the padding does not.
        ones = np.pad(ones, [(0, 0), *((pads[i], pads[rank + i]) for i in range(rank)), (0, 0)], constant_values=1)
        attrs = {**attrs, "pads": [0] * (2 * rank)}
    view = win.windows(ones, attrs["kernel"], attrs, 0)
    # Padding written out as elements, ceil_mode may see room for a window that starts in the end padding.
    return view.sum(axis=tuple(range(-rank, 0)))[(0, *(slice(0, n) for n in outs), 0)]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    mode, rank = attrs["mode"], len(attrs["kernel"])
    x = win.to_channels_last(x, attrs["layout"])
    axes = tuple(range(-rank, 0))
    if mode == "max":
        result = win.windows(x, attrs["kernel"], attrs, _lowest(x.dtype)).max(axis=axes)
    else:
        if x.dtype.kind in "iu":
            x = x.astype(np.int32) - np.int32(attrs.get("x_zero_point", 0))
        result = win.windows(x, attrs["kernel"], attrs, 0).sum(axis=axes, dtype=x.dtype)
        if mode == "average":
            result = result / counts(x.shape[1:-1], attrs)[None, ..., None]
    return win.from_channels_last(result.astype(attrs["out_dtype"]), attrs["layout"])


POOL = register(OpSpec("dlc.pool", "window", _meaning, _infer))
