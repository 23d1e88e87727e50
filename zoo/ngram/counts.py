"""Counting n-grams: tries in arrays, built and searched without a loop over n-grams.

The n-grams of one order that occur are numbered in the order of (number of their first n - 1 words, last word), so
those with one history lie side by side. Level 1 is the vocabulary itself: the number of a 1-gram is its word's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The n-grams of one order n >= 2 that occur, m of them.

    Attributes:
        parent: (m,) number of the first n - 1 words, one order below; ascending.
        word: (m,) the last word; ascending within a parent.
        suffix: (m,) number of the last n - 1 words, one order below.
        count: (m,) how often it occurs.
    """

    parent: Ints
    word: Ints
    suffix: Ints
    count: Ints

    def find(self, parent: Ints, word: Ints, vocabulary: int) -> Ints:
        """The numbers of n-grams given by parent and last word; -1 where there is none, or no parent (-1)."""
        if not len(self.word):
            return np.full(np.shape(parent), -1, np.int64)
        wanted = parent * vocabulary + word
        keys = self.parent * vocabulary + self.word
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((parent >= 0) & (keys[at] == wanted), at, -1)


@dataclass(frozen=True)
class Counts:
    """The counts of every order up to ``order``.

    Attributes:
        vocabulary: number of words.
        first: (vocabulary,) occurrences of each word.
        start: the word that only marks where a text begins, if any; it is never predicted.
        levels: of order 2, 3, ...
    """

    vocabulary: int
    first: Ints
    levels: tuple[Level, ...]
    start: int | None = None

    @property
    def order(self) -> int:
        """The highest order counted."""
        return len(self.levels) + 1

    def walk(self, words: Ints) -> Ints:
        """The numbers of n-grams given by their words, (n, k) with k up to the order; -1 where one does not occur."""
        at = words[:, 0]
        for level, word in zip(self.levels, words.T[1:], strict=False):
            at = level.find(at, word, self.vocabulary)
        return at


def count(texts: list[NDArray[np.integer]], vocabulary: int, order: int, start: int | None = None) -> Counts:
    """Count the n-grams of some texts; none reaches over the border of a text.

    Args:
        texts: word numbers, each (n,).
        vocabulary: number of words.
        order: the highest order to count, at least 1.
        start: see `Counts`; a text that has it begins with it.

    Raises:
        ValueError: there is no word.
    """
    stream = np.concatenate([np.asarray(text, np.int64) for text in texts]) if texts else np.zeros(0, np.int64)
    if not len(stream):
        raise ValueError("there are no words to count")
    begins = np.cumsum([0, *(len(text) for text in texts)])[:-1]
    place = np.arange(len(stream)) - np.repeat(begins, [len(text) for text in texts])  # of each word in its text
    predicted = stream if start is None else stream[stream != start]
    first = np.bincount(predicted, minlength=vocabulary)
    levels = []
    ends = stream  # number of the n-gram of the present order that ends at each position
    for length in range(2, order + 1):
        valid = np.flatnonzero(place >= length - 1)
        keys, where, numbers, counts = np.unique(
            ends[valid - 1] * vocabulary + stream[valid], return_index=True, return_inverse=True, return_counts=True
        )
        levels.append(Level(keys // vocabulary, keys % vocabulary, ends[valid[where]], counts))
        longer = np.full(len(stream), -1, np.int64)
        longer[valid] = numbers
        ends = longer
    return Counts(vocabulary, first, tuple(levels), start)
