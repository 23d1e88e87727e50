"""BLEU and chrF of the translations, and the card: attention and none, beam and greedy search, float32 and int8."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dlc import zoo
from dlc.runtime.files import atomic_write
from dlc.zoo import cards
from dlc.zoo.exporting import count_parameters, read_notes
from dlc.zoo.family import Report, Score
from dlc.zoo.models import QUANTIZED, Model, OnnxModel, compiled
from dlc.zoo.nmt import data, graphs, picture
from dlc.zoo.nmt.scores import METRICS, Counts, Metric, count, signature
from dlc.zoo.nmt.text import SECTIONS
from dlc.zoo.nmt.translate import translate, translate_all
from dlc.zoo.statistics import Interval

#: Words of the English text at most, in the buckets of the card.
_BUCKETS = (9, 19, 29, data.WORDS)
_LONG = 20  # words from which on a text counts as long
_LIMIT = 0.01  # what int8 may lose, relative
_SHOWN = 6  # translations in the card
_PICTURED = (9, 14)  # words of the text whose alignment is drawn, from and to
_PICTURE = "alignment.svg"
#: What a system makes of each test text.
Translations = list[str]


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure BLEU and chrF on the test pairs, or on the 400 embedded ones."""
    pairs = load_test_set(full, directory)
    start = time.perf_counter()
    translations = translate_all(model, [pair.english for pair in pairs])
    seconds = time.perf_counter() - start
    found = {metric: count(metric, translations, [pair.french for pair in pairs]).score for metric in METRICS}
    text = f"{found['BLEU']:.2f} BLEU, {found['chrF']:.2f} chrF ({len(pairs):,} test texts, {seconds:.1f} s)"
    return Score("BLEU", found["BLEU"], text, {"chrF": found["chrF"], "count": len(pairs), "seconds": seconds})


def load_test_set(full: bool, directory: Path | None = None) -> list[data.Pair]:
    """The test pairs, or the embedded ones.

    Raises:
        DlcError: the full set is asked for and missing.
    """
    return data.load_pairs(directory)["test"] if full else data.load_excerpt()


# --- the card


@dataclass
class _Findings:
    """What the card reports.

    Attributes:
        pairs: the test part.
        embedded: the embedded pairs.
        systems: translations of these by ``attention`` (the committed model), ``greedy`` and ``plain``.
        excerpt: of these by ``onnx`` (the committed model in onnxruntime) and the packages, by `QUANTIZED`.
    """

    pairs: list[data.Pair]
    embedded: list[data.Pair]
    systems: dict[str, Translations] = field(default_factory=dict)
    excerpt: dict[str, Translations] = field(default_factory=dict)

    def counts(self, metric: Metric, name: str) -> Counts:
        """The counts of one of `systems`, or of `excerpt`."""
        if name in self.systems:
            return count(metric, self.systems[name], [pair.french for pair in self.pairs])
        return count(metric, self.excerpt[name], [pair.french for pair in self.embedded])

    def gain(self, metric: Metric, better: str, than: str, chosen: Any = slice(None)) -> Interval:
        """By how much one system is above another."""
        return self.counts(metric, better).gain(self.counts(metric, than), chosen)

    @property
    def words(self) -> NDArray[np.int64]:
        """The words of each English text of the test part."""
        return np.array([len(pair.english.split()) for pair in self.pairs])


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure every figure, write ``card.md`` and ``alignment.svg`` and return the card's path.

    The notes on the training come from the committed ONNX files, so `weights` is not needed.

    Raises:
        DlcError: the packages, sentencepiece, sacrebleu or onnxruntime are missing, or a file has no notes.
    """
    found = _Findings(load_test_set(True, directory), load_test_set(False))
    committed = OnnxModel(model_file("attention"))
    with tempfile.TemporaryDirectory() as folder:
        greedy = Path(folder) / "greedy.onnx"
        onnx.save(graphs.translator(graphs.read_translator(committed.path), 1), greedy)
        models: dict[str, Model] = {
            "attention": committed, "greedy": OnnxModel(greedy), "plain": OnnxModel(model_file("plain")),
        }  # fmt: skip
        for name, model in models.items():
            report(f"{_TITLES[name]} on the full test part")
            found.systems[name] = translate_all(model, [pair.english for pair in found.pairs])
    report("compiling in float32 and in int8")
    english = [pair.english for pair in found.embedded]
    found.excerpt["onnx"] = translate_all(committed, english)
    for quantize in QUANTIZED:
        found.excerpt[quantize] = translate_all(compiled("nmt", quantize), english)
    pictured = _draw(committed, found)
    return cards.write_card(_card(found, pictured, len(data.load_pairs(directory)["train"])))


def model_file(size: str) -> Path:
    """The committed ONNX file of a size."""
    committed = zoo.model_path("nmt")
    return committed if size == "attention" else committed.with_name(f"{size}.onnx")


def _draw(model: Model, found: _Findings) -> str:
    """Draw the alignment of the first embedded text of a middling length whose translation is the reference, or of the
    first; return the text and its translation."""
    low, high = _PICTURED
    able = [i for i, pair in enumerate(found.embedded) if low <= len(pair.english.split()) <= high]
    right = [i for i in able if found.excerpt["onnx"][i] == found.embedded[i].french]
    english = found.embedded[(right or able)[0]].english
    drawn = translate(model, english)
    assert drawn.alignment is not None  # the committed model has attention
    with atomic_write(model_file("attention").with_name(_PICTURE)) as file:
        file.write(picture.draw(drawn.source, drawn.pieces, drawn.alignment).encode())
    return f"*{english}* becomes *{drawn.text}*"


_TITLES = {
    "attention": "Attention, beam of 4",
    "greedy": "Attention, greedy",
    "plain": "No attention, beam of 4",
}


def _claims(found: _Findings) -> list[cards.Claim]:
    long = found.words >= _LONG
    plain, far, near = (found.gain("BLEU", "attention", "plain", part) for part in (slice(None), long, ~long))
    beam = found.gain("BLEU", "attention", "greedy")
    int8 = found.gain("BLEU", "int8", "none")
    bleu = {name: found.counts("BLEU", name).score for name in ("none", "int8")}
    relative = bleu["int8"] / bleu["none"] - 1
    same = _equal(found.excerpt["none"], found.excerpt["onnx"])
    return [
        cards.Claim("Attention translates better than none", plain.low > 0, f"BLEU more by {plain}"),
        cards.Claim(f"So it does on {_LONG} words and more", far.low > 0, f"BLEU more by {far}"),
        cards.Claim(
            "Its gain in BLEU is larger there than on fewer",
            far.low > near.high,
            f"more by {far} there, by {near} on fewer words",
        ),
        cards.Claim("A beam of 4 translates better than the greedy search", beam.low > 0, f"BLEU more by {beam}"),
        cards.Claim(
            "The compiled beam search finds what onnxruntime finds",
            same >= 0.99 * len(found.embedded),
            f"{same} of {len(found.embedded)} texts are equal",
        ),
        cards.Claim(
            f"int8 costs at most {_LIMIT:.0%}, or what the paired bootstrap cannot tell from nothing",
            relative >= -_LIMIT or int8.high >= 0,
            f"{relative:+.2%}; BLEU more by {int8}",
        ),
    ]


def _equal(first: Translations, second: Translations) -> int:
    return sum(a == b for a, b in zip(first, second, strict=True))


def _times(found: _Findings) -> dict[str, float]:
    """How many times the BLEU of none attention has, on long texts and on shorter ones."""
    chosen = {"times_long": found.words >= _LONG, "times_short": found.words < _LONG}
    ours, theirs = (found.counts("BLEU", name) for name in ("attention", "plain"))
    return {key: ours.interval(part).value / theirs.interval(part).value for key, part in chosen.items()}


def _bucket_table(found: _Findings) -> str:
    lines, low = [], 1
    for high in _BUCKETS:
        chosen = (found.words >= low) & (found.words <= high)
        scores = (found.counts("BLEU", name).interval(chosen).value for name in ("attention", "plain"))
        gain = found.gain("BLEU", "attention", "plain", chosen)
        lines.append((f"{low} to {high}", int(chosen.sum()), *(f"{score:.2f}" for score in scores), gain))
        low = high + 1
    return cards.table(("Words", "Texts", "Attention", "None", "Attention more by"), lines)


def _system_table(found: _Findings, names: Mapping[str, str]) -> str:
    lines = [(title, *(found.counts(metric, name).interval() for metric in METRICS)) for name, title in names.items()]
    return cards.table(("", *METRICS), lines)


def _shown(found: _Findings) -> str:
    """Translations of evenly chosen embedded texts of at least five words."""
    able = [i for i, pair in enumerate(found.embedded) if len(pair.english.split()) > 4]
    chosen = able[:: len(able) // _SHOWN][:_SHOWN]
    rows = [(found.embedded[i].english, found.excerpt["onnx"][i], found.embedded[i].french) for i in chosen]
    return cards.table(("English", "Translated", "Reference"), [[cell.replace("|", "\\|") for cell in r] for r in rows])


def _card(found: _Findings, pictured: str, training_pairs: int) -> cards.Card:
    notes = {size: read_notes(model_file(size), "nmt") for size in ("attention", "plain")}
    bleu = {name: found.counts("BLEU", name).score for name in (*found.systems, *found.excerpt)}
    chrf = {name: found.counts("chrF", name).score for name in (*found.systems, *found.excerpt)}
    packages = {
        "onnx": "float32, onnxruntime", "none": "float32, compiled by dlc", "int8": "int8, compiled by dlc",
    }  # fmt: skip
    values = {
        "systems": _system_table(found, _TITLES), "buckets": _bucket_table(found), "shown": _shown(found),
        "packages": _system_table(found, packages), "pictured": pictured, "picture": _PICTURE,
        **_times(found), "long": _LONG,
        "beam_chrf": found.gain("chrF", "attention", "greedy"), "plain_chrf": found.gain("chrF", "attention", "plain"),
        "int8_equal": _equal(found.excerpt["int8"], found.excerpt["none"]),
        "count": len(found.pairs), "embedded": len(found.embedded), "training_pairs": training_pairs,
        "vocabulary": data.VOCABULARY, "limit": data.LIMIT, "words": data.WORDS, "alpha": graphs.ALPHA,
        "sacrebleu": signature(), "notes": notes["attention"], "plain": notes["plain"],
        "trained_on": cards.trained_on(notes["attention"]),
        "size": model_file("attention").stat().st_size / 1e6, "plain_size": model_file("plain").stat().st_size / 1e6,
        "parameters": count_parameters(model_file("attention")),
    }  # fmt: skip
    return cards.Card(
        "nmt", "nmt: English to French by attention", "help texts, English to French",
        f"BLEU, {len(found.pairs):,} test texts", bleu["attention"], f"{bleu['attention']:.2f}",
        ("no attention", f"{bleu['plain']:.2f}"), _claims(found), notes["attention"],
        {"embedded_value": bleu["onnx"], "bleu": bleu, "chrf": chrf, "training_plain": notes["plain"]},
        [(heading, text.format_map(values)) for heading, text in SECTIONS],
    )  # fmt: skip
