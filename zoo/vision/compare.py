"""The card's comparisons: teachers, their ensemble, students, and the cascade of a student and a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dlc
from dlc import zoo
from dlc.runtime.cascade import CascadeExecutable
from dlc.zoo import cards
from dlc.zoo.measured import Measured
from dlc.zoo.statistics import Interval, paired_bootstrap
from dlc.zoo.vision import data

STUDENT, TEACHER = "student.onnx", "teacher.onnx"
#: Of the held-out training images, for how many the cascade's answer must be the teacher's.
AGREEMENT = 0.995
_ENSEMBLE = "ensemble"
_TITLES = {
    "teacher": "teacher, dropout and augmentation",
    "plain-teacher": "teacher without both",
    _ENSEMBLE: "ensemble of the teachers",
    "student": "student, from the labels",
    "distilled": "student, distilled",
}


def model_file(name: str) -> Path:
    """The path of one of the family's further models, `STUDENT` or `TEACHER`."""
    return zoo.model_path("vision").with_name(name)


@dataclass(frozen=True)
class Hits:
    """Which test images each training gets right.

    Attributes:
        of: by size and seed, float64 (images,) of 0 and 1; the ensemble's seed is 0.
    """

    of: Mapping[str, Mapping[int, NDArray[np.float64]]]

    @staticmethod
    def read(trainings: Mapping[str, Measured], labels: NDArray[np.uint8]) -> Hits:
        """From what ``trainings.npz`` holds."""
        found: dict[str, dict[int, NDArray[np.float64]]] = {}
        for name, measured in trainings.items():
            size, _, seed = name.rpartition("-") if name != _ENSEMBLE else (name, "", "0")
            found.setdefault(size, {})[int(seed)] = (measured.arrays["answers"] == labels).astype(np.float64)
        return Hits(found)

    def accuracies(self, size: str) -> list[float]:
        """Of each seed, in order."""
        return [float(hits.mean()) for _, hits in sorted(self.of.get(size, {}).items())]

    def pairs(self, first: str, second: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The hits of two sizes for the seeds that they share, (seeds, images) each."""
        seeds = sorted(self.of.get(first, {}).keys() & self.of.get(second, {}).keys())
        rows = [[self.of[size][seed] for seed in seeds] for size in (first, second)]
        return np.array(rows[0]), np.array(rows[1])


@dataclass(frozen=True)
class Cascade:
    """What the compiled cascade does on the test images.

    Attributes:
        threshold: the teacher is asked where the student's largest probability is below it.
        asked: the share of the images that the teacher is asked for.
        cost: multiply-adds an image, the mean, as a share of the teacher's.
        accuracy: of the cascade.
        student, teacher: of these alone, compiled too.
        loss: of accuracy against the teacher, over the images.
    """

    threshold: float
    asked: float
    cost: float
    accuracy: float
    student: float
    teacher: float
    loss: Interval


def measure_cascade(
    held_out: NDArray[np.uint8], images: NDArray[np.uint8], labels: NDArray[np.uint8], works: tuple[int, int]
) -> Cascade:
    """Compile the student and the teacher as one package, the threshold chosen on held-out images, and run it.

    Args:
        held_out: training images that took no part in training, uint8 (n, 1, 28, 28).
        images, labels: the test set.
        works: multiply-adds an image of the student and of the teacher.
    """
    student, teacher = (str(model_file(name)) for name in (STUDENT, TEACHER))
    calibration = {"image": data.normalise(held_out)}
    package = dlc.compile(student, cascade=teacher, agreement=AGREEMENT, calibration=calibration)
    session = dlc.load(package)
    inputs = data.normalise(images)
    hits = [
        np.concatenate([run.run({"image": part})["logits"].argmax(1) for part in np.split(inputs, 100)]) == labels
        for run in (session, dlc.load(dlc.compile(student)), dlc.load(dlc.compile(teacher)))
    ]
    executable = session.executable
    assert isinstance(executable, CascadeExecutable)
    asked = executable.asked / executable.samples
    cost = (works[0] + asked * works[1]) / works[1]
    accuracies = [float(h.mean()) for h in hits]
    return Cascade(executable.threshold, asked, cost, *accuracies, paired_bootstrap(hits[2], hits[0]))


def claims(hits: Hits, cascade: Cascade | None) -> list[cards.Claim]:
    """What the comparisons show."""
    return [_regularised(hits), _ensemble(hits), _distilled(hits), _cascade(cascade)]


def _points(interval: Interval) -> str:
    """A difference of accuracies."""
    return f"{100 * interval.value:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"


def _regularised(hits: Hits) -> cards.Claim:
    text = "A larger network gets a higher accuracy with dropout and augmentation than without (95 % interval)"
    on, off = hits.pairs("teacher", "plain-teacher")
    if not len(on):
        return cards.Claim(text, False, "not measured: not both are trained")
    gain = paired_bootstrap(on.mean(0), off.mean(0))
    evidence = f"{on.mean():.2%} against {off.mean():.2%} over {len(on)} seeds, {_points(gain)} over the test images"
    return cards.Claim(text, gain.low > 0, evidence)


def _ensemble(hits: Hits) -> cards.Claim:
    text = "An ensemble of the teachers gets a higher accuracy than its best member"
    if _ENSEMBLE not in hits.of:
        return cards.Claim(text, False, "not measured: there is no ensemble")
    together, members = hits.of[_ENSEMBLE][0], list(hits.of["teacher"].values())
    best = max(members, key=lambda member: float(member.mean()))
    gain, over_all = (paired_bootstrap(together, other) for other in (best, np.mean(members, 0)))
    evidence = (
        f"{together.mean():.2%} against {best.mean():.2%}, {_points(gain)} over the test images; against the mean of "
        f"its {len(members)} members {_points(over_all)}"
    )
    return cards.Claim(text, gain.value > 0, evidence)


def _distilled(hits: Hits) -> cards.Claim:
    text = (
        "A student that learns from the teacher's softened logits gets a higher accuracy than the same student that "
        "learns from the labels, over at least five seeds (95 % interval, paired by seed)"
    )
    ours, theirs = hits.pairs("distilled", "student")
    if not len(ours):
        return cards.Claim(text, False, "not measured: not both are trained")
    gain = paired_bootstrap(ours.mean(1), theirs.mean(1))
    evidence = f"{ours.mean():.2%} against {theirs.mean():.2%} over {len(ours)} seeds, {_points(gain)}"
    return cards.Claim(text, len(ours) >= 5 and gain.low > 0, evidence)


def _cascade(cascade: Cascade | None) -> cards.Claim:
    text = (
        "A cascade of student and teacher, compiled, has the teacher's accuracy within 0.2 points at no more than 40 % "
        "of its mean cost in multiply-adds"
    )
    if cascade is None:
        return cards.Claim(text, False, "not measured: there is no student or no teacher")
    evidence = (
        f"{cascade.accuracy:.2%} against the teacher's {cascade.teacher:.2%} at {cascade.cost:.1%} of its cost; the "
        f"teacher is asked for {cascade.asked:.1%} of the test images"
    )
    return cards.Claim(text, cascade.teacher - cascade.accuracy <= 0.002 and cascade.cost <= 0.4, evidence)


def table(hits: Hits, works: Mapping[str, tuple[int, int]]) -> str:
    """One line a size.

    Args:
        hits: see `Hits`.
        works: parameters and multiply-adds by size, where they are known.
    """
    lines = []
    for size, title in _TITLES.items():
        accuracies = hits.accuracies(size)
        if not accuracies:
            continue
        spread = f"{np.std(accuracies, ddof=1):.2%}" if len(accuracies) > 1 else ""
        parameters, work = works.get(size, (0, 0))
        lines.append(
            (title, len(accuracies), f"{np.mean(accuracies):.2%}", f"{min(accuracies):.2%} to {max(accuracies):.2%}",
             spread, f"{parameters:,}" if parameters else "", f"{work / 1e6:.1f}" if work else "")
        )  # fmt: skip
    columns = ("Network", "Seeds", "Mean accuracy", "Range", "Deviation", "Parameters", "Million multiply-adds")
    return cards.table(columns, lines)
