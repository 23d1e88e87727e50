"""What the kept trainings answer on the test set, for the card's comparisons.

``trainings.npz`` beside the card has, by the training's name (``SIZE-SEED``, the distilled students' is
``distilled-SEED``), ``answers`` uint8 (10000,), the class given to each test image. ``ensemble`` is the teachers' mean
probability; its notes name the ``members``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlc.zoo import measured
from dlc.zoo.cards import digest
from dlc.zoo.family import Report
from dlc.zoo.measured import Measured
from dlc.zoo.training import read_notes
from dlc.zoo.vision import data
from dlc.zoo.vision.train import WEIGHTS, load_weights

ENSEMBLE = "ensemble"
_MEMBERS = "teacher-"
_BATCH = 500


def measure(images: NDArray[np.uint8], known: Mapping[str, Measured], report: Report) -> dict[str, Measured]:
    """What is known, and of each training that the cache keeps and that is not known, its answers.

    The ensemble is measured where all the teachers known are kept here, and some is new; else it stays as it is.

    Args:
        images: uint8 (n, 1, 28, 28).
        known: as ``trainings.npz`` has it.
        report: told what is being measured.
    """
    torch.set_num_threads(1)
    found, new = dict(known), False
    inputs = torch.from_numpy(data.normalise(images))
    kept = {path.stem: path for path in sorted(measured.kept("vision").glob(f"*{WEIGHTS}"))}
    for name, path in kept.items():
        notes = read_notes(path) | {"sha256": digest(path)}
        if name in known and known[name].notes["sha256"] == notes["sha256"]:
            continue
        report(f"the test set by {name}")
        found[name] = Measured(notes, {"answers": _probabilities(path, inputs).argmax(1).astype(np.uint8)})
        new = new or name.startswith(_MEMBERS)
    members = [name for name in found if name.startswith(_MEMBERS)]
    if new and len(members) > 1 and set(members) <= set(kept):
        report("the test set by the ensemble")
        mean = np.mean([_probabilities(kept[name], inputs) for name in members], 0)
        found[ENSEMBLE] = Measured({"members": members}, {"answers": mean.argmax(1).astype(np.uint8)})
    return found


def _probabilities(path: Path, inputs: torch.Tensor) -> NDArray[np.float64]:
    """(n, 10), by the network with the weights at `path`."""
    network = load_weights(path).to(memory_format=torch.channels_last)
    with torch.no_grad():
        parts = [network(part.contiguous(memory_format=torch.channels_last)) for part in inputs.split(_BATCH)]
    return torch.softmax(torch.cat(parts).double(), 1).numpy()
