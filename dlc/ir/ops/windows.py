"""Sliding windows over 1 to 3 spatial dimensions, in either layout: shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"


def spatial(shape: Sequence[Any], layout: str) -> Sequence[Any]:
    """The spatial extents of an activation's shape."""
    return shape[2:] if layout == CHANNELS_FIRST else shape[1:-1]


def channels(shape: Sequence[Any], layout: str) -> Any:
    """The channel extent of an activation's shape."""
    return shape[1] if layout == CHANNELS_FIRST else shape[-1]


def join(batch: Any, channel: Any, extents: Sequence[Any], layout: str) -> tuple[Any, ...]:
    """An activation's shape from its parts."""
    return (batch, channel, *extents) if layout == CHANNELS_FIRST else (batch, *extents, channel)


def output_extents(extents: Sequence[Any], kernel: Sequence[int], attrs: Mapping[str, Any]) -> list[Any]:
    """Output extents of a window operator (ONNX's formula); raises ValueError when a window does not fit.

    `attrs` holds strides, pads (begins then ends), dilations and, for pooling, ceil_mode.
    """
    rank = len(kernel)
    strides, pads, dilations = attrs["strides"], attrs["pads"], attrs["dilations"]
    result = []
    for i, extent in enumerate(extents):
        room = extent + pads[i] + pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1
        if isinstance(room, int) and room < 0:
            raise ValueError(f"a window of {kernel[i]} (dilation {dilations[i]}) does not fit extent {extent}")
        if attrs.get("ceil_mode"):
            # ceil(room / stride) + 1, but a window that would start in the end padding is dropped (ONNX, as in torch):
            # at most ceil((extent + begin) / stride). The smaller of both, without a comparison of extents.
            beyond = min(pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1 + strides[i], 0)
            count = (extent + pads[i] + beyond + strides[i] - 1) // strides[i]
        else:
            count = room // strides[i] + 1
        result.append(count)
    return result


def to_channels_last(x: np.ndarray, layout: str) -> np.ndarray:
    """View of an activation as (N, spatial..., C)."""
    return np.moveaxis(x, 1, -1) if layout == CHANNELS_FIRST else x


def from_channels_last(x: np.ndarray, layout: str) -> np.ndarray:
    """Inverse of `to_channels_last`, contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1) if layout == CHANNELS_FIRST else x)


def windows(x: np.ndarray, kernel: Sequence[int], attrs: Mapping[str, Any], fill: Any) -> np.ndarray:
    """All windows of a channels-last activation: (N, out..., C, kernel...), padded with `fill`; a strided view."""
    rank = len(kernel)
    strides, pads, dilations = attrs["strides"], attrs["pads"], attrs["dilations"]
    outs = output_extents(x.shape[1:-1], kernel, attrs)
    # ceil_mode may need more room at the end than the padding gives.
    ends = [
        max(pads[rank + i], (outs[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - x.shape[1 + i] - pads[i])
        for i in range(rank)
    ]
    padded = np.pad(
        x, [(0, 0), *((pads[i], ends[i]) for i in range(rank)), (0, 0)], constant_values=np.asarray(fill, x.dtype)
    )
    spans = [dilations[i] * (kernel[i] - 1) + 1 for i in range(rank)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, 1 + rank)))
    picks = [slice(None), *(slice(None, None, strides[i]) for i in range(rank)), slice(None)]
    picks += [slice(None, None, dilations[i]) for i in range(rank)]
    return view[tuple(picks)][(slice(None), *(slice(0, n) for n in outs))]
