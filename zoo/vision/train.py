"""Training: SGD with Nesterov momentum and a one-cycle learning rate, seeded, deterministic and resumable.

The schedule and its cycled momentum are Smith and Topin, "Super-Convergence" (2018, arXiv:1708.07120). The last 5,000
training images are held out and watched; the test set takes no part. One seed on one machine with one thread count
gives one model: every epoch draws from a generator seeded by (seed, epoch), so a resumed run continues exactly as an
uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from dlc.errors import DlcError
from dlc.zoo.vision import data
from dlc.zoo.vision.model import VisionNet

HELD_OUT = 5_000


@dataclass(frozen=True)
class TrainConfig:
    """What decides the trained model. Two equal configurations give equal models.

    Attributes:
        seed: of the initial weights, the order of images and the augmentation.
        epochs: passes over the training images.
        images: how many training images are used, from the first on (55,000 at most: the rest is held out).
        batch: images a step; the remainder of an epoch is left out.
        peak_rate: the highest learning rate of the cycle.
        weight_decay: of the SGD step.
        augment: mirror half of the images and shift each by up to one pixel.
        threads: torch's threads. Sums are split by thread, so another count gives a slightly different model.
    """

    seed: int = 0
    epochs: int = 8
    images: int = 60_000 - HELD_OUT
    batch: int = 128
    peak_rate: float = 0.1
    weight_decay: float = 5e-4
    augment: bool = True
    threads: int = 2

    def quick(self) -> TrainConfig:
        """Return the same for a trial of some seconds: two epochs of a twentieth of the images."""
        return replace(self, epochs=2, images=self.images // 20, batch=64)


@dataclass
class TrainResult:
    """A trained model and how it came about.

    Attributes:
        model: in evaluation mode.
        config: its configuration.
        losses: mean training cross-entropy (nats) of each epoch.
        held_out: accuracy (0..1) on the held-out images after each epoch.
        seconds: training time, summed over interrupted runs.
    """

    model: nn.Module
    config: TrainConfig
    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0


def checkpoint_path(config: TrainConfig) -> Path:
    """Return where the run of `config` keeps its checkpoint; no two configurations share one."""
    values = "-".join(f"{value:g}" for value in map(float, asdict(config).values()))
    return data.cache_dir() / "vision" / f"checkpoint-{values}.pt"


def train(
    config: TrainConfig,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    progress: bool = False,
    on_epoch: Callable[[TrainResult], None] | None = None,
) -> TrainResult:
    """Train a `VisionNet`, or go on with an interrupted run of the same configuration.

    After each epoch the state goes to `checkpoint_path`; the file is removed when the run is complete.

    Args:
        config: see `TrainConfig`.
        images: uint8 (n, 1, 28, 28) with n at least ``config.images``; what lies beyond is held out (5,000 at most).
        labels: uint8 (n,), 0..9.
        progress: show a progress bar with the estimated time left.
        on_epoch: called after each epoch, once its checkpoint is written.

    Raises:
        ValueError: there are fewer images than the configuration asks for, or less than one batch of them.
        DlcError: the checkpoint found is broken or of another network.
    """
    if not config.batch <= config.images <= len(images):
        raise ValueError(f"{config.images} images asked for, {len(images)} there, in batches of {config.batch}")
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    used = config.images + HELD_OUT
    inputs = torch.from_numpy(data.normalise(images[:used]))
    targets = torch.from_numpy(labels[:used].astype(np.int64))
    held_out = slice(config.images, used)

    torch.manual_seed(config.seed)
    # The channels-last layout halves the time of these convolutions on a CPU; it changes no shape.
    model = VisionNet().to(memory_format=torch.channels_last)
    steps = config.images // config.batch
    # The schedule cycles the momentum too, between 0.95 and 0.85; what is given here only switches it on.
    optimiser = torch.optim.SGD(
        model.parameters(), lr=config.peak_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.peak_rate, config.epochs * steps)
    result = TrainResult(model, config)
    path = checkpoint_path(config)
    if path.is_file():
        try:
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            schedule.load_state_dict(state["schedule"])
            result.losses, result.held_out, result.seconds = state["losses"], state["held_out"], state["seconds"]
        except (RuntimeError, KeyError, ValueError, UnpicklingError) as error:
            raise DlcError(f"{path} is not a checkpoint of this network; delete it to start over ({error})") from error

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("training", total=config.epochs * steps, completed=len(result.losses) * steps)
        for epoch in range(len(result.losses), config.epochs):
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch + 1)
            order = torch.randperm(config.images, generator=generator)
            model.train()
            total = 0.0
            for step in range(steps):
                chosen = order[step * config.batch : (step + 1) * config.batch]
                batch = inputs[chosen]
                if config.augment:
                    batch = augment(batch, generator)
                loss = nn.functional.cross_entropy(
                    model(batch.contiguous(memory_format=torch.channels_last)), targets[chosen]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item()
                label = f"epoch {epoch + 1}/{config.epochs} loss {total / (step + 1):.3f}"
                bar.update(task, advance=1, description=label)
            result.losses.append(total / steps)
            result.held_out.append(_accuracy(model, inputs[held_out], targets[held_out]))
            result.seconds += time.perf_counter() - start
            _save_checkpoint(path, result, optimiser, schedule)
            if on_epoch:
                on_epoch(result)
    path.unlink(missing_ok=True)
    model.eval()
    return result


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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


def save_weights(result: TrainResult, path: Path) -> None:
    """Write the model's tensors as safetensors, with the configuration, the time and the losses as metadata."""
    # safetensors writes the buffer as it lies: without the copy, channels-last weights would come out shuffled.
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in result.model.state_dict().items()}
    notes = {
        **asdict(result.config),
        "seconds": round(result.seconds, 1),
        "loss": round(result.losses[-1], 4),
        "held_out": result.held_out[-1],
        "torch": torch.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {name: str(value) for name, value in notes.items()})


def load_weights(path: Path) -> nn.Module:
    """Read what `save_weights` wrote and return the model in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    model = VisionNet()
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DlcError(f"{path} does not hold weights of this network: {error}") from error
    return model.eval()


def _accuracy(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of images (0..1) whose largest logit is the target's; NaN without images."""
    model.eval()
    with torch.no_grad():
        hits = [
            (model(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum().item()
            for x, y in zip(inputs.split(500), targets.split(500), strict=True)
        ]
    return sum(hits) / len(targets) if len(targets) else float("nan")


def _save_checkpoint(
    path: Path, result: TrainResult, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.OneCycleLR
) -> None:
    """Write the state after an epoch; whole or not at all, since an interruption may come at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": result.model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "losses": result.losses,
        "held_out": result.held_out,
        "seconds": result.seconds,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
