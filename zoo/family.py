"""What a family of the zoo consists of, and how the command line reaches it.

A family is a folder with an ``__init__.py`` and these modules, found by name; there is no table to enter it in:

=================  =============================================================  ==================
module             provides                                                       may import torch
=================  =============================================================  ==================
``data.py``        `Data`: the data packages, their parsing, embedded samples      no
``evaluate.py``    `Evaluation`: the task's metric, and the card                   only in ``write_card``
``model.py``       the network, as the family likes                                yes
``train.py``       `Training`                                                      yes
``export.py``      `Export`                                                        yes
``sample.py``      `Sampling`, where the model has something to show               no
``distill.py``     `Distillation`, where there is a teacher                        yes
=================  =============================================================  ==================

Beside them lie ``NAME.onnx`` (at most 10 MB), small excerpts of data, and ``card.md``, which ``evaluate.py`` writes.
`dlc.zoo.packages` fetches data, `dlc.zoo.training` is the training loop, `dlc.zoo.models` runs what is evaluated,
`dlc.zoo.statistics` has the intervals, `dlc.zoo.measured` what a card compares, and `dlc.zoo.cards` the cards.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np

from dlc.errors import DlcError
from dlc.zoo import FAMILIES, family_package
from dlc.zoo.models import Model
from dlc.zoo.packages import DataPackage

#: Takes one line of text for the person who waits.
Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainOptions:
    """What `dlc zoo train` and `distill` were asked for.

    Attributes:
        size: one of the module's ``SIZES``.
        quick: a trial of under a minute.
        seed: of everything random. Equal options give equal models.
        epochs: passes over the data, where not the family's own number.
        device: what trains, as torch names it.
        data: a folder of the user's that holds the data packages; see `dlc.zoo.packages.locate`.
        progress: show a bar.
    """

    size: str
    quick: bool = False
    seed: int = 0
    epochs: int | None = None
    device: str = "cpu"
    data: Path | None = None
    progress: bool = False


@dataclass(frozen=True)
class Score:
    """A measured metric.

    Attributes:
        metric: its name.
        value: in the metric's own unit; a share is 0..1.
        text: the figure as a person reads it, with what it was measured on.
        details: further figures, as JSON has them.
    """

    metric: str
    value: float
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleOptions:
    """What `dlc zoo sample` was asked for: how many samples, the seed, a text to go on from, a file to write to."""

    count: int = 5
    seed: int = 0
    prompt: str = ""
    out: Path | None = None


class Data(Protocol):
    """``data.py``.

    Attributes:
        PACKAGES: what `dlc zoo fetch` fetches.
    """

    PACKAGES: tuple[DataPackage, ...]

    def samples(self, part: Literal["calibration", "test"]) -> Mapping[str, np.ndarray]:
        """Embedded real inputs by input name, samples along the first axis."""


class Evaluation(Protocol):
    """``evaluate.py``."""

    def evaluate(self, model: Model, full: bool, data: Path | None) -> Score:
        """Measure the task's metric on the full test set, or on the embedded excerpt."""

    def write_card(self, weights: Path | None, data: Path | None, report: Report) -> Path:
        """Measure every figure of the card, write it and return its path.

        Args:
            weights: what the committed model was exported from, for the notes on its training; without it the present
                card's are kept, provided that the model is still the one it describes.
            data: see `TrainOptions`.
            report: told what is being measured.
        """


class Training(Protocol):
    """``train.py``.

    Attributes:
        SIZES: the first is the committed one.
        WEIGHTS: the suffix of a file of trained weights.
    """

    SIZES: tuple[str, ...]
    WEIGHTS: str

    def train(self, options: TrainOptions, weights: Path, report: Report) -> None:
        """Train, or go on with an interrupted run of the same options, and write the weights."""


class Export(Protocol):
    """``export.py``."""

    def export(self, weights: Path, out: Path) -> str:
        """Write trained weights as ONNX; return one line on how far ONNX and the original agree."""


class Sampling(Protocol):
    """``sample.py``."""

    def sample(self, model: Model, options: SampleOptions) -> Iterator[str]:
        """Show the model at work: yield one line a sample."""


class Distillation(Protocol):
    """``distill.py``: as ``train.py``, but the model learns from a teacher too; SIZES are the student's."""

    SIZES: tuple[str, ...]

    def distill(self, options: TrainOptions, weights: Path, report: Report) -> None:
        """Train the teacher where it is not there yet, then the student, and write the student's weights."""


def data(name: str) -> Data:
    """The ``data.py`` of the family `name`. Like its neighbours: DlcError where there is no such family."""
    return cast(Data, _part(name, "data"))


def evaluation(name: str) -> Evaluation:
    """The ``evaluate.py`` of the family `name`."""
    return cast(Evaluation, _part(name, "evaluate"))


def training(name: str) -> Training:
    """The ``train.py`` of the family `name`; DlcError where torch is needed and missing."""
    return cast(Training, _part(name, "train"))


def export(name: str) -> Export:
    """The ``export.py`` of the family `name`; DlcError where torch is needed and missing."""
    return cast(Export, _part(name, "export"))


def sampling(name: str) -> Sampling:
    """The ``sample.py`` of the family `name`; DlcError where it has none."""
    return cast(Sampling, _optional(name, "sample"))


def distillation(name: str) -> Distillation:
    """The ``distill.py`` of the family `name`; DlcError where it has none, or torch is missing."""
    return cast(Distillation, _optional(name, "distill"))


def _part(name: str, part: str) -> ModuleType:
    try:
        return importlib.import_module(f"{family_package(name)}.{part}")
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "torch":
            raise DlcError(f"training or converting {name!r} needs torch: pip install 'dlc[zoo]'") from error
        raise


def _optional(name: str, part: str) -> ModuleType:
    if not _has(name, part):
        able = ", ".join(other for other in FAMILIES if _has(other, part)) or "none"
        raise DlcError(f"the zoo's {name!r} has no {part}.py (families that have one: {able})")
    return _part(name, part)


def _has(name: str, part: str) -> bool:
    return (Path(__file__).parent / family_package(name).rpartition(".")[2] / f"{part}.py").is_file()
