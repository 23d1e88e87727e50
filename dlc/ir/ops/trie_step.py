"""`dlc.trie_step`: from the numbers of n-grams to the numbers of those that continue them by a word.

Inputs: parent (N,) and word (N,), int32; offsets (P + 1,) int32 and words (M + 1,) int16 or int32, the tables of one
order. The continuations of number p are offsets[p] up to offsets[p + 1], without that, and their words ascend. The
result, int32 (N,), is the number of the one whose word is `word`, or M, "none". It is a binary search of `halvings`
steps, an attribute; where that is too few for a set, what is left of the set is not looked at. Positions outside a
table are pulled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register
from dlc.ir.ops.shapes import same

NAME = "dlc.trie_step"


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    (parent, a), (word, b), (offsets, c), (words, d) = types
    if (a, b, c) != ("int32", "int32", "int32") or d not in ("int16", "int32"):
        raise ValueError(f"a trie step of {a} and {b} over offsets of {c} and words of {d}")
    if not all(len(shape) == 1 for shape in (parent, word, offsets, words)) or not same(parent[0], word[0]):
        raise ValueError(f"a trie step of {list(parent)} and {list(word)} over {list(offsets)} and {list(words)}")
    return parent, "int32"


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    parent, word, offsets, words = inputs
    none = len(words) - 1

    def taken(table: np.ndarray, position: np.ndarray) -> np.ndarray:
        wrapped = np.where(position < 0, position.astype(np.int64) + len(table), position)
        return table[np.clip(wrapped, 0, len(table) - 1)].astype(np.int32)

    base, end = taken(offsets, parent), taken(offsets, parent + np.int32(1))
    size = end - base
    some = size > 0
    for _ in range(attrs["halvings"]):
        half = (size / 2).astype(np.int32)  # towards zero
        middle = base + half
        base = np.where(taken(words, middle) <= word, middle, base)
        size = size - half
    found = (taken(words, base) == word) & some
    return np.where(found, base, np.int32(none)).astype(np.int32)


TRIE_STEP = register(OpSpec(NAME, "opaque", _meaning, _infer))
