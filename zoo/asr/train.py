"""Training: CTC on augmented utterances, Adam with a one-cycle learning rate, by the zoo's loop.

A student may learn from a teacher too: from its probabilities at every step, besides the transcripts. What a training
without ``--quick`` learned is kept in the cache, because the card compares the students of several seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlc.cache import cache_dir
from dlc.errors import DlcError
from dlc.zoo import training
from dlc.zoo.asr import data, features, text
from dlc.zoo.asr.augment import TEMPO, augment
from dlc.zoo.asr.model import SHAPES, Recogniser, build
from dlc.zoo.family import Report, TrainOptions

#: The committed network, and the small one by itself.
SIZES = tuple(SHAPES)
WEIGHTS = ".safetensors"
#: Inputs (N, T, width), steps (N,), labels (N, L), their number (N,).
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        size: one of `SIZES`.
        batch: utterances a step.
        peak_rate: the highest learning rate of the cycle.
        utterances: of the training part that are used, 0 for all.
        imitation: how much of the loss is the distance from a teacher's probabilities; the rest is CTC's.
    """

    epochs: int = 50
    threads: int = 1
    size: str = SIZES[0]
    batch: int = 16
    peak_rate: float = 3e-3
    utterances: int = 0
    imitation: float = 0.0

    def quick(self) -> Self:
        """The same for a trial of under a minute."""
        return replace(self, epochs=2, utterances=128, batch=16)


def configure(options: TrainOptions, imitation: float = 0.0) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(TrainConfig(size=options.size, imitation=imitation), options)


def kept(config: TrainConfig) -> Path:
    """Where the weights of a whole training are kept."""
    kind = f"{config.size}{'-distilled' if config.imitation else ''}"
    return cache_dir() / "asr" / "trained" / f"{kind}-{config.seed}{WEIGHTS}"


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train on the synthesised speech, or go on with an interrupted run, and write the weights.

    Raises:
        DlcError: what speaks is missing, or the checkpoint found is damaged.
    """
    train_and_keep(configure(options), options, weights, report, None)


def train_and_keep(
    config: TrainConfig, options: TrainOptions, weights: Path, report: Report, teacher: Recogniser | None
) -> None:
    """`train` of one configuration; with a teacher where the configuration says that it imitates."""
    utterances, validation = data.load_part("train", options.data), data.load_part("validation", options.data)
    on_epoch = training.epoch_report(report, config.epochs, "validation {:.4f} nats a character")
    model, history = fit(config, utterances, validation, teacher, progress=options.progress, on_epoch=on_epoch)
    training.save_weights(model, config, history, weights)
    if not options.quick:
        training.save_weights(model, config, history, kept(config))


def fit(
    config: TrainConfig,
    utterances: data.Utterances,
    validation: data.Utterances,
    teacher: Recogniser | None = None,
    *,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[Recogniser, training.History]:
    """Train a network, or go on with an interrupted run of the same configuration.

    Args:
        config: see `TrainConfig`.
        utterances: the training part, of which the first ``config.utterances`` are used.
        validation: the validation part, whose loss is watched.
        teacher: in evaluation mode; only where ``config.imitation`` is not 0.
        progress: see `training.run`.
        on_epoch: see `training.run`.

    Returns:
        The network in evaluation mode, and a history in nats a character.

    Raises:
        DlcError: there is less than a batch, or the checkpoint found is broken or of another network.
    """
    training.seed_everything(config)
    model = build(config.size)
    if teacher is not None:
        teacher.to(config.device)
    count = config.utterances or len(utterances)
    steps = count // config.batch
    if steps < 1:
        raise DlcError(f"{count} utterances are less than a batch of {config.batch}")
    labels = [text.encode(sentence) for sentence in utterances.texts]
    sizes = np.array([len(frames) for frames in utterances.frames[:count]])

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        draw = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        for chosen in _alike(sizes, steps, config.batch, draw):
            length = int(np.median(sizes[chosen]) / draw.uniform(*TEMPO))
            inputs = [_augmented(utterances.frames[k], length, draw) for k in chosen]
            yield collate(inputs, [labels[k] for k in chosen])

    watched = collate(
        [features.inputs(frames) for frames in validation.frames], [text.encode(t) for t in validation.texts]
    )

    def held_out() -> float:
        return float(ctc(model, training.to_device_of(model, watched)))

    optimiser = torch.optim.Adam(model.parameters(), lr=config.peak_rate)
    task = training.Task(
        model,
        optimiser,
        steps,
        batches,
        lambda batch: loss_of(model, batch, teacher, config.imitation),
        held_out,
        torch.optim.lr_scheduler.OneCycleLR(optimiser, config.peak_rate, config.epochs * steps, pct_start=0.15),
        clip=1.0,
    )
    return model, training.run("asr", config, task, progress=progress, on_epoch=on_epoch)


def _alike(sizes: NDArray[np.int64], steps: int, batch: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Every epoch's batches: utterances of about one length together, in an order that has nothing to do with it."""
    about = generator.permutation(len(sizes))[: steps * batch]
    order = about[np.argsort(sizes[about] * generator.uniform(0.95, 1.05, len(about)))]
    parts = np.split(order, steps)
    return [parts[k] for k in generator.permutation(steps)]


def _augmented(frames: features.Frames, length: int, generator: np.random.Generator) -> NDArray[np.float32]:
    values, blank = augment(frames, length, generator)
    return features.stack(np.where(blank, np.float32(0), features.normalise(values)))


def collate(inputs: list[NDArray[np.float32]], labels: list[NDArray[np.int64]]) -> Batch:
    """The utterances of a batch side by side, filled up with zeros."""

    def padded(rows: list[Any]) -> torch.Tensor:
        return nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)

    sizes = (torch.tensor([len(row) for row in rows]) for rows in (inputs, labels))
    steps, letters = sizes
    return padded(inputs), steps, padded(labels), letters


def loss_of(model: Recogniser, batch: Batch, teacher: Recogniser | None, imitation: float) -> torch.Tensor:
    """The loss of a batch in nats a character: CTC's, or partly the divergence from the teacher's probabilities.

    The latter is the sum over an utterance's steps of KL(teacher || model), over its characters (Hinton, Vinyals and
    Dean, "Distilling the Knowledge in a Neural Network", 2015, with temperature 1).
    """
    x, steps, _, letters = batch
    log_p = _log_p(model, batch)
    loss = _ctc(log_p, batch)
    if teacher is None:
        return loss
    with torch.no_grad():
        target = _log_p(teacher, batch)
    distance = (target.exp() * (target - log_p)).sum(-1)
    inside = torch.arange(x.shape[1], device=x.device) < steps[:, None]
    return (1 - imitation) * loss + imitation * ((distance * inside).sum(1) / letters).mean()


def ctc(model: Recogniser, batch: Batch) -> torch.Tensor:
    """CTC's loss of a batch in nats a character."""
    return _ctc(_log_p(model, batch), batch)


def _log_p(model: Recogniser, batch: Batch) -> torch.Tensor:
    """log P of the labels; torch is several times faster where no utterance is filled up."""
    x, steps, _, _ = batch
    return model(x, None if bool((steps == x.shape[1]).all()) else steps.cpu()).log_softmax(-1)


def _ctc(log_p: torch.Tensor, batch: Batch) -> torch.Tensor:
    _, steps, labels, letters = batch
    return nn.functional.ctc_loss(
        log_p.transpose(0, 1), labels, steps, letters, blank=text.BLANK, zero_infinity=True
    )  # fmt: skip


def load_weights(path: Path) -> tuple[Recogniser, dict[str, Any]]:
    """The network with the weights at `path`, in evaluation mode, and the notes on its training.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    return training.load_sized(path, SHAPES, build)
