"""Training: SGD with Nesterov momentum and a one-cycle learning rate, by the zoo's loop.

The schedule and its cycled momentum are Smith and Topin, "Super-Convergence" (2018, arXiv:1708.07120). The last 5,000
training images are held out and watched; the test set takes no part. What a training without ``--quick`` learned is
kept in the cache too, because the card compares trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlc.errors import DlcError
from dlc.zoo import measured, training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.vision import data
from dlc.zoo.vision.model import Shape, VisionNet

_TEACHER = Shape(depth=2)
_SHAPES = {
    "small": Shape(),
    "teacher": replace(_TEACHER, dropout=0.3),
    "plain-teacher": _TEACHER,
    "student": Shape(widths=(8, 16, 32)),
}
#: The plain teacher is the teacher without dropout and augmentation.
SIZES = tuple(_SHAPES)
WEIGHTS = ".safetensors"
HELD_OUT = 5_000
#: Of a network's training, on normalised images (n, 1, 28, 28) and classes int64 (n,): a scalar.
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        size: of `SIZES`.
        images: how many training images are used, from the first on.
        held_out: how many images behind them are held out, at most.
        batch: images a step; the remainder of an epoch is left out.
        peak_rate: the highest learning rate of the cycle.
        weight_decay: of the SGD step.
        augment: mirror half of the images and shift each by up to one pixel.
    """

    size: str = SIZES[0]
    images: int = 60_000 - HELD_OUT
    held_out: int = HELD_OUT
    batch: int = 128
    peak_rate: float = 0.1
    weight_decay: float = 5e-4
    augment: bool = True

    def quick(self) -> Self:
        """Return the same for a trial of some seconds: two epochs of a twentieth of the images.

        One thread, because two wait for each other on a busy machine, which takes longer.
        """
        return replace(self, epochs=2, images=self.images // 20, held_out=self.held_out // 10, batch=64, threads=1)


C = TypeVar("C", bound=TrainConfig)


def configure(options: TrainOptions) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return apply(TrainConfig(size=options.size), options)


def apply(config: C, options: TrainOptions) -> C:
    """A configuration with what the options say; a teacher is trained longer, and the plain one as it is."""
    teacher = config.size in ("teacher", "plain-teacher")
    config = replace(config, epochs=12 if teacher else config.epochs, augment=config.size != "plain-teacher")
    return training.configured(config, options)


def kept(name: str, seed: int) -> Path:
    """Where the weights of a whole training are kept for the card and for distillation."""
    return measured.kept("vision") / f"{name}-{seed}{WEIGHTS}"


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train a `VisionNet` on Fashion-MNIST, or go on with an interrupted run, and write its weights.

    Raises:
        DlcError: the data set is missing or damaged, or the checkpoint found is.
    """
    config = configure(options)
    train_on(config, options, report, weights, kept(config.size, config.seed))


def train_on(
    config: TrainConfig, options: TrainOptions, report: Report, weights: Path, keep: Path, loss: Loss | None = None
) -> nn.Module:
    """Train by a configuration, write the weights and, unless it was a trial, keep them at `keep` too."""
    images, labels = data.load_full("train", options.data)
    on_epoch = training.epoch_report(report, config.epochs, "held-out accuracy {:.2%}")
    model, history = fit(config, images, labels, loss=loss, progress=options.progress, on_epoch=on_epoch)
    for path in (weights,) if options.quick else (weights, keep):
        training.save_weights(model, config, history, path)
    return model


def fit(
    config: TrainConfig,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    loss: Loss | None = None,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[nn.Module, training.History]:
    """Train a `VisionNet`, or go on with an interrupted run of the same configuration.

    Args:
        config: see `TrainConfig`.
        images: uint8 (n, 1, 28, 28) with n at least ``config.images``; what lies beyond may be held out.
        labels: uint8 (n,), 0..9.
        loss: the cross-entropy, unless given.
        progress: see `training.run`.
        on_epoch: see `training.run`.

    Returns:
        The model in evaluation mode, and a history whose held-out figure is the accuracy (0..1).

    Raises:
        ValueError: there are fewer images than the configuration asks for, or less than one batch of them.
        DlcError: the checkpoint found is broken or of another network.
    """
    if not config.batch <= config.images <= len(images):
        raise ValueError(f"{config.images} images asked for, {len(images)} there, in batches of {config.batch}")
    training.seed_everything(config)
    used = config.images + config.held_out
    inputs = torch.from_numpy(data.normalise(images[:used]))
    targets = torch.from_numpy(labels[:used].astype(np.int64))
    held_out = slice(config.images, used)
    # The channels-last layout halves the time of these convolutions on a CPU; it changes no shape.
    model = VisionNet(_SHAPES[config.size]).to(memory_format=torch.channels_last)
    steps = config.images // config.batch
    # The schedule cycles the momentum too, between 0.95 and 0.85; what is given here only switches it on.
    optimiser = torch.optim.SGD(
        model.parameters(), lr=config.peak_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(config.images, generator=generator)
        for step in range(steps):
            chosen = order[step * config.batch : (step + 1) * config.batch]
            batch = augment(inputs[chosen], generator) if config.augment else inputs[chosen]
            yield batch.contiguous(memory_format=torch.channels_last), targets[chosen]

    task = training.Task(
        model,
        optimiser,
        steps,
        batches,
        lambda batch: (loss or cross_entropy)(model, *batch),
        lambda: _accuracy(model, inputs[held_out], targets[held_out]),
        torch.optim.lr_scheduler.OneCycleLR(optimiser, config.peak_rate, config.epochs * steps),
    )
    return model, training.run("vision", config, task, progress=progress, on_epoch=on_epoch)


def cross_entropy(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """See `Loss`."""
    return nn.functional.cross_entropy(model(images), classes)


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each by -1, 0 or 1 pixel each way, filling with black.

    Args:
        batch: normalised images, float32 (n, 1, 28, 28).
        generator: the source of randomness.

    Returns:
        float32 (n, 1, 28, 28).
    """
    count, _, height, width = batch.shape
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    batch = torch.where(mirrored, batch.flip(-1), batch)
    padded = nn.functional.pad(batch, (1, 1, 1, 1), value=(0 - data.MEAN) / data.STD)
    top, left = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


def load_weights(path: Path) -> nn.Module:
    """The network with the weights at `path`, in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    size = training.read_notes(path).get("size", SIZES[0])  # the committed small network is older than sizes
    if size not in _SHAPES:
        raise DlcError(f"{path} does not hold weights of this family: its size is {size!r}")
    return training.load_weights(VisionNet(_SHAPES[size]), path)


def _accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of images (0..1) whose largest logit is the target's; NaN without images."""
    hits = [
        (model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum().item()
        for x, y in training.to_device_of(model, tuple(zip(inputs.split(500), targets.split(500), strict=True)))
    ]
    return sum(hits) / len(targets) if len(targets) else float("nan")
