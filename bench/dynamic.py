"""Models whose structure is dynamic beside their best peers, with a verdict for each: the table of docs/dynamic.md.

    python bench/dynamic.py [--row NAME ...] [--blocks 30]

One thread, processor time, engines in turns; a bar is met when the lower end of the ratio's 95 % interval is above it
less 0.05 (of a rate: less 5 %). Every row has a script that tells more: generate.py (WaveNet), lstm.py, nmt.py,
experts.py, ngram.py (KenLM is timed where it is installed) and spellings.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import experts
import generate
import lstm
import ngram
import nmt
import numpy as np
import spellings
import torch
from turns import SLACK, Times, measure, ratios, verdict

from dlc.bench import interval


@dataclass(frozen=True)
class Case:
    """Engines to compare, ours called ``dlc``.

    Attributes:
        bar: how many times as fast as the best of the others ours is to be; of a rate, units a second.
        units: of a rate, how many a run makes.
        only: the engine that counts, where it is not the best of the others.
        clock: processor time, unless there are several threads.
    """

    label: str
    engines: Mapping[str, Callable[[], object]]
    bar: float
    notes: str = ""
    units: int = 0
    only: str = ""
    clock: Callable[[], float] = time.process_time


def _wavenet() -> Iterator[Case]:
    for quantize, bar in (("int8", 100_000), ("none", 6_500)):
        row = generate.wavenet_row("greedy", "rows", 1000, quantize)
        first, *others = row.engines
        engines = {"dlc": row.engines[first], **{name: row.engines[name] for name in others}}
        notes = generate.agreement(row, "greedy", quantize == "none")
        yield Case(f"WaveNet, {_precision(quantize)}, greedy", engines, bar, notes, row.steps)


def _precision(quantize: str) -> str:
    return "fp32" if quantize == "none" else quantize


def _lstm() -> Iterator[Case]:
    bars = [("LSTM 5x512", "int8", 1.7), ("BiLSTM 4x320", "int8", 2.0), ("LSTM 5x512", "none", 1.2)]
    bars += [("LSTM 5x512, one step", "int8", 1.4), ("LSTM 5x512, one step", "int4", 2.5)]
    for name, quantize, bar in bars:
        engines, notes = lstm.engines(name, quantize, quantize != "none")
        yield Case(f"{name}, {_precision(quantize)}", engines, bar, notes)
    two, one = (lstm.engines("LSTM 5x512", "int8", True, threads)[0]["dlc"] for threads in (2, 1))
    yield Case("LSTM 5x512, int8, two threads", {"dlc": two, "one thread": one}, 1.4, clock=time.perf_counter)


def _nmt() -> Iterator[Case]:
    for beam, bar in ((1, 2.0), (4, 2.5)):
        engines, notes = nmt.engines(beam, "int8")
        yield Case(f"NMT, beam {beam}, int8", engines, bar, notes)


def _chosen(rows: Sequence[experts.Row], bars: Sequence[float], kind: str, only: str = "") -> Iterator[Case]:
    for row, bar in zip(rows, bars, strict=True):
        exact = np.asarray(row.exact, np.float64)
        noise = np.square(row.engines["dlc"]() - exact).sum() / max(np.square(exact).sum(), 1e-30)
        notes = f"{-10 * np.log10(max(noise, 1e-30)):.1f} dB"
        yield Case(f"{row.label}, {kind}", row.engines, bar, notes, only=only)


def _experts() -> Iterator[Case]:
    rows = experts.expert_rows("int8-dynamic", [1, 32, 256])
    yield from _chosen(rows, (3.0, 2.5, 5.0), "int8")


def _words() -> Iterator[Case]:
    for classes, bar in ((224, 8.0), (448, 6.0)):
        yield from _chosen(experts.level_rows("int8-dynamic", classes)[0], (bar,), "int8", "torch")
    yield from _chosen([experts.tree_row("int8-dynamic")], (25.0,), "fp32", "torch")
    for kind, bar in (("int8-dynamic", 1.1), ("int4", 1.9)):
        yield from _chosen([experts.full_row(kind)], (bar,), kind)


def _ngram() -> Iterator[Case]:
    quantised = ngram.FORMS[3]
    found, held, notes = ngram.engines(ngram.WORDS, tables=[quantised])
    if ngram.PEER in found:
        notes.append(f"memory {held[quantised] / held[ngram.PEER]:.2f} of {ngram.PEER}'s, bar 0.5")
        engines = {"dlc": found[quantised], ngram.PEER: found[ngram.PEER]}
        yield Case("5-grams in 8 bits", engines, 1.3, "; ".join(notes))
    else:
        yield Case("5-grams in 8 bits", {"dlc": found[quantised]}, 7e6, "; ".join(notes), ngram.QUERIES)


def _spellings() -> Iterator[Case]:
    for family, models in spellings.families().items():
        for quantize in ("none", "int8"):
            found, notes = spellings.engines(models, quantize)
            first, *others = found
            for name in others:
                engines = {"dlc": found[name], first: found[first]}
                yield Case(f"{family} as {name}, {_precision(quantize)}", engines, 0.7, notes[name])


ROWS: dict[str, Callable[[], Iterator[Case]]] = {
    "wavenet": _wavenet,
    "lstm": _lstm,
    "nmt": _nmt,
    "experts": _experts,
    "words": _words,
    "ngram": _ngram,
    "spellings": _spellings,
}


def _judged(case: Case, times: Times) -> str:
    if not case.units:
        counted = {name: times[name] for name in ("dlc", case.only)} if case.only else times
        peer, ratio = ratios(counted)
        return f"times {peer}: {verdict(ratio, case.bar)}"
    rate = case.units / times["dlc"] * 1e3
    middle, low, high = interval(np.ones_like(rate), rate)
    least = case.bar * (1 - SLACK)
    reached = "met" if low > least else "missed" if high < least else "not distinguishable"
    return f"{middle:,.0f} a second ({low:,.0f}-{high:,.0f}), bar {case.bar:,.0f}: {reached}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only these rows")
    parser.add_argument("--blocks", type=int, default=30)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.row or ROWS:
        for case in ROWS[name]():
            times = measure(case.engines, options.blocks, 0.05, case.clock, pause=0.01)
            print(f"{case.label}: {_judged(case, times)}")
            print("  " + ", ".join(f"{engine} {np.median(taken):.4g} ms" for engine, taken in times.items()))
            print(f"  {case.notes}", flush=True)


if __name__ == "__main__":
    main()
