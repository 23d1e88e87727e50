"""Training: Adam with a one-cycle learning rate on batches of pairs of similar length, by the zoo's loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from dlc.errors import DlcError
from dlc.zoo import training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.nmt import data
from dlc.zoo.nmt.model import Translator, build

#: With attention, and the same without.
SIZES = ("attention", "plain")
WEIGHTS = ".safetensors"
_WINDOW = 20  # batches that are sorted by length together

#: The pieces of a text in both languages, EOS behind each.
Row = tuple[NDArray[np.int64], NDArray[np.int64]]
#: (source, pieces before each, pieces to predict), each int64 (N, time), PAD behind the ends.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        size: one of `SIZES`.
        batch: pairs a step.
        peak_rate: the highest learning rate of the cycle.
        smoothing: of the labels (Szegedy et al. 2016, arXiv:1512.00567), in the loss that is minimised alone.
        pairs: how many of the training pairs are used, None for all.
    """

    epochs: int = 30
    threads: int = 1
    size: str = "attention"
    batch: int = 128
    peak_rate: float = 2e-3
    smoothing: float = 0.1
    pairs: int | None = None

    def quick(self) -> Self:
        """The same for a trial of under a minute."""
        return replace(self, epochs=2, batch=32, pairs=640)


def configure(options: TrainOptions) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(TrainConfig(size=options.size), options)


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train on the help's paragraphs, or go on with an interrupted run, and write the weights.

    Raises:
        DlcError: the packages or sentencepiece are missing, or the checkpoint found is damaged.
    """
    config = configure(options)
    pairs = data.load_pairs(options.data)
    on_epoch = training.epoch_report(report, config.epochs, "validation {:.3f} bits a piece")
    parts = [rows(pairs["train"][: config.pairs]), rows(pairs["validation"][: config.pairs and config.pairs // 8])]
    model, history = fit(config, *parts, progress=options.progress, on_epoch=on_epoch)
    training.save_weights(model, config, history, weights)


def rows(pairs: Sequence[data.Pair]) -> list[Row]:
    """The pieces of pairs, of which neither side is longer than a translation may be."""
    found = [(data.encode(pair.english), data.encode(pair.french)) for pair in pairs]
    return [row for row in found if max(map(len, row)) <= data.LIMIT]


def fit(
    config: TrainConfig,
    pairs: Sequence[Row],
    validation: Sequence[Row],
    *,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[Translator, training.History]:
    """Train a network, or go on with an interrupted run of the same configuration.

    Args:
        config: see `TrainConfig`.
        pairs: of the training part.
        validation: pairs to be watched.
        progress: see `training.run`.
        on_epoch: see `training.run`.

    Returns:
        The network in evaluation mode, and a history in nats (losses, smoothed) and bits (held out) a piece.

    Raises:
        DlcError: there are fewer pairs than a batch has, or the checkpoint is broken or of another network.
    """
    steps = len(pairs) // config.batch
    if not steps:
        raise DlcError(f"{len(pairs)} pairs make no batch of {config.batch}")
    training.seed_everything(config)
    model = build(config.size)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.peak_rate, betas=(0.9, 0.98))
    task = training.Task(
        model,
        optimiser,
        steps,
        lambda generator: _batches(pairs, config.batch, generator),
        lambda batch: loss(model, batch, config.smoothing),
        lambda: _bits(model, validation, config.batch),
        torch.optim.lr_scheduler.OneCycleLR(optimiser, config.peak_rate, config.epochs * steps, pct_start=0.1),
        clip=1.0,
    )
    return model, training.run("nmt", config, task, progress=progress, on_epoch=on_epoch)


def loss(model: Translator, batch: Batch, smoothing: float, reduction: str = "mean") -> torch.Tensor:
    """The cross entropy of the pieces to predict, in nats."""
    source, before, after = batch
    logits, _ = model(source, before)
    return cross_entropy(
        logits.flatten(0, 1), after.flatten(), ignore_index=data.PAD, label_smoothing=smoothing, reduction=reduction
    )


def _batches(pairs: Sequence[Row], size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Each pair once, but for those that fill no batch, in an order drawn anew: like lengths in a batch."""
    order = torch.randperm(len(pairs), generator=generator).tolist()
    order = order[: len(order) // size * size]
    chunks = []
    for start in range(0, len(order), _WINDOW * size):
        window = sorted(order[start : start + _WINDOW * size], key=lambda place: sum(map(len, pairs[place])))
        chunks += [window[i : i + size] for i in range(0, len(window), size)]
    for place in torch.randperm(len(chunks), generator=generator).tolist():
        yield pad([pairs[i] for i in chunks[place]])


def pad(pairs: Sequence[Row]) -> Batch:
    """Pairs as one batch."""

    def fill(sides: Sequence[NDArray[np.int64]]) -> torch.Tensor:
        found = np.full((len(sides), max(map(len, sides))), data.PAD, np.int64)
        for line, side in zip(found, sides, strict=True):
            line[: len(side)] = side
        return torch.from_numpy(found)

    sources, targets = zip(*pairs, strict=True)
    return fill(sources), fill([np.append(data.BOS, target[:-1]) for target in targets]), fill(targets)


def _bits(model: Translator, pairs: Sequence[Row], size: int) -> float:
    """The bits a piece of held-out pairs."""
    ordered = sorted(pairs, key=lambda row: sum(map(len, row)))
    nats, count = 0.0, sum(len(target) for _, target in pairs)
    for start in range(0, len(ordered), size):
        batch = training.to_device_of(model, pad(ordered[start : start + size]))
        nats += float(loss(model, batch, 0.0, "sum"))
    return nats / count / float(np.log(2))


def load_weights(path: Path, size: str) -> Translator:
    """The network of a size with the weights at `path`, in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    model = build(size)
    training.load_weights(model, path)
    return model
