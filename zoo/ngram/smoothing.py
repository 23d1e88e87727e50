"""From counts to probabilities: the steps from no smoothing to modified Kneser-Ney.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (Harvard TR-10-98, 1998) compares
them all and gives the names used here.
"""

from __future__ import annotations

import numpy as np

from dlc.zoo.ngram.counts import Counts, Ints
from dlc.zoo.ngram.model import Floats, NgramModel


def additive(counts: Counts, words: Ints, delta: float) -> Floats:
    """The log10 probabilities of rows (n, order) when `delta` is added to each count; 0 is no smoothing at all.

    P(w | h) = (c(h w) + delta) / (c(h) + delta V); where that is 0 / 0, it is taken for 0.
    """
    order = words.shape[1]
    top = counts.first if order == 1 else counts.levels[order - 2].count
    entry = counts.walk(words)
    found = np.append(top, 0)[entry]  # -1, no such n-gram, takes the last
    if order == 1:
        total = np.full(len(words), counts.first.sum())
    else:
        level = counts.levels[order - 2]
        history = counts.walk(words[:, :-1])
        sums = np.bincount(level.parent, level.count, history.max(initial=0) + 1)
        total = np.append(sums, 0)[history]
    whole = total + delta * counts.vocabulary
    share = np.divide(found + delta, whole, out=np.zeros(len(words)), where=whole > 0)
    with np.errstate(divide="ignore"):
        return np.log10(share)


def absolute_backoff(counts: Counts) -> NgramModel:
    """Back-off with absolute discounting (Ney, Essen and Kneser 1994).

    P(w | h) = (c(h w) - D) / c(h) for n-grams that occur; the mass that is left goes to the words that do not follow
    h, in proportion to P(w | shorter h). D = n1 / (n1 + 2 n2) for each order, from the counts of counts (1/2 where one
    of the two is 0). 1-grams are discounted too, for the sake of words that do not occur, and their mass is spread over
    all words evenly.
    """
    seen = counts.first.astype(np.float64)
    first = _absolute_discount(counts.first)
    left = first * np.count_nonzero(seen) / seen.sum()
    predictable = _predictable(counts)
    shares = [np.where(predictable, np.maximum(seen - first, 0) / seen.sum() + left / predictable.sum(), 0.0)]
    weights = []
    for level in counts.levels:
        parents = len(shares[-1])
        total = np.bincount(level.parent, level.count, parents)
        followers = np.bincount(level.parent, minlength=parents)
        # Where every word follows h there is none to back off to, so nothing is taken.
        discount = np.where(followers < predictable.sum(), _absolute_discount(level.count), 0.0)
        shares.append((level.count - discount[level.parent]) / total[level.parent])
        kept = np.bincount(level.parent, shares[-1], parents)
        lower = np.bincount(level.parent, shares[-2][level.suffix], parents)
        # Rounding may leave a share of some 1e-17 where it is 0.
        weights.append(np.where(total > 0, np.maximum(1 - kept, 1e-12) / np.maximum(1 - lower, 1e-12), 1.0))
    return _model(counts, shares, weights)


def kneser_ney(counts: Counts) -> NgramModel:
    """Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3; Heafield et al. 2013).

    Below the highest order, the count of an n-gram is the number of different words that precede it (of one that
    begins with the start mark, its occurrences: nothing can precede it). From counts of 1, 2 and more, discounts D1,
    D2 and D3 are taken, set for each order by its counts of counts; the mass goes to P(w | shorter h), interpolated
    for every word, and at last to the uniform distribution.
    """
    adjusted = [counts.first, *(level.count for level in counts.levels)]
    starts = np.arange(counts.vocabulary) == counts.start  # of each n-gram, whether it begins with the start mark
    for index, level in enumerate(counts.levels):
        continuations = np.bincount(level.suffix, minlength=len(adjusted[index]))
        adjusted[index] = np.where(starts, adjusted[index], continuations)
        starts = starts[level.parent]
    predictable = _predictable(counts)
    uniform = np.where(predictable, 1 / predictable.sum(), 0.0)
    adjusted[0] = np.where(predictable, adjusted[0], 0)

    nothing = np.zeros(counts.vocabulary, np.int64)
    first, _ = _interpolated(adjusted[0], nothing, 1, uniform)
    shares, weights = [np.where(predictable, first, 0.0)], []
    for level, count in zip(counts.levels, adjusted[1:], strict=True):
        share, weight = _interpolated(count, level.parent, len(shares[-1]), shares[-1][level.suffix])
        shares.append(share)
        weights.append(weight)
    return _model(counts, shares, weights)


def modified_discounts(count: Ints) -> Floats:
    """D of counts 0, 1, 2 and 3 or more, (4,), by Chen and Goodman's equation 26.

    A small corpus may lack a count of counts or give a discount outside of 0 to the count; then the customary 0.5, 1
    and 1.5 stand in.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(count == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if (found >= 0).all() and (found <= [0, 1, 2, 3]).all():
            return found
    return np.array([0, 0.5, 1, 1.5])


def _interpolated(count: Ints, parent: Ints, parents: int, lower: Floats) -> tuple[Floats, Floats]:
    """P(w | h) of each n-gram and the weight of each h, from counts and P(w | shorter h)."""
    discount = modified_discounts(count)[np.minimum(count, 3)]
    total = np.bincount(parent, count, parents)
    taken = np.bincount(parent, discount, parents)
    whole = np.maximum(total, 1)
    weight = np.where(total > 0, taken / whole, 1.0)
    return (count - discount) / whole[parent] + weight[parent] * lower, weight


def _absolute_discount(count: Ints) -> float:
    n1, n2 = (int(np.count_nonzero(count == k)) for k in (1, 2))
    return n1 / (n1 + 2 * n2) if n1 and n2 else 0.5


def _predictable(counts: Counts) -> np.ndarray:
    return np.arange(counts.vocabulary) != (-1 if counts.start is None else counts.start)


def _model(counts: Counts, shares: list[Floats], weights: list[Floats]) -> NgramModel:
    with np.errstate(divide="ignore"):
        return NgramModel(counts.levels, tuple(map(np.log10, shares)), tuple(map(np.log10, weights)))
