"""Back-off n-gram tables beside KenLM: words a second of full 5-gram scores, and the memory of the tables.

    python bench/ngram.py [--words 3200000] [--order 5] [--batch 4096] [--blocks 30]
                           [--tables "hash table, 8 bits" ...]

A text of random words (Zipf's law over 50,000), whose n-grams of every order are counted and smoothed by `zoo/ngram`
(Kneser-Ney); the queries are a text half of whose stretches come from it, so that all orders of back-off occur. KenLM
(the `kenlm` package of PyPI, if it is installed) reads the same model from an ARPA file and scores the same text as one
sentence. Scores are compared first. One thread, taking turns in blocks, processor time; the ratio is KenLM's time over
ours with the 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval
from dlc.explain import read
from dlc.zoo.ngram import data, export, hashed
from dlc.zoo.ngram.arpa import write_arpa
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.export import OUTPUT
from dlc.zoo.ngram.smoothing import kneser_ney

VOCABULARY = 50_000
FORMS = ("trie", "trie, 8 bits", "hash table", "hash table, 8 bits")
_STRETCH = 20  # words of the queries that come from one place


def _zipf(rng: np.random.Generator, size: int) -> np.ndarray:
    shares = 1 / np.arange(1, VOCABULARY + 1)
    return rng.choice(VOCABULARY, size, p=shares / shares.sum()).astype(np.int32)


def _queries(rng: np.random.Generator, text: np.ndarray, size: int) -> np.ndarray:
    parts = []
    for number in range(size // _STRETCH):
        at = int(rng.integers(0, len(text) - _STRETCH))
        parts.append(text[at : at + _STRETCH] if number % 2 else _zipf(rng, _STRETCH))
    return np.concatenate(parts)


def _resident() -> int:
    """Bytes of memory that the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _form(proto: Any, quantize: Any) -> tuple[dlc.Session, str, int]:
    """(the loaded package, what to say of it, the bytes of its tables: of the package less its code)."""
    started = time.perf_counter()
    package = dlc.compile(proto, quantize=quantize, cache=False)
    rows = read(package).nodes
    seconds = time.perf_counter() - started
    note = f"{len(rows)} kernels, compiled in {seconds:.1f} s"
    with tempfile.TemporaryDirectory() as folder:
        package.save(Path(folder) / "p.dlc")
        held = (Path(folder) / "p.dlc").stat().st_size
    return dlc.load(package), note, held


def _kenlm(path: Path) -> tuple[Any, int] | None:
    """(the model, the bytes that it takes); None where KenLM is not installed."""
    try:
        import kenlm
    except ImportError:
        return None
    before = _resident()
    model = kenlm.Model(str(path))
    return model, _resident() - before


def _seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=3_200_000, help="of the text that is counted")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4096, help="rows of one call")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--tables", action="append", choices=FORMS, help="only these")
    options = parser.parse_args(arguments)
    rng, order = np.random.default_rng(0), options.order
    text = _zipf(rng, options.words)
    model = kneser_ney(count([text], VOCABULARY, order))
    words = [f"w{number}" for number in range(VOCABULARY)]
    queries = _queries(rng, text, 200_000)
    rows = np.lib.stride_tricks.sliding_window_view(queries, order).astype(np.int64)
    sizes = [len(part) for part in model.log10]
    print(f"{sizes[-1]:,} {order}-grams, {sum(sizes):,} of all orders; {len(rows):,} queries")
    made = [(export.build(model), q) for q in ("none", "int8-dynamic")]
    made += [(hashed.build(model, quantised), "none") for quantised in (False, True)]
    protos = dict(zip(FORMS, made, strict=True))
    forms = {name: _form(*protos[name]) for name in options.tables or protos}
    for name, (_, note, held) in forms.items():
        print(f"{name}: {note}; {held / 1e6:.0f} MB")
    batches = [{data.INPUT: rows[at : at + options.batch]} for at in range(0, len(rows), options.batch)]

    def scores_of(session: dlc.Session) -> np.ndarray:
        return np.concatenate([session.run(batch)[OUTPUT] for batch in batches])

    exact = model.score(rows)
    for name, (session, *_) in forms.items():
        scores = scores_of(session)
        apart, means = np.abs(scores - exact).max(), (scores.mean(), exact.mean())
        print(f"{name}: largest difference {apart:.1e}, mean {means[0]:.4f} of {means[1]:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "model.arpa"
        write_arpa(arpa, model, words)
        peer = _kenlm(arpa)
    sentence = " ".join(words[number] for number in queries)
    times: dict[str, list[float]] = {**{name: [] for name in forms}, "kenlm": []}
    if peer is not None:
        found = np.array([score for score, *_ in peer[0].full_scores(sentence, bos=False, eos=False)])[order - 1 :]
        print(
            f"KenLM, probing: {peer[1] / 1e6:.0f} MB; largest difference of a score {np.abs(exact - found).max():.1e}"
        )
    for _ in range(options.blocks):
        for name, (session, *_) in forms.items():
            times[name].append(_seconds(partial(scores_of, session)))
        if peer is not None:
            times["kenlm"].append(_seconds(lambda: peer[0].score(sentence, bos=False, eos=False)))
    for name, taken in times.items():
        if taken:
            print(f"{name}: {len(rows) / np.median(taken) / 1e6:.2f} million words a second")
    for name, (_, _, held) in forms.items() if peer is not None else ():
        middle, low, high = interval(np.array(times[name]), np.array(times["kenlm"]))
        print(
            f"KenLM's time over that of {name}: {middle:.2f} ({low:.2f}-{high:.2f}); memory {held / peer[1]:.2f} of its"
        )


if __name__ == "__main__":
    main()
