"""Runs a cascade: a small model answers, and a large one where the small one is not sure.

The first output scores classes along its last axis; samples run along the first axis of all inputs and outputs. A
sample goes to the large model where the largest probability that the small one gives is below the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.session import Session

SMALL, LARGE = "small", "large"


def confidence(scores: np.ndarray, probabilities: bool) -> np.ndarray:
    """The largest probability of each sample, float64 (samples).

    Args:
        scores: (samples, ..., classes); where there are several answers a sample, the least sure one counts.
        probabilities: the scores are probabilities, and not logits.
    """
    wide = scores.reshape(scores.shape[0], -1, scores.shape[-1]).astype(np.float64)
    if not probabilities:
        wide = np.exp(wide - wide.max(axis=-1, keepdims=True))
        wide /= wide.sum(axis=-1, keepdims=True)
    least: np.ndarray = wide.max(axis=-1).min(axis=-1)
    return least


class CascadeExecutable:
    """A loaded cascade.

    Attributes:
        samples, asked: how many samples have been run, and how many of them the large model was asked for.
    """

    def __init__(self, small: Session, large: Session, threshold: float, probabilities: bool) -> None:
        self.small, self.large = small, large
        self.threshold, self.probabilities = threshold, probabilities
        self.samples = self.asked = 0
        # A large model of a fixed number of samples is given them all.
        self._any_batch = all(isinstance(info.shape[0], str) for info in large.inputs)

    def compute(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
        """See `dlc.targets.base.Executable`."""
        results = list(self._run(self.small, inputs).values())
        unsure = np.flatnonzero(confidence(results[0], self.probabilities) < self.threshold)
        self.samples += len(results[0])
        self.asked += len(unsure)
        if len(unsure):
            chosen = [a[unsure] for a in inputs] if self._any_batch else inputs
            for result, better in zip(results, self._run(self.large, chosen).values(), strict=True):
                result[unsure] = better if self._any_batch else better[unsure]
        return results

    def _run(self, session: Session, inputs: list[np.ndarray]) -> dict[str, Any]:
        return session.run({info.name: array for info, array in zip(session.inputs, inputs, strict=True)})

    def clone(self) -> CascadeExecutable:
        """Another one, of clones of the models."""
        return CascadeExecutable(self.small.clone(), self.large.clone(), self.threshold, self.probabilities)


def load(package: Package, threads: int) -> CascadeExecutable:
    """Load both models; DlcError where one cannot be loaded on this machine."""
    build = package.manifest["build"]
    small, large = (Session(package.nested(name), threads) for name in (SMALL, LARGE))
    return CascadeExecutable(small, large, build["threshold"], build["probabilities"])
