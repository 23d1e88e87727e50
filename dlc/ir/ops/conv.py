"""`dlc.conv`: convolution over 1 to 3 spatial dimensions, float or integer.

Inputs: activation x (N, C, spatial...) or (N, spatial..., C); weight w (O, C / groups, kernel...).
Attributes: strides, pads (begins then ends), dilations, groups, layout, out_dtype, and for integers x_zero_point: the
value of the padding, subtracted from every activation. w may be bfloat16 where x is float32, and both where the result
is float32: they are widened, exactly.
Integer accumulation is exact in int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops import windows as win
from dlc.ir.ops.registry import OpSpec, register


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (x, _), (w, _) = types
    layout, groups = attrs["layout"], attrs["groups"]
    if groups < 1:
        raise ValueError(f"{groups} groups")
    if len(x) != len(w) or len(x) < 3:
        raise ValueError(f"activation {list(x)} and weight {list(w)} must have the same rank, 3 to 5")
    channels = win.channels(x, layout)
    if isinstance(channels, int) and channels != w[1] * groups:
        raise ValueError(f"{channels} input channels, but the weight {list(w)} expects {w[1]} x {groups} groups")
    if w[0] % groups:
        raise ValueError(f"{w[0]} output channels are not a multiple of {groups} groups")
    extents = win.output_extents(win.spatial(x, layout), w[2:], attrs)
    return win.join(x[0], w[0], extents, layout), attrs["out_dtype"]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, w = inputs
    integer = x.dtype.kind in "iu"
    zero = attrs.get("x_zero_point", 0)
    x = win.to_channels_last(x, attrs["layout"])
    # Integers go through float64 (exact below 2^53), because numpy has no fast integer matrix product.
    widened = x.dtype == "bfloat16" and attrs["out_dtype"] == "float32"
    work = np.float64 if integer else np.float32 if widened else x.dtype
    x = x.astype(work) - np.asarray(zero, work) if integer else x.astype(work, copy=False)
    groups, per_group = attrs["groups"], w.shape[0] // attrs["groups"]
    outs = win.output_extents(x.shape[1:-1], w.shape[2:], attrs)
    result = np.empty((x.shape[0], *outs, w.shape[0]), work)
    depth = w.shape[1]
    for g in range(groups):
        view = win.windows(x[..., g * depth : (g + 1) * depth], w.shape[2:], attrs, 0)
        rows = np.ascontiguousarray(view).reshape(-1, int(np.prod(w.shape[1:])))
        part = slice(g * per_group, (g + 1) * per_group)
        kernel = w[part].reshape(per_group, -1).astype(work)
        result[..., part] = (rows @ kernel.T).reshape(*result.shape[:-1], per_group)
    return win.from_channels_last(result.astype(attrs["out_dtype"]), attrs["layout"])


CONV = register(OpSpec("dlc.conv", "contraction", _meaning, _infer))
