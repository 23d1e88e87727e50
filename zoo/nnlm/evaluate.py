"""Perplexity of the neural language model, and the card, which compares output layers and training losses."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

import dlc
from dlc import zoo
from dlc.runtime.files import atomic_write
from dlc.zoo import cards, measured
from dlc.zoo.family import Report, Score
from dlc.zoo.models import Model, OnnxModel, PackageModel
from dlc.zoo.ngram import classes, smoothing
from dlc.zoo.ngram import data as brown
from dlc.zoo.ngram import evaluate as ngram
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import Floats, perplexity
from dlc.zoo.nnlm import data, picture
from dlc.zoo.nnlm.text import SECTIONS
from dlc.zoo.statistics import Interval, paired_bootstrap

if TYPE_CHECKING:
    from dlc.zoo.nnlm.rows import Row

_BLOCK = 500  # words; the bootstrap draws blocks, because neighbouring words are not independent
_WEIGHT_WORDS = 50_000  # of the validation part, on which the mixture's weight is found
_TRAININGS = "trainings.npz"
_STUDENT, _DISTILLED = "student", "distilled"
_LEAST_SEEDS = 5
_MODES: tuple[Literal["none", "int8", "int8-dynamic"], ...] = ("none", "int8", "int8-dynamic")
_FREQUENT = 3_000  # words among which neighbours are looked for: the others are seen too rarely to have learned much
_PICTURE = "embeddings.svg"
_LOOKED_UP = (
    "Monday", "three", "John", "France", "went", "said", "could", "she", "small", "red", "children", "war",
)  # fmt: skip


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure the perplexity of the test part, or of its embedded beginning, as for the n-gram family."""
    return ngram.evaluate(model, full, directory)


# --- the card


@dataclass
class _Findings:
    """What the card reports.

    Attributes:
        rows: of the table.
        committed: test perplexity of the committed model.
        embedded: that of the excerpt.
        trigram: test perplexity of the Kneser-Ney trigram on the same words.
        mixed: that of the mixture of both.
        weight: of the neural model in the mixture.
        compiled: by quantisation, the perplexity of the excerpt, and the interval of its difference of mean log10 P.
        students: of each size and seed, the mean log P in nats of each block of the test part.
    """

    rows: list[Row] = field(default_factory=list)
    committed: float = 0.0
    embedded: float = 0.0
    trigram: float = 0.0
    mixed: float = 0.0
    weight: float = 0.0
    compiled: dict[str, tuple[float, Interval]] = field(default_factory=dict)
    students: dict[str, dict[int, Floats]] = field(default_factory=dict)


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure the committed model, its packages and every training that the cache keeps; write ``card.md``.

    Rows of the table whose weights are not kept on this machine stay as they are in the present card.

    Raises:
        DlcError: the corpus, torch or onnxruntime is missing, or there are no notes on this model's training.
    """
    from dlc.zoo.nnlm import rows  # torch
    from dlc.zoo.training import read_notes

    notes = cards.training_notes("nnlm") if weights is None else read_notes(weights)
    path = zoo.model_path("nnlm")
    present = path.with_name("card.md")
    corpus = brown.load_corpus(directory)
    test = corpus.part("test")
    found = _Findings()
    report("the trigram")
    trigram = smoothing.kneser_ney(count([corpus.part("train")], len(corpus.words), brown.ORDER))
    found.rows = rows.measure(trigram, cards.read_head(present)["rows"] if present.is_file() else [], report)
    found.students = _read_students(present.with_name(_TRAININGS))
    report("the committed model, alone and mixed with the trigram")
    model = OnnxModel(path)
    validation = corpus.part("validation")[:_WEIGHT_WORDS]
    found.weight = classes.mixture_weight(
        ngram.score_stream(model, validation), trigram.score_stream(validation)[data.CONTEXT :]
    )
    ours, theirs = ngram.score_stream(model, test), trigram.score_stream(test)[data.CONTEXT :]
    found.committed, found.trigram = perplexity(ours), perplexity(theirs)
    found.mixed = perplexity(classes.mix(ours, theirs, found.weight))
    excerpt = ngram.score_stream(model, brown.load_excerpt("test"))
    found.embedded = perplexity(excerpt)
    _measure_compiled(found, excerpt, report)
    vectors = _embeddings(path)
    with atomic_write(path.with_name(_PICTURE)) as file:
        file.write(picture.draw(vectors, corpus.words).encode())
    near = _neighbours(vectors[1 : _FREQUENT + 1], corpus.words[1 : _FREQUENT + 1])
    return cards.write_card(_card(found, notes, near, len(test) - data.CONTEXT, rows.SIZES, rows.records(found.rows)))


def _read_students(path: Path) -> dict[str, dict[int, Floats]]:
    """See `_Findings`. What trainings on this machine were found to do joins what `path` has of others."""
    trainings = measured.read(path)
    for file in sorted(measured.kept("nnlm").glob("*.npz")):
        trainings |= measured.read(file)
    measured.write(path, trainings)
    found: dict[str, dict[int, Floats]] = {_STUDENT: {}, _DISTILLED: {}}
    for name, training in trainings.items():
        size, _, seed = name.rpartition("-")
        found[size][int(seed)] = training.arrays["nats"] / _BLOCK
    return found


def _measure_compiled(found: _Findings, excerpt: Floats, report: Report) -> None:
    """The perplexity of the excerpt by packages, and the intervals against the ONNX file's probabilities."""
    for mode in _MODES:
        report(f"the package, quantisation {mode}")
        calibration = data.samples("calibration") if mode == "int8" else None
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "nnlm.dlc"
            dlc.compile("zoo:nnlm", quantize=mode, calibration=calibration).save(package)
            log10 = ngram.score_stream(PackageModel(package), brown.load_excerpt("test"))
        blocks = len(log10) // _BLOCK
        ours, theirs = (x[: blocks * _BLOCK].reshape(blocks, _BLOCK).mean(1) for x in (log10, excerpt))
        found.compiled[mode] = perplexity(log10), paired_bootstrap(ours, theirs)


def _neighbours(vectors: np.ndarray, words: Sequence[str]) -> list[tuple[str, str]]:
    return [(word, ", ".join(picture.neighbours(vectors, words, word))) for word in _LOOKED_UP]


def _embeddings(path: Path) -> np.ndarray:
    """The word embeddings of an exported model, float32 (vocabulary, width)."""
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(tensors["embedding"])


def _pair(found: _Findings) -> tuple[Row, Row] | None:
    """The best hierarchical and the full softmax of equally many passes, if both are trained."""
    pairs = [
        (ours, full)
        for full in found.rows
        for ours in found.rows
        if full.size == "full" and ours.size in ("hsoftmax", "binary") and ours.passes == full.passes
    ]
    return min(pairs, key=lambda pair: (-pair[1].passes, pair[0].perplexity), default=None)


def _claims(found: _Findings) -> list[cards.Claim]:
    pair = _pair(found)
    evidence = "not measured: no full softmax is trained"
    close = fewer = False
    if pair:
        ours, full = pair
        close, fewer = ours.perplexity <= 1.15 * full.perplexity, ours.output_work <= 0.1 * full.output_work
        excess, times = ours.perplexity / full.perplexity - 1, full.output_work / ours.output_work
        evidence = (
            f"{ours.size} {ours.perplexity:.1f}, full {full.perplexity:.1f} ({excess:+.1%}) after {full.passes:g} "
            f"passes each; {ours.output_work:,.0f} and {full.output_work:,.0f} multiply-adds a word in the output "
            f"layer, {times:.0f} times fewer"
        )
    value, interval = found.compiled["int8"]
    losses = {row.loss for row in found.rows if row.output == "full"}
    return [
        cards.Claim(
            "A neural model alone has a lower perplexity than the Kneser-Ney trigram",
            found.committed < found.trigram,
            f"{found.committed:.1f} against {found.trigram:.1f}; both mixed {found.mixed:.1f}",
        ),
        cards.Claim(
            "A hierarchical softmax is within 15 % of the full softmax's perplexity, at most a tenth of the operations",
            close and fewer,
            evidence,
        ),
        cards.Claim(
            "Importance sampling and noise-contrastive estimation are measured next to the full softmax's likelihood",
            losses == {"full", "importance", "nce"},
            f"trained: {', '.join(sorted(losses)) or 'none'}",
        ),
        cards.Claim(
            "The int8 package's perplexity is within 1 % of float32's, or does not differ from it significantly",
            abs(value / found.embedded - 1) <= 0.01 or interval.low <= 0 <= interval.high,
            f"{value:.2f} against {found.embedded:.2f} ({value / found.embedded - 1:+.2%})",
        ),
        _distillation(found),
    ]


def _distillation(found: _Findings) -> cards.Claim:
    text = (
        "A small network that learns from the committed one's probabilities too has a lower perplexity than the same "
        "network that learns from the words alone, over at least five seeds (95 % interval)"
    )
    ours, theirs = found.students[_DISTILLED], found.students[_STUDENT]
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return cards.Claim(text, False, "not measured: not both are trained")
    means = [np.mean([each[seed] for seed in seeds], 0) for each in (ours, theirs)]
    gain = paired_bootstrap(*means)
    value, low, high = (np.exp(-x) - 1 for x in (gain.value, gain.high, gain.low))
    values = [float(np.exp(-mean.mean())) for mean in means]
    evidence = (
        f"{values[0]:.1f} against {values[1]:.1f} over {len(seeds)} seeds, {value:+.1%} ({low:+.1%} to {high:+.1%})"
    )
    return cards.Claim(text, len(seeds) >= _LEAST_SEEDS and gain.low > 0, evidence)


def _student_table(found: _Findings) -> str:
    """One line a kind of training, one column a seed."""
    titles = {_STUDENT: "by itself", _DISTILLED: "from the teacher too"}
    seeds = sorted({seed for each in found.students.values() for seed in each})
    lines = [
        (title, *(f"{np.exp(-each[s].mean()):.1f}" if s in each else "" for s in seeds))
        for title, each in ((title, found.students[size]) for size, title in titles.items())
    ]
    return cards.table(("Student", *(f"seed {seed}" for seed in seeds)), lines)


_LOSSES = {"full": "likelihood", "importance": "importance sampling", "nce": "noise-contrastive"}
_OUTPUTS = {"full": "full", "shortlist": "short list", "classes": "two levels", "binary": "binary tree"}


def _table(rows: list[Row]) -> str:
    lines = [
        (
            row.body, _OUTPUTS[row.output], _LOSSES[row.loss], f"{row.passes:g}", f"{row.perplexity:.1f}",
            f"{row.seconds:.0f} s, {_where(row)}", f"{row.microseconds:.0f} µs", f"{row.work:,.0f}",
            f"{row.output_work:,.0f}",
        )
        for row in rows
    ]  # fmt: skip
    columns = (
        "Network", "Output layer", "Trained by", "Passes", "Perplexity", "Training", "A word at test",
        "Multiply-adds a word", "Output layer's",
    )  # fmt: skip
    return cards.table(columns, lines)


def _where(row: Row) -> str:
    """On what it was trained."""
    return cards.trained_on({"device": row.device, "threads": 1})


def _missing(rows: list[Row], sizes: tuple[str, ...]) -> str:
    """A sentence on what the table lacks."""
    absent = [size for size in sizes if size != _STUDENT and size not in {row.size for row in rows}]
    return f"Not yet trained, so missing here: {', '.join(absent)}." if absent else "Every size has a row."


def _card(
    found: _Findings,
    notes: dict[str, Any],
    near: list[tuple[str, str]],
    words: int,
    sizes: tuple[str, ...],
    records: list[dict[str, Any]],
) -> cards.Card:
    path = zoo.model_path("nnlm")
    alone = [f"{row.alone:.1f}" for row in found.rows if row.alone is not None]
    values = {
        "size": path.stat().st_size / 1e6, "words": words, "committed": found.committed, "embedded": found.embedded,
        "trigram": found.trigram, "mixed": found.mixed, "weight": found.weight, "notes": notes,
        "minutes": notes["seconds"] / 60, "table": _table(found.rows), "missing": _missing(found.rows, sizes),
        "alone": f" (with the tail by word frequency instead: {', '.join(alone)})" if alone else "",
        "students": _student_table(found), "frequent": _FREQUENT,
        "neighbours": cards.table(("Word", "Nearest embeddings"), near), "picture": _PICTURE,
        "compiled": cards.table(
            ("Quantisation", "Perplexity", "Against the ONNX file", "Difference of mean log10 P, 95 % interval"),
            [
                (mode, f"{value:.2f}", f"{value / found.embedded - 1:+.2%}", f"{i.low:+.5f} to {i.high:+.5f}")
                for mode, (value, i) in found.compiled.items()
            ],
        ),
    }  # fmt: skip
    return cards.Card(
        "nnlm", "nnlm: a neural language model of English", "Brown corpus, next word of 17,905",
        f"perplexity, {words:,} test words", found.committed, f"{found.committed:.1f}",
        ("Kneser-Ney trigram", f"{found.trigram:.1f}"), _claims(found), notes,
        {
            "embedded_value": found.embedded, "mixed": found.mixed, "rows": records,
            "compiled": {mode: value for mode, (value, _) in found.compiled.items()},
        },
        [(heading, text.format_map(values)) for heading, text in SECTIONS],
    )  # fmt: skip
