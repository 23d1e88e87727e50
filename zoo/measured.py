"""What was measured of trainings that a card compares, in one file, so that the card can be written without them.

A training takes minutes and its weights are megabytes; what a table needs of it is small. A family keeps such a file
beside its card.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc.cache import cache_dir
from dlc.errors import DlcError

_NOTES = "notes"


@dataclass(frozen=True)
class Measured:
    """What was measured of one training.

    Attributes:
        notes: on the training, as JSON has them; see `dlc.zoo.training.notes_of`.
        arrays: by name.
    """

    notes: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def kept(family: str) -> Path:
    """The folder of the cache where the trainings of a family are kept for its card."""
    return cache_dir() / family / "trained"


def read(path: Path) -> dict[str, Measured]:
    """What a file holds, by the name of the training; nothing where there is no file.

    Raises:
        DlcError: the file is not what `write` writes.
    """
    if not path.is_file():
        return {}
    found: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(path) as arrays:
            for key in arrays.files:
                name, array = key.split("/")
                found.setdefault(name, {})[array] = arrays[key]
        return {name: Measured(json.loads(str(arrays.pop(_NOTES))), arrays) for name, arrays in found.items()}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DlcError(f"{path} does not hold what was measured of trainings: {error}") from error


def write(path: Path, found: Mapping[str, Measured]) -> None:
    """Write a file for `read`; equal contents give equal bytes."""
    arrays: dict[str, Any] = {}
    for name, measured in sorted(found.items()):
        arrays[f"{name}/{_NOTES}"] = np.array(json.dumps(dict(measured.notes)))
        arrays |= {f"{name}/{key}": array for key, array in measured.arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
