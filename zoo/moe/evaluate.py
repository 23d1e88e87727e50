"""Perplexity of the mixture of experts by kind of text, and the card, which compares it with a dense layer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

import dlc
from dlc import explain, zoo
from dlc.runtime.files import atomic_write
from dlc.zoo import cards, measured
from dlc.zoo.family import Report, Score
from dlc.zoo.measured import Measured
from dlc.zoo.models import Model, OnnxModel, PackageModel, run_in_batches
from dlc.zoo.moe import data, picture
from dlc.zoo.moe.text import SECTIONS
from dlc.zoo.statistics import Interval, paired_bootstrap

_BATCH = 1000
_MODES: tuple[Literal["none", "int8", "int8-dynamic"], ...] = ("none", "int8", "int8-dynamic")
_TRAININGS, _PICTURE = "trainings.npz", "experts.svg"
_COMMITTED, _BASELINE = "top-2", "dense"
_BLOCK = 500  # words of the excerpt; the bootstrap draws blocks, because neighbouring words are not independent
_TRIED = 8  # rows for which the others' weights are made NaN
_FULLEST = 2.0  # times the mean load; what Fedus et al. (2021) give an expert room for


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure the perplexity of the test part of all kinds of text, or of its embedded beginning."""
    rows, kinds = _test_part(directory) if full else data.load_excerpt("test")
    start = time.perf_counter()
    log10 = _log10(model, rows)
    seconds = time.perf_counter() - start
    value, each = _perplexity(log10), _of_kinds(log10, kinds)
    listed = ", ".join(f"{data.TITLES[kind]} {p:.1f}" for kind, p in each.items())
    text = f"perplexity {value:.2f} ({listed}; {len(log10):,} words of the test part, {seconds:.1f} s)"
    return Score("perplexity", value, text, {"count": len(log10), "seconds": seconds, "kinds": each})


def _test_part(directory: Path | None) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The rows of the test part, and the kind of each."""
    corpus = data.load_corpus(directory)
    rows = [corpus.rows("test", kind).astype(np.int64) for kind in data.KINDS]
    return np.concatenate(rows), np.repeat(np.arange(len(rows), dtype=np.uint8), [len(r) for r in rows])


def _log10(model: Model, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return run_in_batches(model, {data.INPUT: rows}, _BATCH)["log10"].astype(np.float64)


def _perplexity(log10: NDArray[np.float64]) -> float:
    return float(10 ** -log10.mean())


def _of_kinds(log10: NDArray[np.float64], kinds: NDArray[np.uint8]) -> dict[str, float]:
    return {kind: _perplexity(log10[kinds == number]) for number, kind in enumerate(data.KINDS)}


def chosen(path: Path, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The experts that the committed model or one like it chooses for each row, (n, 2), the better one last.

    From its embeddings and its router: the model itself does not give them.
    """
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    windows = tensors["embedding"][rows[:, :-1]].reshape(len(rows), -1)
    return np.argsort(windows @ tensors["router"], 1)[:, -2:]


def without_others(path: Path, row: NDArray[np.int64]) -> onnx.ModelProto:
    """The model with NaN for all weights of the experts that it does not choose for a row, (CONTEXT + 1,)."""
    proto = onnx.load(path)
    experts = chosen(path, row[None])[0]
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1", "w2", "b2"):
            weights = np.full(tuple(tensor.dims), np.nan, np.float32)
            weights[experts] = numpy_helper.to_array(tensor)[experts]
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return proto


# --- the card


@dataclass(frozen=True)
class _Findings:
    """What the card reports.

    Attributes:
        trainings: by name, ``SIZE-SEED``; see `dlc.zoo.moe.train.measure`.
        full, embedded: perplexities of the committed model: of the test part, and of the excerpt.
        each: that of the test part of each kind of text.
        words: of the test part.
        load: how often the committed model chooses each expert for the words of each kind, (kinds, experts).
        compiled: by quantisation, the perplexity of the excerpt, and the interval of its difference of mean log10 P.
        grouped: the kernels of the compiled model that multiply rows by their own experts' weights.
        untouched: rows whose probability stays the same, bit by bit, where all other experts' weights are NaN.
        tried: of how many.
    """

    trainings: Mapping[str, Measured]
    full: float
    embedded: float
    each: Mapping[str, float]
    words: int
    load: NDArray[np.int64]
    compiled: Mapping[str, tuple[float, Interval]]
    grouped: Sequence[str]
    untouched: int
    tried: int


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure the committed model and its packages, and compare the trainings; write ``card.md``.

    What trainings on this machine were found to do joins what ``trainings.npz`` beside the card has of others.

    Raises:
        DlcError: a text package or onnxruntime is missing, or there are no notes on this model's training.
    """
    path = zoo.model_path("moe")
    if weights is None:
        notes = cards.training_notes("moe")
    else:
        from dlc.zoo.training import read_notes  # torch

        notes = read_notes(weights)
    trainings = measured.read(path.with_name(_TRAININGS))
    for file in sorted(measured.kept("moe").glob("*.npz")):
        trainings |= measured.read(file)
    measured.write(path.with_name(_TRAININGS), trainings)
    report("the test part")
    rows, kinds = _test_part(directory)
    model = OnnxModel(path)
    log10 = _log10(model, rows)
    experts = chosen(path, rows)
    count = experts.max() + 1
    each = (experts[kinds == number].ravel() for number in range(len(data.KINDS)))
    load = np.stack([np.bincount(choices, minlength=count) for choices in each])
    with atomic_write(path.with_name(_PICTURE)) as out:
        out.write(picture.draw(load, list(data.TITLES.values())).encode())
    excerpt = _log10(model, data.load_excerpt("test")[0])
    report("the experts that are read")
    grouped, untouched, tried = _measure_reads(path)
    found = _Findings(
        trainings, _perplexity(log10), _perplexity(excerpt), _of_kinds(log10, kinds), len(log10), load,
        _measure_compiled(excerpt, report), grouped, untouched, tried,
    )  # fmt: skip
    return cards.write_card(_card(found, notes))


def _measure_compiled(excerpt: NDArray[np.float64], report: Report) -> dict[str, tuple[float, Interval]]:
    """See `_Findings`; the intervals are against the ONNX file's probabilities."""
    compiled = {}
    for mode in _MODES:
        report(f"the package, quantisation {mode}")
        calibration = data.samples("calibration") if mode == "int8" else None
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "moe.dlc"
            dlc.compile("zoo:moe", quantize=mode, calibration=calibration).save(package)
            log10 = _log10(PackageModel(package), data.load_excerpt("test")[0])
        ours, theirs = (x.reshape(-1, _BLOCK).mean(1) for x in (log10, excerpt))
        compiled[str(mode)] = _perplexity(log10), paired_bootstrap(ours, theirs)
    return compiled


def _measure_reads(path: Path) -> tuple[list[str], int, int]:
    """See `_Findings`: the kernels, how many rows stay the same, and of how many."""
    package = dlc.compile(str(path))
    session = dlc.load(package)
    rows = data.load_excerpt("test")[0]
    rows = rows[:: len(rows) // _TRIED]
    same = 0
    for row in rows:
        alone = dlc.load(dlc.compile(without_others(path, row), cache=False))
        expected, actual = (run.run({data.INPUT: row[None]})["log10"] for run in (session, alone))
        same += int(np.array_equal(expected, actual))
    kernels = [str(node["kernel"]) for node in explain.read(package).nodes]
    return [kernel for kernel in kernels if kernel.startswith("grouped")], same, len(rows)


def _seeds(found: _Findings, size: str) -> dict[int, Measured]:
    """The trainings of a size by seed."""
    names = {name.rpartition("-") for name in found.trainings}
    return {int(seed): found.trainings[f"{of}-{seed}"] for of, _, seed in sorted(names) if of == size}


def _value(training: Measured) -> float:
    """The test perplexity of a training."""
    nats = training.arrays["nats"]
    return float(np.exp(-nats.sum() / (nats.size * data.BLOCK)))


def _gain(found: _Findings, size: str) -> tuple[list[int], Interval] | None:
    """The seeds in common with the dense layer's trainings, and the interval of the gain in nats a word.

    The units are blocks of text; a block's value is the mean over the seeds.
    """
    ours, theirs = _seeds(found, size), _seeds(found, _BASELINE)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    blocks = [np.mean([each[s].arrays["nats"].ravel() / data.BLOCK for s in seeds], 0) for each in (ours, theirs)]
    return seeds, paired_bootstrap(*blocks)


def _ratio(interval: Interval) -> str:
    """A gain in nats as what the perplexity becomes."""
    value, low, high = (np.exp(-x) - 1 for x in (interval.value, interval.high, interval.low))
    return f"{value:+.1%} ({low:+.1%} to {high:+.1%})"


def _comparison(found: _Findings) -> tuple[bool, str]:
    """Whether the committed size beats the dense layer, and the figures."""
    gain = _gain(found, _COMMITTED)
    if gain is None:
        return False, "not measured: not both are trained"
    seeds, interval = gain
    pairs = [[_value(_seeds(found, size)[seed]) for size in (_COMMITTED, _BASELINE)] for seed in seeds]
    texts = "; ".join(f"seed {seed}: {a:.1f} against {b:.1f}" for seed, (a, b) in zip(seeds, pairs, strict=True))
    met = len(seeds) >= 3 and interval.low > 0 and all(a < b for a, b in pairs)
    return met, f"{texts}; perplexity {_ratio(interval)}"


def _claims(found: _Findings) -> list[cards.Claim]:
    share = found.load.sum(0) / found.load.sum()
    value, interval = found.compiled["int8"]
    fullest = float(share.max() * len(share))
    return [
        cards.Claim(
            "Hard experts (the best two of 8) have a lower perplexity than a dense layer of equally many operations, "
            "data and steps, on the held-out text of all four kinds, over three seeds (95 % interval)",
            *_comparison(found),
        ),
        cards.Claim(
            f"The load is balanced: no expert takes more than {_FULLEST:g} times the mean, and every one is used",
            fullest <= _FULLEST and float(share.min()) > 0,
            f"{share.min():.1%} to {share.max():.1%} of the choices an expert, the mean being {1 / len(share):.1%}",
        ),
        cards.Claim(
            "The compiled model reads the weights of the chosen experts alone",
            len(found.grouped) == 2 and found.untouched == found.tried,
            f"`dlc explain` shows both products as {found.grouped[0] if found.grouped else 'dense'}; with NaN for all "
            f"experts but the two chosen, {found.untouched} of {found.tried} words keep their probability",
        ),
        cards.Claim(
            "The int8 package's perplexity is within 1 % of float32's, or does not differ from it significantly",
            abs(value / found.embedded - 1) <= 0.01 or interval.low <= 0 <= interval.high,
            f"{value:.2f} against {found.embedded:.2f} ({value / found.embedded - 1:+.2%})",
        ),
    ]


def _table(found: _Findings) -> str:
    """One line a training."""
    lines = []
    for name, training in found.trainings.items():
        nats = training.arrays["nats"].sum(1) / (training.arrays["nats"].shape[1] * data.BLOCK)
        load = training.arrays["load"].sum(0)
        fullest = f"{load.max() / load.mean():.2f}" if len(load) else ""
        size, _, seed = name.rpartition("-")
        lines.append(
            (size, seed, *(f"{np.exp(-n):.1f}" for n in nats), f"{_value(training):.2f}", fullest,
             f"{training.notes['multiply_adds']:,}", f"{training.notes['parameters']:,}",
             f"{training.notes['seconds']:.0f} s, {cards.trained_on(training.notes)}")
        )  # fmt: skip
    titles = (data.TITLES[kind] for kind in data.KINDS)
    columns = ("Layer", "Seed", *titles, "All", "Fullest expert", "Multiply-adds a word", "Parameters", "Training")
    return cards.table(columns, lines)


def _experts_table(found: _Findings) -> str:
    """How far apart the kinds of text are in the experts' eyes: the expert that takes most of each."""
    share = found.load / found.load.sum(1, keepdims=True)
    lines = []
    for number, kind in enumerate(data.KINDS):
        best = np.argsort(-share[number], kind="stable")[:3]
        lines.append((data.TITLES[kind], ", ".join(f"{e} ({share[number, e]:.0%})" for e in best)))
    return cards.table(("Kind of text", "Experts that take most of it"), lines)


def _information(load: NDArray[np.int64]) -> tuple[float, float]:
    """What a word's expert tells of its kind of text, in bits, and what there is to tell."""
    joint = load / load.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    kinds = joint.sum(1)
    return float((joint[seen] * np.log2(joint[seen] / alone[seen])).sum()), float(-(kinds * np.log2(kinds)).sum())


def _card(found: _Findings, notes: dict[str, Any]) -> cards.Card:
    path = zoo.model_path("moe")
    told, there = _information(found.load)
    values = {
        "notes": notes, "minutes": notes["seconds"] / 60, "trained_on": cards.trained_on(notes),
        "size": path.stat().st_size / 1e6, "full": found.full, "embedded": found.embedded, "words": found.words,
        "seen": notes["epochs"] * notes["steps"] * notes["batch"], "table": _table(found),
        "experts": _experts_table(found), "told": told, "there": there, "picture": _PICTURE,
        "each": ", ".join(f"{data.TITLES[kind]} {value:.1f}" for kind, value in found.each.items()),
        "block": data.BLOCK, "excerpt": len(data.load_excerpt("test")[0]), "blocks": _BLOCK,
        "compiled": cards.table(
            ("Quantisation", "Perplexity", "Against the ONNX file", "Difference of mean log10 P, 95 % interval"),
            [
                (mode, f"{value:.2f}", f"{value / found.embedded - 1:+.2%}", f"{i.low:+.5f} to {i.high:+.5f}")
                for mode, (value, i) in found.compiled.items()
            ],
        ),
    }  # fmt: skip
    dense = [_value(training) for training in _seeds(found, _BASELINE).values()]
    return cards.Card(
        "moe", "moe: a hard mixture of experts over four kinds of text", "four kinds of text, next word of 8,000",
        f"perplexity, {found.words:,} test words", found.full, f"{found.full:.1f}",
        ("dense layer", f"{np.mean(dense):.1f}" if dense else "not trained"), _claims(found), notes,
        {
            "embedded_value": found.embedded, "kinds": dict(found.each),
            "load": (found.load.sum(0) / found.load.sum()).round(4).tolist(),
            "compiled": {mode: value for mode, (value, _) in found.compiled.items()},
        },
        [(heading, text.format_map(values)) for heading, text in SECTIONS],
    )  # fmt: skip
