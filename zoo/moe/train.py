"""Training: Adam with a one-cycle learning rate on rows of all four kinds of text, by the zoo's loop.

A size is a layer. What a training without ``--quick`` learned is measured on the test part at once, and the measurement
is kept in the cache, because the card compares sizes and seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc.zoo import measured, training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.moe import data
from dlc.zoo.moe.model import Experts, LanguageModel, Shape

_SHAPES = {
    "top-2": Shape(),
    "dense": Shape().dense(),
}
#: The best two of 8 experts, and the dense layer of as many operations.
SIZES = tuple(_SHAPES)
WEIGHTS = ".safetensors"
_ROWS = 2000  # a call, when no gradients are needed


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        epochs: of `steps` batches each; four are about one pass over the training parts.
        size: of `SIZES`.
        steps: see `training.Task`.
        batch: rows a step, of all kinds of text in the shares that these have.
        peak_rate: the highest learning rate of the cycle.
        balance: the weight of the loss of balance (Fedus et al. 2021 have 0.01, which leaves some experts here twice as
            full as the mean).
        held_out: validation rows of each kind that are watched.
    """

    epochs: int = 12
    threads: int = 1
    size: str = SIZES[0]
    steps: int = 700
    batch: int = 1024
    peak_rate: float = 3e-3
    balance: float = 0.1
    held_out: int = 5_000

    def quick(self) -> Self:
        """Return the same for a trial of some seconds."""
        return replace(self, epochs=2, steps=40, batch=256, held_out=500)


def configure(options: TrainOptions) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(TrainConfig(size=options.size), options)


def shape_of(size: str) -> Shape:
    """The network of a size."""
    return _SHAPES[size]


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train on the four kinds of text, or go on with an interrupted run, and write the weights.

    Raises:
        DlcError: a package is missing or damaged, or the checkpoint found is.
    """
    train_on(data.load_corpus(options.data), options, weights, report)


def train_on(corpus: data.Corpus, options: TrainOptions, weights: Path, report: Report) -> None:
    """The same, on texts that are read already."""
    config = configure(options)
    on_epoch = training.epoch_report(report, config.epochs, "validation perplexity {:.1f}")
    model, history = fit(config, corpus, progress=options.progress, on_epoch=on_epoch)
    training.save_weights(model, config, history, weights)
    if not options.quick:
        notes = training.notes_of(config, history) | {
            "multiply_adds": _SHAPES[config.size].multiply_adds(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        name = f"{config.size}-{config.seed}"
        found = measured.Measured(notes, measure(model.to(config.device), corpus))
        measured.write(measured.kept("moe") / f"{name}.npz", {name: found})


def fit(
    config: TrainConfig,
    corpus: data.Corpus,
    *,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[LanguageModel, training.History]:
    """Train a model, or go on with an interrupted run of the same configuration.

    Returns:
        The model in evaluation mode, and a history whose held-out figure is the perplexity.

    Raises:
        ValueError: there are less rows than an epoch takes.
        DlcError: the checkpoint found is broken or of another network.
    """
    rows = _tensor([corpus.rows("train", kind) for kind in data.KINDS])
    watched = _tensor([corpus.rows("validation", kind)[: config.held_out] for kind in data.KINDS])
    drawn = config.steps * config.batch
    if len(rows) < drawn:
        raise ValueError(f"an epoch takes {drawn} rows, of which there are {len(rows)}")
    training.seed_everything(config)
    model = LanguageModel(_SHAPES[config.size])

    def batches(generator: torch.Generator) -> Iterator[Tensor]:
        chosen = torch.randperm(len(rows), generator=generator)[:drawn]
        return (rows[part].long() for part in chosen.split(config.batch))

    def loss(batch: Tensor) -> Tensor:
        log_p, balance = model.score(batch)
        return config.balance * balance - log_p.mean()

    optimiser = torch.optim.Adam(model.parameters(), lr=config.peak_rate, fused=True)
    task = training.Task(
        model, optimiser, config.steps, batches, loss,
        lambda: float(np.exp(-score(model, watched).mean())),
        torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.peak_rate, config.epochs * config.steps, pct_start=0.1, cycle_momentum=False
        ),
        clip=1.0,
    )  # fmt: skip
    return model, training.run("moe", config, task, progress=progress, on_epoch=on_epoch)


def score(model: LanguageModel, rows: Tensor) -> NDArray[np.float64]:
    """log P in nats of the last word of each row, (n,)."""
    with torch.no_grad():
        parts = [model(training.to_device_of(model, part.long())).cpu().numpy() for part in rows.split(_ROWS)]
    return np.concatenate(parts).astype(np.float64)


def measure(model: LanguageModel, corpus: data.Corpus) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """What the card needs to know of a network: of the test part of each kind of text, in the order of `data.KINDS`,

    - ``nats``, float64 (kinds, blocks): the sum of log P of each run of `data.BLOCK` rows; a shorter rest is left out;
    - ``load``, int64 (kinds, experts): how often each expert was chosen; (kinds, 0) for the dense layer.
    """
    nats, load = [], []
    for kind in data.KINDS:
        rows = _tensor([corpus.rows("test", kind)])
        rows = rows[: len(rows) // data.BLOCK * data.BLOCK]
        nats.append(score(model, rows).reshape(-1, data.BLOCK).sum(1))
        load.append(choices(model, rows))
    least = min(map(len, nats))
    return {"nats": np.stack([n[:least] for n in nats]), "load": np.stack(load)}


def choices(model: LanguageModel, rows: Tensor) -> NDArray[np.int64]:
    """How often each expert is chosen, (experts,); nothing for the dense layer."""
    if not isinstance(model.layer, Experts):
        return np.zeros(0, np.int64)
    with torch.no_grad():
        parts = [
            model.layer.route(model.window(training.to_device_of(model, part.long())))[1].flatten().cpu()
            for part in rows.split(_ROWS)
        ]
    return np.bincount(torch.cat(parts).numpy(), minlength=len(model.layer.w1))


def load_weights(path: Path) -> LanguageModel:
    """The network with the weights at `path`, in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    return training.load_sized(path, _SHAPES, lambda size: LanguageModel(_SHAPES[size]))[0]


def _tensor(rows: list[NDArray[np.uint16]]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows).astype(np.int16))  # every number is below 2^15
