"""Distillation: a student learns from a teacher's softened logits beside the labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015, arXiv:1503.02531). The teacher sees the
student's own view of each image, mirrored and shifted alike: what Beyer et al., "Knowledge distillation: A good teacher
is patient and consistent" (CVPR 2022), found to matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.vision import train

SIZES = ("student",)
#: Of a kept training, in place of its size.
DISTILLED = "distilled"


@dataclass(frozen=True)
class DistillConfig(train.TrainConfig):
    """What decides the student, besides what every training has.

    Attributes:
        temperature: by which logits are divided before the softmax.
        softened: the weight of the softened part of the loss; the labels have the rest.
        teacher: the seed of the teacher.
    """

    size: str = SIZES[0]
    temperature: float = 4.0
    softened: float = 0.9
    teacher: int = 0


def configure(options: TrainOptions) -> DistillConfig:
    """The configuration that the options of the command line stand for."""
    return train.apply(DistillConfig(size=options.size), options)


def distill(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train the student, and the teacher before it where the cache keeps none, and write the student's weights.

    Raises:
        DlcError: the data set is missing or damaged, or a checkpoint found is.
    """
    config = configure(options)
    teacher = _teacher(options, config, weights, report).to(config.device)
    report("training the student")
    train.train_on(
        config, options, report, weights, train.kept(DISTILLED, config.seed), softened_loss(teacher, config)
    )  # fmt: skip


def softened_loss(teacher: nn.Module, config: DistillConfig) -> train.Loss:
    """The loss of a student: the cross-entropy with the teacher's softened probabilities, and that with the labels.

    The first is multiplied by the squared temperature, which keeps the size of its gradient (Hinton et al., section 2).
    """
    t = config.temperature

    def loss(student: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        logits = student(images)
        with torch.no_grad():
            soft = torch.softmax(teacher(images) / t, 1)
        towards_teacher = nn.functional.cross_entropy(logits / t, soft) * t**2
        towards_labels = nn.functional.cross_entropy(logits, classes)
        return config.softened * towards_teacher + (1 - config.softened) * towards_labels

    return loss


def _teacher(options: TrainOptions, config: DistillConfig, weights: Path, report: Report) -> nn.Module:
    """The teacher in evaluation mode: the one kept, or a new one; a trial trains one for itself."""
    path = train.kept("teacher", config.teacher)
    if options.quick:
        path = weights.with_name(f"{weights.stem}-teacher{train.WEIGHTS}")
    if not path.is_file() or options.quick:
        report("training the teacher")
        train.train(replace(options, size="teacher", seed=config.teacher, epochs=None), path, report)
    return train.load_weights(path).to(memory_format=torch.channels_last)
