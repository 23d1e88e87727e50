"""Word categories learned from bigrams, and the n-gram model over them.

A word w of category g(w) has P(w | h) = P(w | g(w)) P(g(w) | g of each word of h): Brown et al., "Class-based n-gram
models of natural language" (Computational Linguistics 18, 1992). The categories are those of the exchange algorithm,
which moves one word after the other to the category where the training text's bigram likelihood is highest: Kneser and
Ney (Eurospeech 1993); Martin, Liermann and Ney (Speech Communication 24, 1998).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.ngram.counts import Counts, Ints, count
from dlc.zoo.ngram.model import Floats, NgramModel
from dlc.zoo.ngram.smoothing import kneser_ney


@dataclass(frozen=True)
class ClassModel:
    """A class-based n-gram model.

    Attributes:
        category: (vocabulary,) of each word.
        member: (vocabulary,) log10 P(w | category of w).
        ngrams: over categories.
    """

    category: Ints
    member: Floats
    ngrams: NgramModel

    def score_stream(self, ids: NDArray[np.integer]) -> Floats:
        """The log10 probability of each word of a stream, (n,)."""
        return self.ngrams.score_stream(self.category[ids]) + self.member[ids]


def class_model(ids: NDArray[np.integer], category: Ints, order: int) -> ClassModel:
    """The class-based model of a training stream, with modified Kneser-Ney over the categories.

    P(w | category) is the share of w in its category's occurrences, half an occurrence being added to each word.
    """
    seen = np.bincount(ids, minlength=len(category)) + 0.5
    member = np.log10(seen / np.bincount(category, seen)[category])
    ngrams = kneser_ney(count([category[ids]], int(category.max()) + 1, order))
    return ClassModel(category, member, ngrams)


def mixture_weight(first: Floats, second: Floats, steps: int = 50) -> float:
    """The weight of `first` in the mixture of two models that gives some held-out words their highest likelihood.

    By EM, from 1/2 on: each step takes the mean posterior of `first` (Jelinek and Mercer 1980).

    Args:
        first: log10 probabilities of the words.
        second: those of the other model.
        steps: of EM.
    """
    a, b = 10.0**first, 10.0**second
    weight = 0.5
    for _ in range(steps):
        weight = float(np.mean(weight * a / (weight * a + (1 - weight) * b)))
    return weight


def mix(first: Floats, second: Floats, weight: float) -> Floats:
    """The log10 probabilities of the mixture."""
    return np.asarray(np.log10(weight * 10.0**first + (1 - weight) * 10.0**second))


# --- learning the categories


def exchange(
    counts: Counts,
    categories: int,
    passes: int,
    *,
    checkpoint: Path | None = None,
    on_pass: Callable[[int, int, float], None] | None = None,
) -> tuple[Ints, float]:
    """Sort the words into categories by the exchange algorithm.

    The words start in categories by their rank in frequency, modulo the number of categories; a pass tries each word,
    the most frequent first. It ends early when a pass moves no word. Nothing is drawn, so equal counts give equal
    categories.

    Args:
        counts: of order 2 at least.
        categories: how many.
        passes: over the vocabulary, at most.
        checkpoint: where the state is kept after each pass, and found when an interrupted run goes on; the file stays.
        on_pass: told the number of the pass, how many words it moved, and the bigram log-likelihood (nats a word).

    Returns:
        The category of each word, (vocabulary,), and the seconds that it took, summed over interrupted runs.
    """
    state = _Exchange(counts, categories)
    done, moved, seconds = 0, -1, 0.0
    if checkpoint is not None and checkpoint.is_file():
        with np.load(checkpoint) as arrays:
            state.assign(arrays["category"])
            done, moved, seconds = int(arrays["passes"]), int(arrays["moved"]), float(arrays["seconds"])
    while done < passes and moved != 0:
        start = time.perf_counter()
        moved = sum(state.improve(word) for word in state.order)
        done += 1
        seconds += time.perf_counter() - start
        if checkpoint is not None:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            partial = checkpoint.with_suffix(".partial.npz")
            np.savez(partial, category=state.category, passes=done, moved=moved, seconds=seconds)
            partial.replace(checkpoint)
        if on_pass is not None:
            on_pass(done, moved, state.likelihood())
    return state.category, seconds


class _Exchange:
    """The state of the algorithm: categories, and the counts of bigrams of categories, ``table[a, b]``."""

    def __init__(self, counts: Counts, categories: int) -> None:
        level = counts.levels[0]
        self.words, self.categories = counts.vocabulary, categories
        other = level.parent != level.word
        self._after = _neighbours(level.parent[other], level.word[other], level.count[other], self.words)
        self._before = _neighbours(level.word[other], level.parent[other], level.count[other], self.words)
        self._twice = np.zeros(self.words, np.int64)  # how often a word follows itself
        self._twice[level.word[~other]] = level.count[~other]
        self._bigrams = level
        occurrences = counts.first
        self.order = [int(word) for word in np.argsort(-occurrences, kind="stable") if occurrences[word]]
        ranks = np.empty(self.words, np.int64)
        ranks[np.argsort(-occurrences, kind="stable")] = np.arange(self.words)
        n = np.arange(1, level.count.sum() + 1, dtype=np.float64)
        self._n_log_n = np.concatenate([[0.0], n * np.log(n)])  # every count there can be
        self.assign(ranks % categories)

    def assign(self, category: Ints) -> None:
        """Take these categories and count anew."""
        self.category = category.copy()
        pairs = category[self._bigrams.parent] * self.categories + category[self._bigrams.word]
        size = self.categories
        self.table = np.bincount(pairs, self._bigrams.count, size * size).astype(np.int64).reshape(size, size)
        self.left, self.right = self.table.sum(1), self.table.sum(0)

    def likelihood(self) -> float:
        """The log-likelihood of the categories' bigrams and of words in their categories, nats a word, up to a
        constant of the text: sum N(a, b) log N(a, b) - sum N(a) log N(a) - sum N(b) log N(b)."""
        f = self._n_log_n
        total = f[self.table].sum() - f[self.left].sum() - f[self.right].sum()
        return float(total / self.table.sum())

    def improve(self, word: int) -> bool:
        """Move a word to the category that is best for it; whether that is another one."""
        after, before = self._by_category(self._after[word]), self._by_category(self._before[word])
        twice = int(self._twice[word])
        old = int(self.category[word])
        self._shift(old, after, before, twice, -1)
        new = int(self._gains(after, before, twice).argmax())
        self._shift(new, after, before, twice, 1)
        self.category[word] = new
        return new != old

    def _by_category(self, neighbours: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        """The categories of a word's neighbours, and how often it has each."""
        words, counts = neighbours
        sums = np.bincount(self.category[words], counts, self.categories)
        present = np.flatnonzero(sums)
        return present, sums[present].astype(np.int64)

    def _shift(self, category: int, after: tuple[Ints, Ints], before: tuple[Ints, Ints], twice: int, sign: int) -> None:
        """Add a word's bigrams to the category's, or take them away."""
        self.table[category, after[0]] += sign * after[1]
        self.table[before[0], category] += sign * before[1]
        self.table[category, category] += sign * twice
        self.left[category] += sign * (after[1].sum() + twice)
        self.right[category] += sign * (before[1].sum() + twice)

    def _gains(self, after: tuple[Ints, Ints], before: tuple[Ints, Ints], twice: int) -> Floats:
        """What the likelihood gains when the word, at present in no category, is put into each, (categories,)."""
        f = self._n_log_n
        every = np.arange(self.categories)
        gain = np.zeros(self.categories)
        own = np.zeros(self.categories, np.int64)  # what is added on the diagonal
        own += twice
        for (present, counts), table in ((after, self.table), (before, self.table.T)):
            cells = table[:, present]
            change = f[cells + counts] - f[cells]
            change[present, np.arange(len(present))] = 0  # the diagonal gets both directions at once, below
            gain += change.sum(1)
            own[present] += counts
        diagonal = self.table[every, every]
        gain += f[diagonal + own] - f[diagonal]
        left, right = after[1].sum() + twice, before[1].sum() + twice
        return gain - (f[self.left + left] - f[self.left]) - (f[self.right + right] - f[self.right])


def _neighbours(of: Ints, word: Ints, counts: Ints, words: int) -> list[tuple[Ints, Ints]]:
    """For each word its neighbours and how often it has each."""
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of, minlength=words))[:-1]
    return list(zip(np.split(word[order], ends), np.split(counts[order], ends), strict=True))
