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
from turns import measure

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
WORDS, QUERIES = 3_200_000, 200_000
PEER = "KenLM"
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


def engines(
    words: int, order: int = 5, tables: Sequence[str] = FORMS, batch: int = 4096
) -> tuple[dict[str, Callable[[], object]], dict[str, int], list[str]]:
    """Scores of 200,000 queries by our tables and, where it is installed, by ``kenlm``.

    Also the bytes of each, and what is to be said of them.
    """
    rng = np.random.default_rng(0)
    text = _zipf(rng, words)
    model = kneser_ney(count([text], VOCABULARY, order))
    queries = _queries(rng, text, QUERIES)
    rows = np.lib.stride_tricks.sliding_window_view(queries, order).astype(np.int64)
    sizes = [len(part) for part in model.log10]
    notes = [f"{sizes[-1]:,} {order}-grams, {sum(sizes):,} of all orders; {len(rows):,} queries"]
    makers = {
        FORMS[0]: lambda: (export.build(model), "none"),
        FORMS[1]: lambda: (export.build(model), "int8-dynamic"),
        FORMS[2]: lambda: (hashed.build(model, False), "none"),
        FORMS[3]: lambda: (hashed.build(model, True), "none"),
    }
    batches = [{data.INPUT: rows[at : at + batch]} for at in range(0, len(rows), batch)]
    exact, found, held = model.score(rows), {}, {}
    for name in tables:
        session, note, held[name] = _form(*makers[name]())
        found[name] = partial(_scores, session, batches)
        apart = np.abs(found[name]() - exact).max()
        notes.append(f"{name}: {note}; {held[name] / 1e6:.0f} MB; largest difference {apart:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        names = [f"w{number}" for number in range(VOCABULARY)]
        write_arpa(Path(folder) / "model.arpa", model, names)
        peer = _kenlm(Path(folder) / "model.arpa")
    if peer is not None:
        sentence = " ".join(names[number] for number in queries)
        score, held[PEER] = partial(peer[0].score, sentence, bos=False, eos=False), peer[1]
        theirs = [each for each, *_ in peer[0].full_scores(sentence, bos=False, eos=False)][order - 1 :]
        apart = np.abs(exact - np.array(theirs)).max()
        notes.append(f"{PEER}, probing: {peer[1] / 1e6:.0f} MB; largest difference {apart:.1e}")
        return {**found, PEER: score}, held, notes
    return dict(found), held, notes


def _scores(session: dlc.Session, batches: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    return np.concatenate([session.run(batch)[OUTPUT] for batch in batches])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=WORDS, help="of the text that is counted")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4096, help="rows of one call")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--tables", action="append", choices=FORMS, help="only these")
    options = parser.parse_args(arguments)
    found, held, notes = engines(options.words, options.order, options.tables or FORMS, options.batch)
    print("\n".join(notes))
    times = measure(found, options.blocks, 0.0, time.process_time)
    for name, taken in times.items():
        line = f"{name}: {QUERIES / np.median(taken) / 1e3:.2f} million words a second"
        if PEER in times and name != PEER:
            middle, low, high = interval(taken, times[PEER])
            line += (
                f"; {PEER}'s time over ours {middle:.2f} ({low:.2f}-{high:.2f}), memory {held[name] / held[PEER]:.2f}"
            )
        print(line)


if __name__ == "__main__":
    main()
