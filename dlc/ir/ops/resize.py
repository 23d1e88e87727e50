"""`dlc.resize`: resampling along any dimensions: nearest, linear or cubic (ONNX Resize).

Attributes: shape (the output's extents), scales (one float a dimension, 1.0 where nothing happens), mode (nearest,
linear, cubic), coordinates (half_pixel, half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric,
tf_crop_and_resize), nearest (round_prefer_floor, round_prefer_ceil, floor, ceil), cubic (the coefficient a), antialias,
exclude_outside, roi (starts then ends, for tf_crop_and_resize), extrapolation (the value outside the input there).

Every mode is separable: dimension after dimension, each output is the sum of a few inputs times weights. Weights and
sums are float64, every product and sum rounded on its own, sums in the order of the inputs; an integer result is
rounded half to even in the end. Targets follow this exactly for integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    ((shape, dtype),) = types
    if len(attrs["shape"]) != len(shape) or len(attrs["scales"]) != len(shape):
        raise ValueError(f"extents {list(attrs['shape'])} and scales {list(attrs['scales'])} for {list(shape)}")
    if any(s <= 0 for s in attrs["scales"]):
        raise ValueError(f"scales {list(attrs['scales'])} must be positive")
    return attrs["shape"], dtype


def source_positions(length: int, size: int, axis: int, attrs: Mapping[str, Any]) -> np.ndarray:
    """Where each of `size` outputs lies on an axis of `length` inputs; float64."""
    out, scale = np.arange(size, dtype=np.float64), attrs["scales"][axis]
    mode = attrs["coordinates"]
    exact = scale * length  # the extent before it was rounded down to `size`
    if mode == "align_corners":
        return out * (length - 1) / (exact - 1) if size > 1 else out * 0
    if mode == "asymmetric":
        return out / scale
    if mode == "tf_crop_and_resize":
        rank = len(attrs["shape"])
        start, end = attrs["roi"][axis], attrs["roi"][rank + axis]
        if size > 1:
            return start * (length - 1) + out * (end - start) * (length - 1) / (exact - 1)
        return out * 0 + 0.5 * (start + end) * (length - 1)
    if mode == "pytorch_half_pixel" and size <= 1:
        return out * 0
    position = (out + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        # What rounding took away is shared by both ends.
        adjustment = size / exact
        position += length / 2 * (1 - adjustment)
    return position


def is_resized(length: Any, size: Any, axis: int, attrs: Mapping[str, Any]) -> bool:
    """Whether anything happens along an axis of `length` inputs and `size` outputs."""
    return not same(length, size) or attrs["scales"][axis] != 1.0 or attrs["coordinates"] == "tf_crop_and_resize"


def reach(axis: int, attrs: Mapping[str, Any]) -> tuple[float, float]:
    """(how far an output sees along an axis, in inputs; what shrinks distances: antialiasing stretches the kernel)."""
    scale = min(attrs["scales"][axis], 1.0) if attrs["antialias"] else 1.0
    return (1.0 if attrs["mode"] == "linear" else 2.0) / scale, scale


def tap_count(axis: int, attrs: Mapping[str, Any]) -> int:
    """Inputs that make an output along one axis."""
    return 1 if attrs["mode"] == "nearest" else math.ceil(2 * reach(axis, attrs)[0])


def _nearest(position: np.ndarray, mode: str) -> np.ndarray:
    if mode in ("floor", "ceil"):
        return np.floor(position) if mode == "floor" else np.ceil(position)
    return np.ceil(position - 0.5) if mode == "round_prefer_floor" else np.floor(position + 0.5)


def _linear(d: np.ndarray) -> np.ndarray:
    return np.maximum(1 - d, 0.0)


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def taps(length: int, size: int, axis: int, attrs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What makes each output along one axis: the inputs' positions, int64, and their weights, float64; (size, taps)."""
    position = source_positions(length, size, axis, attrs)[:, np.newaxis]
    if attrs["mode"] == "nearest":
        index = _nearest(position, attrs["nearest"])
        return np.clip(index, 0, length - 1).astype(np.int64), np.ones((size, 1))
    far, scale = reach(axis, attrs)
    index = np.floor(position - far) + 1 + np.arange(tap_count(axis, attrs))
    distance = np.abs((index - position) * scale)
    weight = _linear(distance) if attrs["mode"] == "linear" else _cubic(distance, attrs["cubic"])
    if attrs["exclude_outside"]:
        weight = np.where((index >= 0) & (index < length), weight, 0.0)
    total = np.zeros((size, 1))
    for column in weight.T:
        total += column[:, np.newaxis]
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=total != 0)
    return np.clip(index, 0, length - 1).astype(np.int64), weight


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    exact = attrs["mode"] == "nearest"
    result = x if exact else x.astype(np.float64)
    outside = np.zeros(attrs["shape"], bool)
    for axis, (length, size) in enumerate(zip(x.shape, attrs["shape"], strict=True)):
        if not is_resized(length, size, axis, attrs):
            continue
        index, weight = taps(length, size, axis, attrs)
        column = [-1 if i == axis else 1 for i in range(x.ndim)]
        if exact:
            result = np.take(result, index[:, 0], axis=axis)
        else:
            parts = [np.take(result, i, axis=axis) * w.reshape(column) for i, w in zip(index.T, weight.T, strict=True)]
            result = np.asarray(sum(parts))
        if attrs["coordinates"] == "tf_crop_and_resize":
            position = source_positions(length, size, axis, attrs)
            outside |= ((position < 0) | (position > length - 1)).reshape(column)
    if x.dtype.kind in "iu" and not exact:
        info = np.iinfo(x.dtype)
        result = np.clip(np.rint(result), info.min, info.max)
    result = np.where(outside, attrs["extrapolation"], result) if outside.any() else result
    return np.ascontiguousarray(result).astype(x.dtype)


RESIZE = register(OpSpec("dlc.resize", "opaque", _meaning, _infer))
