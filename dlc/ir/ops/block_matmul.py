"""`dlc.block_matmul`: rows of int8 times 4-bit weights that have a scale for each block of K.

Inputs:

- x (R, K) int8, symmetric: the zero point is 0.
- w (K/2, N) uint8: byte (i, n) holds the codes of k = 2i in its low and of k = 2i + 1 in its high four bits, each
  plus 8.
- scales (K/block, N) bfloat16.
- groups (R,) integer, optional: then w is (G, K/2, N), scales are (G, K/block, N), and each row is multiplied by the
  matrix of its group, as in `dlc.grouped_matmul`.

The result (R, N) is float32: for each block the exact integer sum, as float32, times its scale; these are added from
the first block to the last, each step rounded. All targets do it in this order, so they give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same

NAME = "dlc.block_matmul"


def unpack(w: np.ndarray) -> np.ndarray:
    """The codes (..., K, N) int8, from -8 to 7, of packed weights (..., K/2, N)."""
    halves = np.stack([w & 15, w >> 4], axis=-2).astype(np.int8) - np.int8(8)
    return np.asarray(halves.reshape(*w.shape[:-2], -1, w.shape[-1]))


def pack(codes: np.ndarray) -> np.ndarray:
    """The inverse of `unpack`; K must be even."""
    raised = (codes.astype(np.int16) + 8).astype(np.uint8)
    return np.asarray(raised[..., 0::2, :] | raised[..., 1::2, :] << 4)


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (x, activation), (w, weight), (scales, scale), *groups = types
    if (activation, weight, scale) != ("int8", "uint8", "bfloat16"):
        raise ValueError(f"block matmul of {activation} by {weight} with scales of {scale}")
    leading = 1 if groups else 0
    fits = len(x) == 2 and len(w) == len(scales) == 2 + leading
    fits = fits and all(isinstance(d, int) for d in (x[-1], *w, *scales))
    fits = fits and w[:leading] == scales[:leading] and w[-1] == scales[-1]
    fits = fits and x[-1] == 2 * w[-2] and scales[-2] > 0 and x[-1] % scales[-2] == 0
    if not fits:
        raise ValueError(f"block matmul of {list(x)} by {list(w)} with scales {list(scales)}")
    if groups and not (len(groups[0][0]) == 1 and same(x[0], groups[0][0][0]) and "int" in groups[0][1]):
        raise ValueError(f"{x[0]} rows and groups {list(groups[0][0])} of {groups[0][1]}")
    return (x[0], w[-1]), "float32"


def _product(x: np.ndarray, w: np.ndarray, scales: np.ndarray) -> np.ndarray:
    blocks, codes = scales.shape[0], unpack(w)
    size = codes.shape[0] // blocks
    wide = scales.astype(np.float32)
    result = np.zeros((x.shape[0], codes.shape[1]), np.float32)
    for block in range(blocks):
        part = slice(block * size, (block + 1) * size)
        exact = x[:, part].astype(np.float64) @ codes[part].astype(np.float64)
        result += exact.astype(np.float32) * wide[block]
    return result


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    x, w, scales, *groups = inputs
    if not groups:
        return _product(x, w, scales)
    result = np.zeros((x.shape[0], w.shape[-1]), np.float32)
    chosen = np.where(groups[0] < 0, groups[0] + w.shape[0], groups[0])
    for group in np.unique(chosen):
        result[chosen == group] = _product(x[chosen == group], w[group], scales[group])
    return result


BLOCK_MATMUL = register(OpSpec(NAME, "contraction", _meaning, _infer))
