"""The Brown corpus as `dlc.zoo.ngram.data` has it: the same words, parts and excerpts; only the windows are longer."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.ngram import data as brown

PACKAGES = brown.PACKAGES
#: The input's name, the n-gram family's, so that one evaluation serves both.
INPUT = brown.INPUT
#: Words before the one asked for.
CONTEXT = 5


def windows(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Every run of `CONTEXT` words and the next one: int64 (n - CONTEXT, CONTEXT + 1), the model's input."""
    return brown.windows(ids, CONTEXT + 1)


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[np.int64]]:
    """The windows of an embedded excerpt by the model's input name."""
    return {INPUT: windows(brown.load_excerpt(part))}
