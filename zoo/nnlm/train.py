"""Training: Adam with a one-cycle learning rate, by the zoo's loop, on windows (feed-forward) or streams (LSTM).

A size is an output layer and a loss. What a training without ``--quick`` learned is kept in the cache too, because the
card compares all sizes; of the small network alone it keeps what was measured, because the card compares its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc.cache import cache_dir
from dlc.zoo import measured, training
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.ngram import data as brown
from dlc.zoo.nnlm import data, tree
from dlc.zoo.nnlm.model import LanguageModel, Recurrent, Shape

_SHAPES = {
    "hsoftmax": Shape(),
    "binary": Shape(output="binary"),
    "full": Shape(output="full"),
    "importance": Shape(output="full", loss="importance"),
    "nce": Shape(output="full", loss="nce"),
    "shortlist": Shape(output="shortlist"),
    "lstm": Shape(body="lstm", dropout=0.3),
    "student": Shape(width=32, hidden=64),
}
#: By the output layer or the loss; ``lstm`` and ``student``, the small network, have the first one's output layer.
SIZES = tuple(_SHAPES)
STUDENT = SIZES[-1]
WEIGHTS = ".safetensors"
_QUICK_WORDS = 30_000
#: Epochs in one pass over the data; each draws its share of the words anew.
PARTS = 4
#: Words through which the LSTM's gradient goes back.
STREAM_STEPS = 32
#: Words of the test part whose log P is summed: neighbouring words are not independent.
BLOCK = 500

#: The training loss of a network for contexts (N, CONTEXT) and words (N,).
Loss = Callable[[LanguageModel, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainConfig(training.Config):
    """What decides the trained model, besides what every training has.

    Attributes:
        epochs: parts of a pass over the data, `PARTS` to a pass, so that an interrupted run loses little.
        size: of `SIZES`.
        words: training words used, from the first on.
        held_out: validation words watched, from the first on.
        batch: words a step.
        peak_rate: the highest learning rate of the cycle.
    """

    epochs: int = 3 * PARTS
    threads: int = 1
    size: str = SIZES[0]
    words: int = 800_000
    held_out: int = 20_000
    batch: int = 512
    peak_rate: float = 3e-3

    def quick(self) -> Self:
        """Return the same for a trial of some seconds."""
        return replace(self, epochs=2 * PARTS, words=_QUICK_WORDS, held_out=2_000)


def configure(options: TrainOptions) -> TrainConfig:
    """The configuration that the options of the command line stand for."""
    return training.configured(TrainConfig(size=options.size), options)


def shape_of(size: str) -> Shape:
    """The network of a size."""
    return _SHAPES[size]


def kept(size: str, epochs: int) -> Path:
    """Where the weights of a whole training are kept for the card."""
    return cache_dir() / "nnlm" / "trained" / f"{size}-{epochs}{WEIGHTS}"


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Train on the Brown corpus, or go on with an interrupted run, and write the weights.

    Raises:
        DlcError: the corpus is missing or damaged, or the checkpoint found is.
    """
    config = configure(options)
    corpus = brown.load_corpus(options.data)
    model, history = train_on(config, corpus, options, report)
    training.save_weights(model, config, history, weights)
    if options.quick:
        return
    if config.size == STUDENT:
        keep_measured(STUDENT, config, model, history, corpus)
    else:
        training.save_weights(model, config, history, kept(config.size, config.epochs))


def train_on(
    config: TrainConfig, corpus: brown.Corpus, options: TrainOptions, report: Report, loss: Loss = LanguageModel.loss
) -> tuple[LanguageModel, training.History]:
    """`fit` on a corpus that is read already, with reports."""
    on_epoch = training.epoch_report(report, config.epochs, "validation perplexity {:.1f}")
    return fit(
        config, tree.load_words(), corpus.part("train"), corpus.part("validation"), loss,
        progress=options.progress, on_epoch=on_epoch,
    )  # fmt: skip


def keep_measured(
    name: str, config: TrainConfig, model: LanguageModel, history: training.History, corpus: brown.Corpus
) -> None:
    """Keep what the card needs of a training, as ``NAME-SEED``.

    That is ``nats``, the sum of log P of each block of `BLOCK` words of the test part; a shorter rest is left out.
    """
    nats = score_stream(model.to(config.device), corpus.part("test"))
    blocks = nats[: len(nats) // BLOCK * BLOCK].reshape(-1, BLOCK).sum(1)
    key = f"{name}-{config.seed}"
    found = measured.Measured(training.notes_of(config, history), {"nats": blocks})
    measured.write(measured.kept("nnlm") / f"{key}.npz", {key: found})


def fit(
    config: TrainConfig,
    words: tree.Words,
    ids: NDArray[np.int32],
    held_out: NDArray[np.int32],
    loss: Loss = LanguageModel.loss,
    *,
    progress: bool = False,
    on_epoch: training.OnEpoch | None = None,
) -> tuple[LanguageModel, training.History]:
    """Train a model, or go on with an interrupted run of the same configuration.

    Args:
        config: see `TrainConfig`.
        words: the vocabulary.
        ids: the training stream, (n,); its first ``config.words`` are used.
        held_out: the validation stream, (m,); its first ``config.held_out`` are watched.
        loss: the training loss.
        progress: see `training.run`.
        on_epoch: see `training.run`.

    Returns:
        The model in evaluation mode, and a history whose held-out figure is the perplexity.

    Raises:
        ValueError: there are less than `PARTS` batches of words.
        DlcError: the checkpoint found is broken or of another network.
    """
    ids, held_out = ids[: config.words], held_out[: config.held_out]
    training.seed_everything(config)
    model = LanguageModel(words, _SHAPES[config.size])
    streams = config.batch // STREAM_STEPS
    if isinstance(model.body, Recurrent):
        steps = (len(ids) - 1) // (streams * STREAM_STEPS * PARTS)
    else:
        steps = (len(ids) - data.CONTEXT) // (config.batch * PARTS)
    if steps < 1:
        raise ValueError(f"{len(ids)} words are less than {PARTS} batches of {config.batch}")

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(model.body, Recurrent):
            yield from _stream_batches(model.body, ids, streams, steps, generator)
            return
        rows = torch.from_numpy(data.windows(ids))
        for chosen in torch.randperm(len(rows), generator=generator)[: steps * config.batch].split(config.batch):
            batch = rows[chosen]
            yield batch[:, :-1], batch[:, -1]

    optimiser = torch.optim.Adam(model.parameters(), lr=config.peak_rate, fused=True)
    task = training.Task(
        model, optimiser, steps, batches,
        lambda batch: loss(model, *batch),
        lambda: float(np.exp(-score_stream(model, held_out).mean())),
        torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.peak_rate, config.epochs * steps, pct_start=0.1, cycle_momentum=False
        ),
        clip=1.0,
    )  # fmt: skip
    return model, training.run("nnlm", config, task, progress=progress, on_epoch=on_epoch)


def score_stream(model: LanguageModel, ids: NDArray[np.int32], batch: int = 512) -> NDArray[np.float64]:
    """log P in nats of each word of a stream behind its first `CONTEXT`, (n - CONTEXT,).

    The LSTM, which remembers, reads the stream from its beginning.
    """
    parts = []
    with torch.no_grad():
        for features, word in stream_features(model, ids, batch):
            parts.append(model.output.log_prob(features, word).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def stream_features(model: LanguageModel, ids: NDArray[np.int32], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The features before each word of a stream behind its first `CONTEXT`, and the words, in parts."""
    rows = training.to_device_of(model, torch.from_numpy(data.windows(ids)))
    if isinstance(model.body, Recurrent):
        model.body.reset()
        model.body(rows[:1, : data.CONTEXT - 1])
    for part in rows.split(batch):
        if isinstance(model.body, Recurrent):
            yield model.body(part[None, :, -2]), part[:, -1]
        else:
            yield model.body(part[:, :-1]), part[:, -1]


def load_weights(path: Path) -> tuple[LanguageModel, dict[str, Any]]:
    """The network with the weights at `path`, in evaluation mode, and the notes on its training.

    Raises:
        DlcError: the file is not safetensors, or holds another network.
    """
    return training.load_sized(path, _SHAPES, lambda size: LanguageModel(tree.load_words(), _SHAPES[size]))


def _stream_batches(
    body: Recurrent, ids: NDArray[np.int32], streams: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read as many streams side by side, from places drawn; yield words and next words, (streams, STREAM_STEPS)."""
    length = steps * STREAM_STEPS
    begins = torch.randint(0, len(ids) - length, (streams, 1), generator=generator)
    rows = torch.from_numpy(ids.astype(np.int64))[begins + torch.arange(length + 1)]
    body.reset()
    for start in range(0, length, STREAM_STEPS):
        chunk = rows[:, start : start + STREAM_STEPS + 1]
        yield chunk[:, :-1], chunk[:, 1:]
