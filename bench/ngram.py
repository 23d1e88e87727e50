"""Back-off n-gram tables beside KenLM: words a second of full 5-gram scores, and the memory of the tables.

    python bench/ngram.py [--words 3200000] [--order 5] [--batch 4096] [--blocks 30] [--tables trie|hashed|hashed8]

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
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

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
    parser.add_argument("--tables", choices=["trie", "hashed", "hashed8"], default="hashed")
    options = parser.parse_args(arguments)
    rng, order = np.random.default_rng(0), options.order
    text = _zipf(rng, options.words)
    model = kneser_ney(count([text], VOCABULARY, order))
    words = [f"w{number}" for number in range(VOCABULARY)]
    queries = _queries(rng, text, 200_000)
    rows = np.lib.stride_tricks.sliding_window_view(queries, order).astype(np.int64)
    sizes = [len(part) for part in model.log10]
    print(f"{sizes[-1]:,} {order}-grams, {sum(sizes):,} of all orders; {len(rows):,} queries")
    quantised = options.tables == "hashed8"
    proto = export.build(model) if options.tables == "trie" else hashed.build(model, quantised)
    held = sum(numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer)
    started = time.perf_counter()
    package = dlc.compile(proto, cache=False)
    session = dlc.load(package)
    print(f"dlc, {options.tables}: {len(read(package).nodes)} kernels, "
          f"compiled in {time.perf_counter() - started:.1f} s; tables {held / 1e6:.0f} MB")  # fmt: skip
    batches = [{data.INPUT: rows[at : at + options.batch]} for at in range(0, len(rows), options.batch)]

    def ours() -> np.ndarray:
        return np.concatenate([session.run(batch)[OUTPUT] for batch in batches])

    scores = ours()
    print(f"largest difference from the exact tables: {np.abs(scores - model.score(rows)).max():.1e}")
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "model.arpa"
        write_arpa(arpa, model, words)
        peer = _kenlm(arpa)
    sentence = " ".join(words[number] for number in queries)
    times: dict[str, list[float]] = {"dlc": [], "kenlm": []}
    if peer is not None:
        found = np.array([score for score, *_ in peer[0].full_scores(sentence, bos=False, eos=False)])[order - 1 :]
        print(
            f"KenLM, probing: {peer[1] / 1e6:.0f} MB; largest difference of a score {np.abs(scores - found).max():.1e}"
        )
    for _ in range(options.blocks):
        times["dlc"].append(_seconds(ours))
        if peer is not None:
            times["kenlm"].append(_seconds(lambda: peer[0].score(sentence, bos=False, eos=False)))
    for name, taken in times.items():
        if taken:
            print(f"{name}: {len(rows) / np.median(taken) / 1e6:.2f} million words a second")
    if peer is not None:
        middle, low, high = interval(np.array(times["dlc"]), np.array(times["kenlm"]))
        print(
            f"KenLM's time over ours: {middle:.2f} ({low:.2f}-{high:.2f}); its memory over ours: {peer[1] / held:.2f}"
        )


if __name__ == "__main__":
    main()
