"""The rows of the card's table: every training that the cache keeps, measured on the embedded excerpt of the test part.

The whole test part takes a full softmax minutes, and the excerpt tells the rows apart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlc.zoo.cards import digest
from dlc.zoo.family import Report
from dlc.zoo.ngram import data as brown
from dlc.zoo.ngram.model import NgramModel
from dlc.zoo.nnlm import data
from dlc.zoo.nnlm.model import LanguageModel
from dlc.zoo.nnlm.output import ShortlistSoftmax
from dlc.zoo.nnlm.shortlist import tail_log10
from dlc.zoo.nnlm.train import PARTS, SIZES, kept, load_weights, score_stream, shape_of, stream_features
from dlc.zoo.training import read_notes

_BATCH = 512


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        size: of `SIZES`.
        body: of the network.
        output: its output layer.
        loss: of the training.
        passes: over the training part; each epoch is a part of one.
        perplexity: of the excerpt; a short list's tail is the trigram's.
        alone: of a short list, the perplexity with the tail by its unigram distribution.
        seconds: of training.
        microseconds: a word of the excerpt, in batches on one thread.
        work: multiply-adds a word, the mean over the excerpt.
        output_work: of these, the output layer's.
        sha256: of the weights.
        device: that trained.
    """

    size: str
    body: str
    output: str
    loss: str
    passes: float
    perplexity: float
    alone: float | None
    seconds: float
    microseconds: float
    work: float
    output_work: float
    sha256: str
    device: str = "cpu"


def measure(trigram: NgramModel, previous: Sequence[Mapping[str, Any]], report: Report) -> list[Row]:
    """Measure what the cache keeps; rows of `previous` stand where their weights are the same, or are not kept here."""
    rows = {(row.size, row.passes): row for row in (Row(**record) for record in previous)}
    for path in sorted(kept(SIZES[0], 1).parent.glob("*.safetensors")):
        notes = read_notes(path)
        size, passes = notes["size"], notes["epochs"] / PARTS
        known = rows.get((size, passes))
        if known is None or known.sha256 != digest(path):
            report(f"the excerpt by {size} after {passes:g} passes")
            rows[size, passes] = _measure(path, brown.load_excerpt("test"), trigram)
    return sorted(rows.values(), key=lambda row: (SIZES.index(row.size), row.passes))


def _measure(path: Path, ids: NDArray[np.int32], trigram: NgramModel) -> Row:
    torch.set_num_threads(1)
    model, notes = load_weights(path)
    alone = None
    start = time.perf_counter()
    nats = score_stream(model, ids, _BATCH)
    microseconds = (time.perf_counter() - start) / len(nats) * 1e6
    if isinstance(model.output, ShortlistSoftmax):
        alone = _perplexity(nats)
        nats = _with_tail(model, model.output, ids, trigram)
    word = torch.from_numpy(ids[data.CONTEXT :].astype(np.int64))
    output_work = float(model.output.multiply_adds(word).double().mean())
    shape = shape_of(notes["size"])
    return Row(
        notes["size"], shape.body, shape.output, shape.loss, notes["epochs"] / PARTS, _perplexity(nats), alone,
        notes["seconds"], microseconds, model.body.multiply_adds() + output_work, output_work, digest(path),
        notes["device"],
    )  # fmt: skip


def _with_tail(
    model: LanguageModel, output: ShortlistSoftmax, ids: NDArray[np.int32], trigram: NgramModel
) -> NDArray[np.float64]:
    """log P in nats of each word behind the first `CONTEXT`, the short list's tail by the trigram."""
    with torch.no_grad():
        parts = [output.in_list(*part).numpy() for part in stream_features(model, ids, _BATCH)]
    tail = (output.place == len(output.rows) - 1).numpy()
    behind = tail_log10(trigram, tail, ids)[data.CONTEXT - trigram.order + 1 :]
    return np.concatenate(parts).astype(np.float64) + behind * np.log(10)


def _perplexity(nats: NDArray[np.float64]) -> float:
    return float(np.exp(-nats.mean()))


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    return [asdict(row) for row in rows]
