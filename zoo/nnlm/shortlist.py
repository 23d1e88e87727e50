"""What a short list leaves to an n-gram model: the words of the tail (Schwenk and Gauvain 2002)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.ngram.data import windows
from dlc.zoo.ngram.model import Floats, NgramModel


def tail_log10(model: NgramModel, tail: NDArray[np.bool_], ids: NDArray[np.int32]) -> Floats:
    """log10 P(word | history, the word is in the tail) of each word of a stream; 0 for words outside the tail.

    Args:
        model: of order 2 or more.
        tail: (vocabulary,) whether a word is in it.
        ids: the stream, (n,); its first order - 1 words are history only.

    Returns:
        float64 (n - order + 1,).
    """
    rows = windows(ids, model.order)
    masses = tail_masses(model, tail)
    mass = masses[1][rows[:, -2]]
    entry = rows[:, -2]
    for length in range(2, model.order):  # the longest history that is listed decides
        entry = rows[:, -1 - length]
        for level, word in zip(model.levels[: length - 1], rows.T[-length:-1], strict=True):
            entry = level.find(entry, word, model.vocabulary)
        mass = np.where(entry >= 0, masses[length][entry], mass)
    word = rows[:, -1]
    return np.where(tail[word], model.score(rows) - np.log10(mass), 0.0)


def tail_masses(model: NgramModel, tail: NDArray[np.bool_]) -> list[Floats]:
    """The probability of the tail after each history: entry k of the list is of the listed histories of k words.

    After a history h it is backoff(h) times that after h without its first word, plus, for each listed n-gram of h and
    a word of the tail, the difference between its own probability and the backed-off one.
    """
    masses = [np.array([float((10.0 ** model.log10[0][tail]).sum())])]
    for order, level in enumerate(model.levels, 2):
        weight = 10.0 ** model.backoff[order - 2]
        shorter = np.zeros(len(weight), np.int64) if order == 2 else model.levels[order - 3].suffix
        own = 10.0 ** model.log10[order - 1] - weight[level.parent] * 10.0 ** model.log10[order - 2][level.suffix]
        listed = np.bincount(level.parent, own * tail[level.word], len(weight))
        masses.append(weight * masses[-1][shorter] + listed)
    return masses
