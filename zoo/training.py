"""The training loop of the families that use torch: seeded, deterministic, resumable, with the time left.

One seed on one machine with one thread count gives one model: every epoch draws from generators seeded by (seed,
epoch), so a resumed run continues exactly as an uninterrupted one. The state is kept after each epoch; a family whose
pass over the data takes long calls a part of it an epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from dlc.cache import cache_dir
from dlc.errors import DlcError
from dlc.zoo.family import TrainOptions


@dataclass(frozen=True)
class Config:
    """What decides the trained model; a family adds its own numbers and texts. Equal ones give equal models.

    Attributes:
        seed: of the weights and of everything drawn.
        epochs: how often the loop asks for batches.
        threads: torch's threads. Sums are split by thread, so another count gives a slightly different model.
        device: torch's name of the device that trains. `run` takes the network and the batches there.
    """

    seed: int = 0
    epochs: int = 8
    threads: int = 2
    device: str = "cpu"

    def quick(self) -> Self:
        """The same for a trial of under a minute."""
        return dataclasses.replace(self, epochs=2)


C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=nn.Module)


def configured(config: C, options: TrainOptions) -> C:
    """A family's configuration with what the options of the command line say."""
    config = dataclasses.replace(config, seed=options.seed, device=options.device)
    config = config.quick() if options.quick else config
    return dataclasses.replace(config, epochs=options.epochs or config.epochs)


@dataclass
class Task:
    """What is trained, and how.

    Attributes:
        model: its parameters are trained, in training mode; it stays in evaluation mode elsewhere.
        optimiser: steps once a batch.
        steps: batches an epoch.
        batches: yields `steps` batches for one epoch, drawing from the generator given alone: tensors, or tuples of
            batches, and whatever else.
        loss: of one batch, a scalar.
        held_out: the figure watched, after each epoch, in evaluation mode and without gradients; the network is on
            the device then, see `to_device_of`.
        schedule: of the learning rate; steps once a batch.
        clip: the largest norm of the gradient, where it is limited.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    steps: int
    batches: Callable[[torch.Generator], Iterator[Any]]
    loss: Callable[[Any], torch.Tensor]
    held_out: Callable[[], float]
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    clip: float | None = None


@dataclass
class History:
    """How a training went.

    Attributes:
        losses: the mean training loss of each epoch.
        held_out: the figure watched, after each epoch.
        seconds: training time, summed over interrupted runs.
    """

    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0


#: Called after each epoch, once its checkpoint is written.
OnEpoch = Callable[[History], None]


def checkpoint_path(family: str, config: Config) -> Path:
    """Return where the run of `config` keeps its checkpoint; no two configurations share one."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return cache_dir() / family / f"checkpoint-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"


def seed_everything(config: Config) -> None:
    """Make torch deterministic and seed it; call it before the model is built.

    What has no deterministic form on a GPU (the gradient of the CTC loss) runs there as it is, with a warning.

    Raises:
        DlcError: there is no such device.
    """
    torch.set_num_threads(config.threads)
    if config.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with that alone
        try:
            torch.zeros(1, device=config.device)
        except (RuntimeError, AssertionError) as error:
            raise DlcError(f"torch has no device '{config.device}' here: {str(error).splitlines()[0]}") from error
    torch.use_deterministic_algorithms(True, warn_only=config.device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a sixth of the time; nothing reads such memory
    torch.manual_seed(config.seed)


def run(
    family: str,
    config: Config,
    task: Task,
    *,
    progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Train `task`, or go on with an interrupted run of the same configuration.

    After each epoch the state goes to `checkpoint_path`; the file is removed when the run is complete.

    Args:
        family: whose checkpoints they are.
        config: see `Config`; `seed_everything` was called with it before the task's model was built.
        task: what is trained.
        progress: show a bar with the estimated time left.
        on_epoch: see `OnEpoch`.

    Raises:
        DlcError: the checkpoint found is broken or of another network.
    """
    path = checkpoint_path(family, config)
    task.model.to(config.device)
    history = _load_checkpoint(path, task) if path.is_file() else History()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    done = len(history.losses)
    with Progress(*columns, disable=not progress, console=Console(stderr=True)) as bar:
        line = bar.add_task("training", total=config.epochs * task.steps, completed=done * task.steps)
        for epoch in range(done, config.epochs):
            start = time.perf_counter()
            seed = config.seed * 100_003 + epoch + 1
            torch.manual_seed(seed)  # dropout draws from here
            task.model.train()
            total = 0.0
            for step, batch in enumerate(task.batches(torch.Generator().manual_seed(seed))):
                total += _step(task, to_device_of(task.model, batch))
                label = f"epoch {epoch + 1}/{config.epochs} loss {total / (step + 1):.3f}"
                bar.update(line, advance=1, description=label)
            history.losses.append(total / task.steps)
            task.model.eval()
            with torch.no_grad():
                history.held_out.append(task.held_out())
            history.seconds += time.perf_counter() - start
            _save_checkpoint(path, task, history)
            if on_epoch:
                on_epoch(history)
    path.unlink(missing_ok=True)
    task.model.eval().to("cpu")
    return history


def to_device_of(model: nn.Module, batch: Any) -> Any:
    """A batch (see `Task`) where the parameters of `model` are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(_device_of(model))
    return tuple(to_device_of(model, part) for part in batch) if isinstance(batch, tuple) else batch


def epoch_report(report: Callable[[str], None], epochs: int, watched: str) -> OnEpoch:
    """An `on_epoch` that reports loss, the figure watched (a format of ``{:...}``) and the estimated time left."""

    def show(history: History) -> None:
        done = len(history.losses)
        left = history.seconds / done * (epochs - done)
        ending = f", about {left / 60:.1f} min left" if left else ""
        report(f"epoch {done}/{epochs}: loss {history.losses[-1]:.4f}, {watched.format(history.held_out[-1])}{ending}")

    return show


def save_weights(model: nn.Module, config: Config, history: History, path: Path) -> None:
    """Write the model's tensors as safetensors, with the configuration, the time and the losses as metadata."""
    # safetensors writes the buffer as it lies: without the copy, channels-last weights would come out shuffled.
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"notes": json.dumps(notes_of(config, history))})


def notes_of(config: Config, history: History) -> dict[str, Any]:
    """Notes on a training: the configuration, ``seconds``, ``loss``, ``held_out``, ``torch``, ``device``."""
    return {
        **dataclasses.asdict(config),
        "seconds": round(history.seconds, 1),
        "loss": round(history.losses[-1], 4),
        "held_out": history.held_out[-1],
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else config.device,
    }


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Read what `save_weights` wrote into `model` and return it in evaluation mode.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DlcError(f"{path} does not hold weights of this network: {error}") from error
    return model.eval()


def load_sized(path: Path, sizes: Container[str], build: Callable[[str], M]) -> tuple[M, dict[str, Any]]:
    """The network of the size that its weights at `path` are of, in evaluation mode, and the notes on its training.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    notes = read_notes(path)
    if notes.get("size") not in sizes:
        raise DlcError(f"{path} does not hold weights of this family")
    model = build(notes["size"])
    load_weights(model, path)
    return model, notes


def read_notes(path: Path) -> dict[str, Any]:
    """The notes that `save_weights` wrote: see `notes_of`.

    Raises:
        DlcError: the file is not safetensors, or has no notes.
    """
    try:
        with safe_open(path, "numpy") as tensors:
            return dict(json.loads(tensors.metadata()["notes"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DlcError(f"{path} does not hold weights with notes on their training: {error}") from error


def _step(task: Task, batch: Any) -> float:
    """One step of the optimiser; returns the loss."""
    loss = task.loss(batch)
    task.optimiser.zero_grad()
    loss.backward()
    if task.clip is not None:
        nn.utils.clip_grad_norm_(task.model.parameters(), task.clip)
    task.optimiser.step()
    if task.schedule is not None:
        task.schedule.step()
    return float(loss.item())


def _save_checkpoint(path: Path, task: Task, history: History) -> None:
    """Write the state after an epoch; whole or not at all, since an interruption may come at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": task.model.state_dict(),
        "optimiser": task.optimiser.state_dict(),
        "schedule": task.schedule.state_dict() if task.schedule is not None else {},
        "history": dataclasses.asdict(history),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _load_checkpoint(path: Path, task: Task) -> History:
    try:
        state = torch.load(path, weights_only=True, map_location=_device_of(task.model))
        task.model.load_state_dict(state["model"])
        task.optimiser.load_state_dict(state["optimiser"])
        if task.schedule is not None:
            task.schedule.load_state_dict(state["schedule"])
        return History(**state["history"])
    except (RuntimeError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        raise DlcError(f"{path} is not a checkpoint of this network; delete it to start over ({error})") from error
