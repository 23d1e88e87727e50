"""N-gram smoothing written from the definitions, one n-gram after the other: what the fast code is held to."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

Gram = tuple[int, ...]


def occurrences(texts: list[list[int]], order: int) -> Counter[Gram]:
    """How often each n-gram of this order occurs."""
    return Counter(tuple(t[i : i + order]) for t in texts for i in range(len(t) - order + 1))


class KneserNey:
    """Interpolated modified Kneser-Ney, by Chen and Goodman's formulas."""

    def __init__(self, texts: list[list[int]], vocabulary: int, order: int, start: int | None = None) -> None:
        self.order, self.start = order, start
        self.predictable = [w for w in range(vocabulary) if w != start]
        self.counts: dict[int, dict[Gram, int]] = {order: dict(occurrences(texts, order))}
        for n in range(1, order):
            before: dict[Gram, set[int]] = defaultdict(set)
            for gram in occurrences(texts, n + 1):
                before[gram[1:]].add(gram[0])
            self.counts[n] = {
                gram: count if gram[0] == start else len(before[gram]) for gram, count in occurrences(texts, n).items()
            }
        if start is not None:
            self.counts[1].pop((start,), None)
        self.discounts = {n: self._discounts(list(c.values())) for n, c in self.counts.items()}

    @staticmethod
    def _discounts(counts: list[int]) -> list[float]:
        n = Counter(counts)
        fallback = [0.0, 0.5, 1.0, 1.5]
        if not (n[1] and n[2] and n[3]):
            return fallback
        y = n[1] / (n[1] + 2 * n[2])
        found = [0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))]
        return found if all(0 <= d <= k for k, d in enumerate(found)) else fallback

    def probability(self, gram: Gram) -> float:
        """P(last word | the words before it)."""
        n, history = len(gram), gram[:-1]
        if n == 0:
            return 1 / len(self.predictable)
        continued = [c for g, c in self.counts[n].items() if g[:-1] == history]
        total = sum(continued)
        lower = self.probability(gram[1:]) if n > 1 else 1 / len(self.predictable)
        if total == 0:
            return lower
        d = self.discounts[n]
        weight = sum(d[min(c, 3)] for c in continued) / total
        count = self.counts[n].get(gram, 0)
        return (count - d[min(count, 3)]) / total + weight * lower


def absolute_backoff(texts: list[list[int]], vocabulary: int, gram: Gram) -> float:
    """P(last word | the words before it) by back-off with absolute discounting."""
    counts = occurrences(texts, len(gram))
    n = Counter(counts.values())
    discount = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5
    followers = {g[-1]: c for g, c in counts.items() if g[:-1] == gram[:-1]}
    if len(gram) > 1 and len(followers) == vocabulary:
        discount = 0.0
    total = sum(followers.values())
    if len(gram) == 1:
        spread = discount * len(followers) / total / vocabulary
        return max(followers.get(gram[0], 0) - discount, 0) / total + spread
    if gram[-1] in followers:
        return (followers[gram[-1]] - discount) / total
    lower = absolute_backoff(texts, vocabulary, gram[1:])
    if not total:
        return lower
    rest = 1 - sum(absolute_backoff(texts, vocabulary, (*gram[1:-1], w)) for w in followers)
    return discount * len(followers) / total / rest * lower


def random_texts(seed: int, vocabulary: int, texts: int = 3, length: int = 60) -> list[list[int]]:
    """Texts in which some words follow others more often than chance has it; word 0 does not occur."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(vocabulary - 1, 0.3), vocabulary)
    result = []
    for _ in range(texts):
        text = [1]
        for _ in range(length):
            text.append(1 + int(rng.choice(vocabulary - 1, p=table[text[-1]])))
        result.append(text)
    return result
