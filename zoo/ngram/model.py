"""A back-off n-gram model as tables, and its look-up in numpy.

log10 P(w | h) is the entry of (h, w) where that n-gram is listed; elsewhere it is the back-off weight of h (0 where h
is not listed) plus log10 P(w | h without its first word). That is the model of ARPA files, and every smoothing method
in `dlc.zoo.ngram.smoothing` gives one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.ngram.counts import Ints, Level

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramModel:
    """A back-off model.

    Attributes:
        levels: the listed n-grams of order 2, 3, ...; their counts play no part.
        log10: of each order from 1 on, the log10 probability of each n-gram; -inf where it is 0.
        backoff: of each order from 1 to the one below the highest, log10 of each n-gram's back-off weight.
    """

    levels: tuple[Level, ...]
    log10: tuple[Floats, ...]
    backoff: tuple[Floats, ...]

    @property
    def order(self) -> int:
        """The number of words that an entry of the highest order has."""
        return len(self.log10)

    @property
    def vocabulary(self) -> int:
        """The number of words."""
        return len(self.log10[0])

    def score(self, words: Ints) -> Floats:
        """The log10 probabilities of the last words of rows, given those before them.

        Args:
            words: (n, k); of more than `order` words the last ones count.
        """
        words = words[:, -self.order :]
        length = words.shape[1]
        result = self.log10[0][words[:, -1]]
        for order in range(2, length + 1):
            history = words[:, length - order]
            for level, word in zip(self.levels[: order - 2], words.T[length - order + 1 : -1], strict=True):
                history = level.find(history, word, self.vocabulary)
            entry = self.levels[order - 2].find(history, words[:, -1], self.vocabulary)
            weight = np.append(self.backoff[order - 2], 0.0)[history]  # -1, no such history, takes the last
            result = np.where(entry >= 0, np.append(self.log10[order - 1], 0.0)[entry], weight + result)
        return result

    def score_stream(self, ids: NDArray[np.integer]) -> Floats:
        """The log10 probability of each word of a stream, (n,), given all before it; the first ones have less."""
        stream = np.asarray(ids, np.int64)
        head = [self.score(stream[None, :end])[0] for end in range(1, min(self.order, len(stream) + 1))]
        if len(stream) < self.order:
            return np.array(head)
        rows = np.lib.stride_tricks.sliding_window_view(stream, self.order)
        return np.concatenate([head, self.score(rows)])


def perplexity(log10: Floats) -> float:
    """The perplexity of words with these log10 probabilities: the inverse of their geometric mean."""
    return float(10 ** -np.mean(log10))
