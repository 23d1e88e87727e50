"""BLEU and chrF of whole test sets by sacrebleu (Post 2018), as sums over sentences that a bootstrap can draw from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.statistics import Interval, bootstrap, paired_bootstrap

Metric = Literal["BLEU", "chrF"]
METRICS: tuple[Metric, ...] = ("BLEU", "chrF")
_DRAWS = 1000


@dataclass(frozen=True)
class Counts:
    """What a metric counts in each translation.

    Attributes:
        metric: which.
        rows: (sentences, k); a test set's figure is a function of the sum over its sentences.
    """

    metric: Metric
    rows: NDArray[np.float64]

    @property
    def score(self) -> float:
        """The metric of all sentences together, 0..100."""
        return self._of(self.rows)

    def interval(self, chosen: NDArray[np.bool_] | slice = slice(None)) -> Interval:
        """The metric of some sentences, with its interval."""
        return bootstrap(self.rows[chosen], self._of, draws=_DRAWS)

    def gain(self, other: Counts, chosen: NDArray[np.bool_] | slice = slice(None)) -> Interval:
        """By how much this is above another system's translations of the same sentences."""
        return paired_bootstrap(self.rows[chosen], other.rows[chosen], self._of, draws=_DRAWS)

    def _of(self, rows: NDArray[np.float64]) -> float:
        sums = [int(count) for count in rows.sum(0)]
        return float(_sacrebleu(self.metric)._compute_score_from_stats(sums).score)


def count(metric: Metric, translations: Sequence[str], references: Sequence[str]) -> Counts:
    """Compare translations with one reference each.

    Raises:
        DlcError: sacrebleu is not installed.
    """
    # What sacrebleu's own paired tests draw from; it has no public name.
    found = _sacrebleu(metric)._extract_corpus_statistics(list(translations), [list(references)])
    return Counts(metric, np.array(found, np.float64))


def signature() -> str:
    """sacrebleu's version."""
    import sacrebleu

    return str(sacrebleu.__version__)


def _sacrebleu(metric: Metric) -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise DlcError("BLEU and chrF need sacrebleu: pip install 'dlc[zoo]'") from None
    return metrics.BLEU() if metric == "BLEU" else metrics.CHRF()
