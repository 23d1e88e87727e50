"""Distillation: the student learns half from the transcripts and half from the teacher's probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlc.zoo.asr.train import configure, kept, load_weights, train, train_and_keep
from dlc.zoo.family import Report, TrainOptions

SIZES = ("student",)
_IMITATION = 0.5


def distill(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train the teacher of seed 0 where it is not there yet, then the student, and write the student's weights.

    Raises:
        DlcError: what speaks is missing, or a file found is damaged.
    """
    of_teacher = replace(options, size="teacher", seed=0)
    path = kept(configure(of_teacher))
    if options.quick or not path.is_file():
        path = weights.with_suffix(".teacher.safetensors") if options.quick else path
        report("training the teacher")
        train(of_teacher, path, report)
    report(f"learning from {path}")
    teacher, _ = load_weights(path)
    train_and_keep(configure(options, _IMITATION), options, weights, report, teacher)
