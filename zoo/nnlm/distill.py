"""Distillation: the small network learns from the committed one's probabilities beside the words.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015, arXiv:1503.02531), with temperature 1.
Both have softmaxes of two levels over the same classes. The divergence of the joint distributions is that of the
classes, plus the mean over the teacher's classes of that within a class; the class of the word itself stands for the
mean, so that a step reads no more rows than one without a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dlc.zoo import training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.ngram import data as brown
from dlc.zoo.nnlm import train
from dlc.zoo.nnlm.model import LanguageModel
from dlc.zoo.nnlm.output import ClassSoftmax

SIZES = (train.STUDENT,)
#: Of a kept measurement, in place of its size.
DISTILLED = "distilled"


@dataclass(frozen=True)
class DistillConfig(train.TrainConfig):
    """What decides the student, besides what every training has.

    Attributes:
        imitation: how much of the loss is the cross-entropy with the teacher's probabilities; the words have the rest.
    """

    size: str = train.STUDENT
    imitation: float = 0.5


def configure(options: TrainOptions) -> DistillConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(DistillConfig(size=options.size), options)


def distill(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train the student, and the teacher before it where the cache keeps none, and write the student's weights.

    Raises:
        DlcError: the corpus is missing or damaged, or a checkpoint found is.
    """
    config = configure(options)
    teacher = _teacher(options, weights, report).to(config.device)
    report("training the student")
    corpus = brown.load_corpus(options.data)
    model, history = train.train_on(config, corpus, options, report, imitating_loss(teacher, config.imitation))
    training.save_weights(model, config, history, weights)
    if not options.quick:
        train.keep_measured(DISTILLED, config, model, history, corpus)


def imitating_loss(teacher: LanguageModel, imitation: float) -> train.Loss:
    """The loss of a student: the word's negative log-likelihood, and the cross-entropy with the teacher."""

    def loss(student: LanguageModel, context: Tensor, word: Tensor) -> Tensor:
        with torch.no_grad():
            targets = _log_probs(teacher, context, word)
        ours = _log_probs(student, context, word)
        towards_teacher = sum(_cross_entropy(*pair) for pair in zip(targets, ours, strict=True))
        assert isinstance(student.output, ClassSoftmax)
        towards_word = -student.output.chosen(*ours, word).mean()
        return imitation * towards_teacher + (1 - imitation) * towards_word

    return loss


def _log_probs(model: LanguageModel, context: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(model.output, ClassSoftmax)
    return model.output.log_probs(model.body(context), word)


def _cross_entropy(target: Tensor, log_p: Tensor) -> Tensor:
    """The mean over rows of that of two distributions, given as logarithms; empty slots, both -inf, count nothing."""
    return -(target.exp() * log_p.masked_fill(target == -torch.inf, 0.0)).sum(1).mean()


def _teacher(options: TrainOptions, weights: Path, report: Report) -> LanguageModel:
    """The committed network in evaluation mode: the one kept, or a new one; a trial trains one for itself."""
    config = train.configure(replace(options, size=train.SIZES[0], seed=0, epochs=None))
    path = train.kept(config.size, config.epochs)
    if options.quick:
        path = weights.with_name(f"{weights.stem}-teacher{train.WEIGHTS}")
    if not path.is_file() or options.quick:
        report("training the teacher")
        train.train(replace(options, size=config.size, seed=0, epochs=None), path, report)
    return train.load_weights(path)[0]
