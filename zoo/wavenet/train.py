"""Training: Adam with a one-cycle learning rate on segments drawn from the training prompts, by the zoo's loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlc.errors import DlcError
from dlc.zoo import training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.wavenet import data
from dlc.zoo.wavenet.model import build

#: Alone, conditioned on mel frames, and the LSTM that is compared.
SIZES = ("plain", "mel", "lstm")
WEIGHTS = ".safetensors"
#: (codes before each sample, mel frames, codes to predict), each (batch, ..., time).
Batch = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        size: one of `SIZES`.
        epochs: of `steps` batches each.
        steps: see `training.Task`.
        batch: segments a step.
        length: samples a segment.
        peak_rate: the highest learning rate of the cycle.
        held_out: segments of the validation part that are watched.
    """

    epochs: int = 10
    threads: int = 1
    size: str = "plain"
    steps: int = 80
    batch: int = 2
    length: int = 1024
    peak_rate: float = 3e-3
    held_out: int = 12

    def quick(self) -> Self:
        """The same for a trial of under a minute."""
        return replace(self, epochs=2, steps=15, batch=2, length=1024, held_out=4)


def configure(options: TrainOptions) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(TrainConfig(size=options.size), options)


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train on the prompts, or go on with an interrupted run, and write the weights.

    Raises:
        DlcError: the recordings are missing, or the checkpoint found is damaged.
    """
    config = configure(options)
    parts = [list(data.load_part(part, options.data).values()) for part in ("train", "validation")]
    on_epoch = training.epoch_report(report, config.epochs, "validation {:.3f} bits a sample")
    model, history = fit(config, *parts, progress=options.progress, on_epoch=on_epoch)
    training.save_weights(model, config, history, weights)


def fit(
    config: TrainConfig,
    prompts: list[data.Codes],
    validation: list[data.Codes],
    *,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[nn.Module, training.History]:
    """Train a network, or go on with an interrupted run of the same configuration.

    Args:
        config: see `TrainConfig`.
        prompts: the codes of each; segments never cross from one to the next.
        validation: the same, to be watched.
        progress: see `training.run`.
        on_epoch: see `training.run`.

    Returns:
        The network in evaluation mode, and a history in nats (losses) and bits (held out) a sample.

    Raises:
        DlcError: no prompt is as long as a segment, or the checkpoint is broken or of another network.
    """
    training.seed_everything(config)
    model = build(config.size)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.peak_rate)
    source, watched = (_Segments(part, config) for part in (prompts, validation))
    held_out = watched.draw(config.held_out, torch.Generator().manual_seed(1))

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        return (source.draw(config.batch, generator) for _ in range(config.steps))

    def loss(batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0], batch[1]), batch[2])

    task = training.Task(
        model,
        optimiser,
        config.steps,
        batches,
        loss,
        lambda: float(loss(training.to_device_of(model, held_out))) / math.log(2),
        torch.optim.lr_scheduler.OneCycleLR(optimiser, config.peak_rate, config.epochs * config.steps, pct_start=0.15),
        clip=1.0,
    )
    return model, training.run("wavenet", config, task, progress=progress, on_epoch=on_epoch)


class _Segments:
    """Draws segments from prompts, each place as likely as any other."""

    def __init__(self, prompts: list[data.Codes], config: TrainConfig) -> None:
        self._length = config.length
        self._prompts = [codes for codes in prompts if len(codes) > config.length]
        if not self._prompts:
            raise DlcError(f"no prompt is longer than a segment of {config.length} samples")
        self._frames = [data.mel_frames(codes) for codes in self._prompts] if config.size == "mel" else None
        self._places = np.cumsum([len(codes) - config.length for codes in self._prompts])

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Some segments: see `Batch`."""
        places = torch.randint(0, int(self._places[-1]), (count,), generator=generator).numpy()
        chosen = np.searchsorted(self._places, places, side="right")
        starts = places - np.concatenate([[0], self._places])[chosen]
        codes, frames = zip(*(self._cut(c, s) for c, s in zip(chosen, starts, strict=True)), strict=True)
        both = torch.from_numpy(np.stack(codes))
        mel = None if frames[0] is None else torch.from_numpy(np.stack(frames))
        return both[:, :-1], mel, both[:, 1:]

    def _cut(self, prompt: int, start: int) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """The codes of a segment and the one before it, and the segment's frames."""
        end = start + self._length
        codes = self._prompts[prompt]
        known = codes[start - 1 : end] if start else np.append(data.SILENCE, codes[:end])
        if self._frames is None:
            return known.astype(np.int64), None
        return known.astype(np.int64), data.upsample(self._frames[prompt][:, : -(-end // data.HOP)], end)[:, start:]


def load_weights(path: Path, size: str) -> nn.Module:
    """The network of a size with the weights at `path`, in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    return training.load_weights(build(size), path)
