"""What convolution and pooling share: the attributes of a sliding window, `auto_pad` resolved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor

CHANNELS_FIRST = "channels_first"


def window(c: Context, x: Tensor, kernel: Sequence[int]) -> dict[str, Any]:
    """strides, pads and dilations for a window over the spatial dimensions of `x`, checked."""
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise ConversionError(f"windows over {rank} spatial dimensions are not supported, only 1 to 3")
    if x.rank != rank + 2:
        raise ConversionError(f"a window over {rank} spatial dimensions on an activation of shape {x}")
    strides = one_each(c, "strides", rank)
    dilations = one_each(c, "dilations", rank)
    pads = _pads(c, x.shape[2:], kernel, strides, dilations)
    if any(v < 1 for v in (*kernel, *strides, *dilations)):
        raise ConversionError(f"kernel {list(kernel)}, strides {strides} and dilations {dilations} must be positive")
    return {"strides": tuple(strides), "pads": tuple(pads), "dilations": tuple(dilations), "layout": CHANNELS_FIRST}


def one_each(c: Context, name: str, rank: int, default: int = 1) -> list[int]:
    """An attribute with one value a spatial dimension."""
    values = c.attr(name) or [default] * rank
    if len(values) != rank:
        raise ConversionError(f"attribute '{name}' {values} must have {rank} values")
    return list(values)


def _pads(
    c: Context, extents: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    mode, rank = c.attr("auto_pad", "NOTSET"), len(kernel)
    if mode == "VALID":
        return [0] * (2 * rank)
    if mode == "NOTSET":
        pads = list(c.attr("pads") or [0] * (2 * rank))
        if len(pads) != 2 * rank or any(p < 0 for p in pads):
            raise ConversionError(f"attribute 'pads' {pads} must have {2 * rank} values that are not negative")
        return pads
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise ConversionError(f"attribute 'auto_pad' is '{mode}'")
    begins, ends = [], []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        span = dilation * (size - 1) + 1
        if stride == 1:
            total = span - 1
        elif isinstance(extent, int):
            total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
        else:
            raise HostError(f"auto_pad {mode} with stride {stride} needs a known extent, not {extent}")
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends
