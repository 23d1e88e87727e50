"""Quantising a weight together with what it meets: the input's scale, the bias, and powers of two where asked for."""

from __future__ import annotations

import numpy as np

from dlc.ir import arithmetic

_LARGEST_SCALE = 1e30  # a bias that needs more does not fit the accumulator; that is found when it is formed


def _rows(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _powers(weight: np.ndarray, axis: int, scales: np.ndarray) -> np.ndarray:
    """For each channel the better one, by squared error, of the two powers of two around its scale."""
    rows = _rows(weight, axis).astype(np.float64)
    lower = 2.0 ** np.floor(np.log2(scales.astype(np.float64)))
    errors = []
    for step in (lower, 2 * lower):
        codes = np.clip(np.rint(rows / step[:, None]), -127, 127)
        errors.append(np.sum((rows - codes * step[:, None]) ** 2, axis=1))
    return np.where((errors[0] <= errors[1]) | (lower == scales), lower, 2 * lower).astype(np.float32)


def quantize_weight(
    weight: np.ndarray, axis: int, x_scale: float, bias: np.ndarray | None, shift: bool
) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and one scale an output channel, such that the bias fits the accumulator.

    A channel of small weights with a large bias gets a larger scale than its weights need: the accumulator's step is
    ``x_scale * scale``, and the bias must fit int32 in it. A channel without weights gets the scale that represents its
    bias to 20 bits. With `shift` the scales are powers of two, the better neighbour by squared error.
    """
    channels = weight.shape[axis]
    magnitude = np.zeros(channels) if bias is None else bias.astype(np.float64)
    least = np.minimum(magnitude / (float(x_scale) * 2.0**30), _LARGEST_SCALE)
    codes, scales = arithmetic.quantize_weight(weight, axis, minimum_scale=least.astype(np.float32))
    empty = np.max(np.abs(_rows(weight, axis)), axis=1, initial=0) == 0
    fine = np.clip(magnitude / (float(x_scale) * 2.0**20), np.finfo(np.float32).tiny, _LARGEST_SCALE)
    scales = np.where(empty & (magnitude > 0), fine, scales).astype(np.float32)
    if shift:
        scales = np.where(empty, arithmetic.power_of_two(scales), _powers(weight, axis, scales)).astype(np.float32)
        shape = [1] * weight.ndim
        shape[axis] = -1
        codes = np.clip(np.rint(weight / scales.reshape(shape)), -127, 127).astype(np.int8)
    return codes, scales
