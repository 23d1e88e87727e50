"""`dlc.resize`: resampling along any dimensions: nearest, linear or cubic (ONNX Resize).

Attributes: shape (the output's extents), scales (one float a dimension, 1.0 where nothing happens), mode (nearest,
linear, cubic), coordinates (half_pixel, half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric,
tf_crop_and_resize), nearest (round_prefer_floor, round_prefer_ceil, floor, ceil), cubic (the coefficient a), antialias,
exclude_outside, roi (starts then ends, for tf_crop_and_resize), extrapolation (the value outside the input there).

Every mode is separable: one matrix of weights a dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register


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


def _nearest(position: float, mode: str) -> int:
    if mode == "floor":
        return math.floor(position)
    if mode == "ceil":
        return math.ceil(position)
    return math.ceil(position - 0.5) if mode == "round_prefer_floor" else math.floor(position + 0.5)


def _linear(distance: float) -> float:
    return max(1 - abs(distance), 0.0)


def _cubic(a: float) -> Callable[[float], float]:
    def weight(distance: float) -> float:
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    return weight


def weights(length: int, size: int, axis: int, attrs: Mapping[str, Any]) -> np.ndarray:
    """The matrix (size, length) that resamples one axis."""
    matrix = np.zeros((size, length))
    positions = source_positions(length, size, axis, attrs)
    mode, scale = attrs["mode"], min(attrs["scales"][axis], 1.0) if attrs["antialias"] else 1.0
    for row, position in zip(matrix, positions, strict=True):
        if mode == "nearest":
            row[min(max(_nearest(position, attrs["nearest"]), 0), length - 1)] = 1
            continue
        kernel, reach = (_linear, 1.0) if mode == "linear" else (_cubic(attrs["cubic"]), 2.0)
        # Antialiasing stretches the kernel over the inputs that one output covers.
        first, last = math.floor(position - reach / scale) + 1, math.ceil(position + reach / scale)
        taps = [(i, kernel((i - position) * scale)) for i in range(first, last)] or [(math.floor(position), 1.0)]
        if attrs["exclude_outside"]:
            taps = [(i, w) for i, w in taps if 0 <= i < length]
        total = sum(w for _, w in taps)
        for index, tap in taps:
            row[min(max(index, 0), length - 1)] += tap / total if total else 0.0
    return matrix


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    (x,) = inputs
    exact = attrs["mode"] == "nearest"
    result = x if exact else x.astype(np.float64)
    outside = np.zeros(attrs["shape"], bool)
    for axis, (length, size) in enumerate(zip(x.shape, attrs["shape"], strict=True)):
        crop = attrs["coordinates"] == "tf_crop_and_resize"
        if length == size and attrs["scales"][axis] == 1.0 and not crop:
            continue
        matrix = weights(length, size, axis, attrs)
        if exact:
            result = np.take(result, matrix.argmax(axis=1), axis=axis)
        else:
            result = np.moveaxis(np.tensordot(matrix, result, axes=(1, axis)), 0, axis)
        if crop:
            position = source_positions(length, size, axis, attrs)
            column = (position < 0) | (position > length - 1)
            outside |= column.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    if x.dtype.kind in "iu" and not exact:
        info = np.iinfo(x.dtype)
        result = np.clip(np.rint(result), info.min, info.max)
    result = np.where(outside, attrs["extrapolation"], result) if outside.any() else result
    return np.ascontiguousarray(result).astype(x.dtype)


RESIZE = register(OpSpec("dlc.resize", "opaque", _meaning, _infer))
