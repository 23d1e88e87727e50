"""`dlc.backoff_score`: log10 P of the last words of n-grams by back-off, out of one hash table of all orders.

Inputs: ngram (N, n) int64; log10_1 and backoff_1 (V,) float32, of the words; slots (S, 8) int64; log10 and backoff
(M,) float32. The result is float32 (N,).

A slot holds ``print * 2**32 + place``, or -1 where it is empty. The n-gram w_1 ... w_k, read from its last word, has
two hashes, ``h = (h + word + 1) * factor mod prime``: the first chooses its row of 8 slots, ``h * rows >> 31`` with
``rows = S - probes + 1``; the second is its print. It is looked for there and in the rows that follow, `probes` (an
attribute) in all, until a row has it or has an empty slot. Its probability is ``log10[place]``, its back-off weight
``backoff[place]``. A table of 8-bit values has at most 65,536 places: the pairs of two codes. An n-gram that is not
listed is taken for another one with a probability below 2**-27 a row. Words outside of [0, V), and places outside of
[0, M), are pulled in; of several slots with one print in a row the largest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same

NAME = "dlc.backoff_score"
ROW = 8
#: (prime, factor) of the hash that chooses the row, and of the print. Products stay below 2**63.
HASHES = ((2147483647, 1274519383), (2147483629, 1812433253))


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    shapes, dtypes = [shape for shape, _ in types], [dtype for _, dtype in types]
    ranks = [len(shape) for shape in shapes]
    if dtypes != ["int64", "float32", "float32", "int64", "float32", "float32"] or ranks != [2, 1, 1, 2, 1, 1]:
        raise ValueError(f"a back-off score of {dtypes} of {ranks} dimensions")
    (_, order), first, first_backoff, (rows, width), log10, backoff = shapes
    if not same(first[0], first_backoff[0]) or not same(log10[0], backoff[0]) or not same(width, ROW):
        raise ValueError(f"a back-off score over tables of {[list(shape) for shape in shapes[1:]]}")
    extents = [order, first[0], rows, log10[0]]
    if not all(isinstance(extent, int) for extent in extents) or min(extents) < 1 or rows < attrs["probes"]:
        raise ValueError(f"a back-off score over {extents}, with {attrs['probes']} probes")
    return (shapes[0][0],), "float32"


def hashes(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two hashes, int64 (N,), of n-grams (N, k) of words that are not negative."""
    found = []
    for prime, factor in HASHES:
        value = np.zeros(len(words), np.int64)
        for column in words.T[::-1]:
            value = (value + column + 1) * factor % prime
        found.append(value)
    return found[0], found[1]


def find(slots: np.ndarray, words: np.ndarray, probes: int) -> np.ndarray:
    """The places, int64 (N,), of n-grams (N, k); -1 where one is not listed."""
    first, mark = hashes(words)
    home = first * (len(slots) - probes + 1) >> 31
    read = np.maximum(slots[home[:, None] + np.arange(probes)], -1)
    rest = read - (mark << 32)[:, None, None]
    best = np.where((rest >= 0) & (rest < 1 << 32), rest, -1).max(2)
    ended = (best >= 0) | (read.min(2) < 0)
    return best[np.arange(len(words)), ended.argmax(1)]


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    ngram, log10_1, backoff_1, slots, log10, backoff = inputs
    words = np.clip(ngram, 0, len(log10_1) - 1)
    result = log10_1[words[:, -1]]
    for k in range(2, words.shape[1] + 1):
        gram = words[:, -k:]
        if k == 2:
            weight = backoff_1[gram[:, 0]]
        else:
            place = find(slots, gram[:, :-1], attrs["probes"])
            weight = np.where(place >= 0, backoff[np.clip(place, 0, len(log10) - 1)], backoff.dtype.type(0))
        place = find(slots, gram, attrs["probes"])
        result = np.where(place >= 0, log10[np.clip(place, 0, len(log10) - 1)], weight + result)
    return result


BACKOFF_SCORE = register(OpSpec(NAME, "opaque", _meaning, _infer))
