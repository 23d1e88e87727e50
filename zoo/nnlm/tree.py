"""Trees of words for the hierarchical output layers, made from word categories.

The categories are those that the n-gram family's exchange algorithm learns from bigrams. ``tree.npz`` holds, for each
word of the vocabulary, ``category`` uint16 and ``count`` int32, its occurrences in the training part. The categories
are numbered so that neighbours are alike (`arrange`), so one order of the words gives both trees: by category, the
most frequent words of each first.

Two levels (Goodman, "Classes for fast maximum entropy training", 2001): categories, cut into classes of at most
`WIDEST` words, and the words of a class. Binary (Morin and Bengio 2005): the order is split where both halves occur
equally often, and so on, which gives a word a path of about -log2 of its frequency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.ngram import data
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.evaluate import learn_categories

WIDEST = 32
_PATH = Path(__file__).parent / "tree.npz"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """What the output layers know of the vocabulary.

    Attributes:
        category: (vocabulary,) of each word.
        count: (vocabulary,) occurrences in the training part.
    """

    category: Ints
    count: Ints

    @property
    def share(self) -> NDArray[np.float64]:
        """(vocabulary,) the unigram distribution; half an occurrence is added, so that no word has none."""
        seen = self.count + 0.5
        return seen / seen.sum()

    @property
    def order(self) -> Ints:
        """(vocabulary,) the words by category, the most frequent of each first."""
        return np.lexsort((-self.count, self.category))


@dataclass(frozen=True)
class Classes:
    """The tree of two levels.

    Attributes:
        order: (vocabulary,) the words, class by class.
        start: (classes,) where in `order` each class begins.
        size: (classes,) its number of words.
        of: (vocabulary,) the class of each word.
        slot: (vocabulary,) the place of each word within its class.
    """

    order: Ints
    start: Ints
    size: Ints
    of: Ints
    slot: Ints


@dataclass(frozen=True)
class Paths:
    """The binary tree.

    Attributes:
        node: (vocabulary, depth) the inner nodes from the root to each word; behind the path's end 0.
        sign: (vocabulary, depth) 1 to go left there and -1 to go right; behind the path's end 0.
    """

    node: Ints
    sign: Ints


def load_words() -> Words:
    """The committed categories and counts."""
    with np.load(_PATH) as arrays:
        return Words(arrays["category"].astype(np.int64), arrays["count"].astype(np.int64))


def write_words(corpus: data.Corpus, report: Callable[[str], None]) -> None:
    """Write ``tree.npz`` again; learning the categories takes minutes where the cache has none."""
    ids = corpus.part("train")
    category, _ = learn_categories(count([ids], len(corpus.words), 2), report)
    seen = np.bincount(ids, minlength=len(corpus.words))
    arranged = arrange(category[ids])[category]
    np.savez_compressed(_PATH, category=arranged.astype(np.uint16), count=seen.astype(np.int32))


def arrange(stream: Ints) -> Ints:
    """Number categories anew, so that neighbours are alike.

    Each is described by the shares of the categories before and behind it (square roots, which make the Euclidean
    distance Hellinger's). The set is cut in two halves of equal frequency along its first principal component, and
    each half again.

    Args:
        stream: (n,) the categories of a text's words.

    Returns:
        (categories,) the new number of each.
    """
    size = int(stream.max()) + 1
    table = np.bincount(stream[:-1] * size + stream[1:], minlength=size * size).reshape(size, size).astype(float)
    weight = table.sum(1) + 0.5
    profile = np.concatenate([np.sqrt(t / np.maximum(t.sum(1, keepdims=True), 1)) for t in (table, table.T)], 1)

    def sort(members: Ints) -> list[int]:
        if len(members) <= 2:
            return list(members)
        rows = profile[members] - np.average(profile[members], 0, weight[members])
        axis = np.linalg.svd(rows * np.sqrt(weight[members])[:, None], full_matrices=False)[2][0]
        axis *= np.sign(axis[np.abs(axis).argmax()])  # the sign of a singular vector is arbitrary
        members = members[np.argsort(rows @ axis, kind="stable")]
        cut = halve(weight[members])
        return sort(members[:cut]) + sort(members[cut:])

    number = np.empty(size, np.int64)
    number[sort(np.arange(size))] = np.arange(size)
    return number


def halve(weight: NDArray[np.float64]) -> int:
    """Where to cut a row of at least two weights, so that the heavier part is the least heavy; neither is empty."""
    ahead = np.cumsum(weight)[:-1]
    return int(np.abs(2 * ahead - weight.sum()).argmin()) + 1


def classes(words: Words, widest: int = WIDEST) -> Classes:
    """The tree of two levels."""
    order = words.order
    category = words.category[order]
    first = np.searchsorted(category, category)  # where the category of each begins
    start = np.flatnonzero((np.arange(len(order)) - first) % widest == 0)
    size = np.diff(start, append=len(order))
    of, slot = np.empty((2, len(order)), np.int64)
    of[order] = np.repeat(np.arange(len(start)), size)
    slot[order] = np.arange(len(order)) - np.repeat(start, size)
    return Classes(order, start, size, of, slot)


def paths(words: Words) -> Paths:
    """The binary tree."""
    order, share = words.order, words.share[words.order]
    routes: list[list[tuple[int, int]]] = [[] for _ in order]
    pending, node = [(0, len(order))], 0
    while pending:
        start, end = pending.pop()
        if end - start < 2:
            continue
        cut = start + halve(share[start:end])
        for place in range(start, end):
            routes[place].append((node, 1 if place < cut else -1))
        node += 1
        pending += [(cut, end), (start, cut)]
    depth = max(map(len, routes))
    padded = np.array([route + [(0, 0)] * (depth - len(route)) for route in routes]).reshape(len(order), depth, 2)
    result = np.empty_like(padded)
    result[order] = padded
    return Paths(result[..., 0], result[..., 1])
