"""A look at the vision model at work: what it takes some embedded test images for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model, run_in_batches
from dlc.zoo.vision import data


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Yield one line for each image drawn: its class, and the one that the model gives it with what probability."""
    images, labels = data.load_excerpt("test")
    chosen = np.random.default_rng(options.seed).choice(len(images), min(options.count, len(images)), replace=False)
    logits = run_in_batches(model, {"image": data.normalise(images[chosen])})["logits"]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    for index, share in zip(chosen, shares, strict=True):
        best = int(share.argmax())
        yield f"test image {index} ({data.CLASSES[labels[index]]}): {data.CLASSES[best]}, {share[best]:.1%}"
