"""Running a model on utterances of different lengths, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.asr import features
from dlc.zoo.asr.data import INPUT, LENGTHS
from dlc.zoo.models import Model

OUTPUT = "logits"
_BATCH = 16


def logits_of(model: Model, utterances: Sequence[features.Frames]) -> list[NDArray[np.float32]]:
    """The logits (steps, labels) of each of some utterances' frames, in their order."""
    rows = [features.inputs(frames) for frames in utterances]
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))  # neighbours are alike, so little is filled up
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        lengths = np.array([len(rows[k]) for k in chosen], np.int32)
        x = np.stack([np.pad(rows[k], ((0, lengths.max() - len(rows[k])), (0, 0))) for k in chosen])
        logits = model.run({INPUT: x, LENGTHS: lengths})[OUTPUT]
        found |= {k: logits[row, : lengths[row]] for row, k in enumerate(chosen)}
    return [found[k] for k in range(len(rows))]
