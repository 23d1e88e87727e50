"""Training: counting, and modified Kneser-Ney. Nothing is drawn, so the seed plays no part.

There is no checkpoint: counting takes seconds. What takes minutes, learning word categories for the card, has one
(`dlc.zoo.ngram.classes.exchange`).
"""

from __future__ import annotations

import time
from pathlib import Path

from dlc.errors import DlcError
from dlc.zoo.family import Report, TrainOptions
from dlc.zoo.ngram import data
from dlc.zoo.ngram.arpa import write_arpa
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import perplexity
from dlc.zoo.ngram.smoothing import absolute_backoff, kneser_ney

#: The orders.
SIZES = ("trigram", "unigram", "bigram", "4-gram", "5-gram")
_ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3, "4-gram": 4, "5-gram": 5}
WEIGHTS = ".arpa"
_QUICK = 50_000  # words


def train(options: TrainOptions, weights: Path, report: Report) -> None:
    """Estimate the model on the Brown corpus's training part and write it as an ARPA file.

    Raises:
        DlcError: the corpus is missing or damaged, the file cannot be written, or a number of epochs is given.
    """
    if options.epochs is not None:
        raise DlcError("'ngram' is counted in one pass over the data: it takes no --epochs")
    corpus = data.load_corpus(options.data)
    ids, held_out = corpus.part("train"), corpus.part("validation")
    if options.quick:
        ids, held_out = ids[:_QUICK], held_out[:_QUICK]
    start = time.perf_counter()
    counts = count([ids], len(corpus.words), _ORDERS[options.size])
    backoff = absolute_backoff(counts)
    report(f"back-off: validation perplexity {perplexity(backoff.score_stream(held_out)):.1f}")
    model = kneser_ney(counts)
    report(f"Kneser-Ney: validation perplexity {perplexity(model.score_stream(held_out)):.1f}")
    write_arpa(weights, model, corpus.words)
    entries = ", ".join(f"{len(log10):,}" for log10 in model.log10)
    report(f"{entries} n-grams of order 1, 2, ... from {len(ids):,} words in {time.perf_counter() - start:.0f} s")
