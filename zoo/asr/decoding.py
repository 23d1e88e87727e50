"""From logits to text: the best path, and a prefix beam search with a character n-gram model.

Best path and prefix search: Graves et al. 2006, section 3.2; the search with a language model as in Hannun, Maas,
Jurafsky and Ng, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs" (2014),
with characters in place of words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.asr.text import ALPHABET, BLANK, decode, encode
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import NgramModel
from dlc.zoo.ngram.smoothing import kneser_ney

Floats = NDArray[np.floating]
_START, _END = BLANK, len(ALPHABET)  # of a sentence, as the n-gram model has them
#: Chosen on the validation part: the weight of the language model, and what each character gains.
BEAM_WEIGHT, BEAM_BONUS = 1.6, 1.5
_NEGLIGIBLE = -9.0  # a label's log probability at a step below which the search does not try it


def greedy(logits: Floats) -> str:
    """The sentence of the best label at every step of logits (time, labels)."""
    best = logits.argmax(-1)
    kept = best[np.append(True, best[1:] != best[:-1])]
    return " ".join(decode(kept[kept != BLANK]).split())


class CharacterModel:
    """log P of the next character, by a Kneser-Ney smoothed n-gram model; looked up once a history."""

    def __init__(self, model: NgramModel) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], Floats] = {}

    @classmethod
    def of(cls, sentences: Sequence[str], order: int = 8) -> CharacterModel:
        """Learn from sentences."""
        rows = [np.concatenate([[_START], encode(sentence), [_END]]) for sentence in sentences]
        return cls(kneser_ney(count(rows, len(ALPHABET) + 1, order, _START)))

    def next(self, prefix: tuple[int, ...]) -> Floats:
        """log P of each label behind the labels of a sentence so far; the last is the sentence's end."""
        history = (_START, *prefix)[-(self._model.order - 1) :]
        if history not in self._known:
            labels = np.arange(len(ALPHABET) + 1)
            rows = np.column_stack([np.tile(history, (len(labels), 1)), labels])
            with np.errstate(divide="ignore"):
                self._known[history] = self._model.score(rows) * np.log(10)
        return self._known[history]


@dataclass(frozen=True)
class Beam:
    """A prefix beam search.

    Attributes:
        language: of the sentences expected.
        width: prefixes that are kept at every step.
        weight: of the language model's log probability.
        bonus: for each character, which the language model would else make few.
    """

    language: CharacterModel
    width: int = 16
    weight: float = BEAM_WEIGHT
    bonus: float = BEAM_BONUS

    def search(self, logits: Floats) -> str:
        """The best sentence found for logits (time, labels)."""
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        # prefix -> log P of the paths that end in blank, and of those that end in its last label
        beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
        language: dict[tuple[int, ...], float] = {(): 0.0}
        for step in log_p:
            beam = self._advance(beam, language, step)
        ending = {prefix: self.weight * float(self.language.next(prefix)[_END]) for prefix in beam}
        final = {prefix: self._score(prefix, ends, language) + ending[prefix] for prefix, ends in beam.items()}
        return " ".join(decode(max(final, key=lambda prefix: final[prefix])).split())

    def _advance(
        self, beam: dict[tuple[int, ...], tuple[float, float]], language: dict[tuple[int, ...], float], step: Floats
    ) -> dict[tuple[int, ...], tuple[float, float]]:
        """The best prefixes after one more step; notes their log P by the language model."""
        blank: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        label: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
        likely = [int(k) for k in np.flatnonzero(step > _NEGLIGIBLE) if k != BLANK]
        for prefix, (ends_blank, ends_label) in beam.items():
            both = np.logaddexp(ends_blank, ends_label)
            blank[prefix] = np.logaddexp(blank[prefix], both + step[BLANK])
            if prefix:
                label[prefix] = np.logaddexp(label[prefix], ends_label + step[prefix[-1]])
            for k in likely:
                longer = (*prefix, k)
                before = ends_blank if prefix and k == prefix[-1] else both
                label[longer] = np.logaddexp(label[longer], before + step[k])
                if longer not in language:
                    language[longer] = language[prefix] + float(self.language.next(prefix)[k])
        found = {prefix: (blank[prefix], label[prefix]) for prefix in {*blank, *label}}
        best = sorted(found, key=lambda prefix: (-self._score(prefix, found[prefix], language), prefix))
        return {prefix: found[prefix] for prefix in best[: self.width]}

    def _score(
        self, prefix: tuple[int, ...], ends: tuple[float, float], language: dict[tuple[int, ...], float]
    ) -> float:
        return float(np.logaddexp(*ends)) + self.weight * language[prefix] + self.bonus * len(prefix)
