"""`dlc.sample`: the values of images at any positions between their pixels.

Inputs: x (N, C, spatial...) with 1 to 3 spatial dimensions; positions (N, P..., rank), float32 or float64, in pixels (0
is the centre of the first one) in the order of x's spatial dimensions. Output (N, C, P...) of x's type.

Attributes: mode: ``nearest`` (a half goes to the even pixel), ``linear``, or ``cubic`` (the convolution kernel with
coefficient -0.75); padding: what lies outside: ``zeros``, ``edge`` (the nearest pixel), ``reflect`` (mirrored at the
centres of the outer pixels), ``symmetric`` (mirrored at their outer edges). The weights of the pixels around a position
are products of one weight a dimension, computed in the wider of float32, x's and the positions' type. A position that
is not a number lies outside, far to the left.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same

_MODES, _PADDINGS = ("nearest", "linear", "cubic"), ("zeros", "edge", "reflect", "symmetric")
_CUBIC = -0.75
_FARTHEST = 2.0**31


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (x, dtype), (positions, kind) = types
    rank = len(x) - 2
    if not 1 <= rank <= 3 or len(positions) < 2 or positions[-1] != rank:
        raise ValueError(f"positions {list(positions)} do not fit an activation {list(x)}")
    if isinstance(x[0], int) and isinstance(positions[0], int) and not same(x[0], positions[0]):
        raise ValueError(f"{x[0]} images, positions for {positions[0]}")
    if kind not in ("float32", "float64"):
        raise ValueError(f"positions must be float32 or float64, got {kind}")
    if attrs["mode"] not in _MODES or attrs["padding"] not in _PADDINGS:
        raise ValueError(f"mode '{attrs['mode']}' with padding '{attrs['padding']}'")
    return (x[0], x[1], *positions[1:-1]), dtype


def _taps(position: np.ndarray, mode: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pixels around a position on one dimension: (index as float, weight)."""
    with np.errstate(invalid="ignore"):
        if mode == "nearest":
            return [(np.rint(position), np.ones_like(position))]
        base = np.floor(position)
        t = position - base
        if mode == "linear":
            return [(base, 1 - t), (base + 1, t)]
        a = position.dtype.type(_CUBIC)

        def inner(d: np.ndarray) -> np.ndarray:
            return ((a + 2) * d - (a + 3)) * d * d + 1

        def outer(d: np.ndarray) -> np.ndarray:
            return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

        weights = (outer(t + 1), inner(t), inner(1 - t), outer(2 - t))
        return [(base + (i - 1), weight) for i, weight in enumerate(weights)]


def _inside(index: np.ndarray, extent: int, padding: str) -> tuple[np.ndarray, np.ndarray]:
    """The pixel that stands for an index, and whether there is one."""
    bounded = np.nan_to_num(index, nan=-_FARTHEST, posinf=_FARTHEST, neginf=-_FARTHEST)
    place = np.clip(bounded, -_FARTHEST, _FARTHEST).astype(np.int64)
    if padding == "edge":
        place = np.clip(place, 0, extent - 1)
    elif padding == "reflect":
        period = max(2 * (extent - 1), 1)
        place = np.mod(place, period)
        place = np.where(place >= extent, period - place, place)
    elif padding == "symmetric":
        place = np.mod(place, 2 * extent)
        place = np.where(place >= extent, 2 * extent - 1 - place, place)
    there = (place >= 0) & (place < extent)
    return np.clip(place, 0, extent - 1), there


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, positions = inputs
    extents, mode = x.shape[2:], attrs["mode"]
    count, shape = x.shape[0], (*x.shape[:2], *positions.shape[1:-1])
    if 0 in shape or 0 in extents:
        return np.zeros(shape, x.dtype)
    flat = x.reshape(*x.shape[:2], -1)
    rows = positions.reshape(count, -1, len(extents))
    axes = [
        [(*_inside(index, extents[i], attrs["padding"]), weight) for index, weight in _taps(rows[..., i], mode)]
        for i in range(len(extents))
    ]
    work = np.float64 if np.float64 in (x.dtype, positions.dtype) else np.float32
    total: Any = 0
    for corner in itertools.product(*axes):
        place, there = np.zeros(rows.shape[:2], np.int64), np.ones(rows.shape[:2], bool)
        weight = np.ones(rows.shape[:2], work)
        for (index, inside, part), extent in zip(corner, extents, strict=True):
            place, there, weight = place * extent + index, there & inside, weight * part.astype(work)
        picked = np.take_along_axis(flat, place[:, None, :], axis=2)
        if mode == "nearest":
            return np.where(there[:, None, :], picked, np.zeros((), x.dtype)).reshape(shape)
        with np.errstate(invalid="ignore"):
            total = total + np.where(there[:, None, :], picked.astype(work) * weight[:, None, :], work(0))
    return np.asarray(total).astype(x.dtype).reshape(shape)


SAMPLE = register(OpSpec("dlc.sample", "opaque", _meaning, _infer))
