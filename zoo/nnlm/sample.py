"""Text from the neural model, drawn as from the n-gram model."""

from __future__ import annotations

from collections.abc import Iterator

from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model
from dlc.zoo.ngram import sample as ngram


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Yield sentences; see `dlc.zoo.ngram.sample.sample`."""
    return ngram.sample(model, options)
