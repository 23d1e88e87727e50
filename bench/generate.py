"""WaveNet, which generates step by step, beside onnxruntime: the same Loop, and its step driven from Python.

    python bench/generate.py [--mode greedy|sampled|forced] [--spelling rows|shift] [--steps N] [--blocks N]
                             [--quantize none|int8]

One thread each, taking turns in blocks, processor time (other work on the machine counts less); samples a second are
the median of the blocks and the best one, ratios those of medians. What was generated is compared first: free-running
samples must be onnxruntime's up to the first step whose decision is closer than the tolerance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import wavenet
from turns import measure

import dlc
from dlc.bench import onnxruntime_session
from dlc.explain import read

TIE = 1e-4  # two best logits that are closer may change places; for a drawn number, a step of the distribution


@dataclass(frozen=True)
class Row:
    """Engines of one model.

    Attributes:
        steps: samples a run.
        engines: by name, what makes them: ours, the peer's whole loop, others.
        margins: how far the decision of each step is from another one, along given samples.
        facts: lines to print with the table.
    """

    steps: int
    engines: dict[str, Callable[[], np.ndarray]]
    margins: Callable[[np.ndarray], np.ndarray]
    facts: tuple[str, ...]


# --- WaveNet ---------------------------------------------------------------------------------------------------------


class Driver:
    """onnxruntime's step with the delay lines as ring buffers in one numpy array: its best form."""

    def __init__(self, shape: wavenet.Shape) -> None:
        self.session = onnxruntime_session(wavenet.step(shape).SerializeToString())
        self.depths = np.array(shape.dilations)
        self.starts = np.cumsum(self.depths) - self.depths
        self.residual = shape.residual

    def run(self, steps: int, next_code: Callable[[int, np.ndarray], int]) -> np.ndarray:
        """The codes (steps, 1) that `next_code` makes of (step, logits)."""
        lines = np.zeros((int(self.depths.sum()), self.residual), np.float32)
        code, codes = np.array([wavenet.LEVELS // 2], np.int64), np.empty((steps, 1), np.int64)
        for number in range(steps):
            places = self.starts + number % self.depths
            logits, new = self.session.run(["logits", "new"], {"code": code, "old": lines[places]})
            lines[places] = new
            code = codes[number] = np.array([next_code(number, logits[0])], np.int64)
        return codes


def _choice(mode: str, feed: dict[str, np.ndarray]) -> Callable[[int, np.ndarray], int]:
    """How a mode makes the next code of logits, in numpy."""

    def sampled(number: int, logits: np.ndarray) -> int:
        mass = np.exp(logits - logits.max())
        return int(min((np.cumsum(mass / mass.sum()) < feed["uniform"][number]).sum(), wavenet.LEVELS - 1))

    ways: dict[str, Callable[[int, np.ndarray], int]] = {
        "greedy": lambda number, logits: int(logits.argmax()),
        "sampled": sampled,
        "forced": lambda number, logits: int(feed["codes"][number, 0]),
    }
    return ways[mode]


def _margin(mode: str, feed: dict[str, np.ndarray], number: int, logits: np.ndarray) -> float:
    """How far a step's decision is from another one."""
    if mode == "greedy":
        best = np.sort(logits)
        return float(best[-1] - best[-2])
    mass = np.exp(logits - logits.max())
    return float(np.abs(np.cumsum(mass / mass.sum()) - feed["uniform"][number]).min())


def wavenet_row(mode: str, spelling: str, steps: int, quantize: str) -> Row:
    """30 layers, 64 residual and 128 skip channels."""
    shape = wavenet.Shape()
    rng = np.random.default_rng(1)
    feeds: dict[str, dict[str, np.ndarray]] = {
        "greedy": {},
        "sampled": {"uniform": rng.random(steps).astype(np.float32)},
        "forced": {"codes": rng.integers(0, wavenet.LEVELS, (steps, 1))},
    }
    model, feed = wavenet.generator(mode, spelling, steps, shape), feeds[mode]
    package = dlc.compile(model, quantize=quantize, calibration={k: v[None] for k, v in feed.items()} or None)
    session, loop, driver = dlc.load(package), onnxruntime_session(model.SerializeToString()), Driver(shape)
    name = session.outputs[0].name
    choose = _choice(mode, feed)

    def margins(codes: np.ndarray) -> np.ndarray:
        found = np.empty(steps)

        def follow(number: int, logits: np.ndarray) -> int:
            found[number] = _margin(mode, feed, number, logits)
            return int(codes[number, 0])

        driver.run(steps, follow)
        return found

    size = sum(array.nbytes for key, array in wavenet.weights(shape).items() if key != "embedding")
    rows = read(package).nodes
    return Row(
        steps,
        {
            f"dlc {package.manifest['target']}": lambda: session.run(feed)[name],
            "onnxruntime, the same Loop": lambda: loop.run([name], feed)[0],
            "onnxruntime, its step from Python": lambda: driver.run(steps, choose),
        },
        margins,
        (
            f"weights read a sample: {size / 1e6:.2f} MB in fp32",
            f"kernels a sample: {sum('inside' in row for row in rows)}, "
            f"{sum(row['kernel'].endswith('in place') for row in rows)} of them rows written in place",
        ),
    )


# --- the table -------------------------------------------------------------------------------------------------------


def agreement(row: Row, mode: str, exact: bool) -> str:
    """What the first engine's result is beside the second's; `exact` where it is to be the same."""
    ours, theirs = (run() for run in list(row.engines.values())[:2])
    if mode == "forced":
        noise = np.square(ours - theirs).mean() / np.square(theirs).mean()
        return f"largest difference of logits {np.abs(ours - theirs).max():.1e}, {-10 * np.log10(noise):.1f} dB"
    differing = np.flatnonzero((ours != theirs).reshape(row.steps, -1).any(axis=1))
    if not exact:
        return f"equal samples: {int(differing[0]) if differing.size else row.steps} of {row.steps}"
    margins = row.margins(theirs)
    close = np.flatnonzero(margins < TIE)
    first, tie = (int(found[0]) if found.size else row.steps for found in (differing, close))
    verdict = "ok" if first >= tie or first == row.steps else "WRONG"
    return f"equal samples: {first} of {row.steps}; first decision closer than {TIE}: {tie}: {verdict}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=wavenet.MODES, default="greedy")
    parser.add_argument("--spelling", choices=wavenet.SPELLINGS, default="rows")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--quantize", choices=["none", "int8"], default="none")
    options = parser.parse_args(arguments)
    row = wavenet_row(options.mode, options.spelling, options.steps, options.quantize)
    found = agreement(row, options.mode, options.quantize == "none")
    print(f"{options.mode}, {options.spelling}, {options.quantize}: {found}")
    for fact in row.facts:
        print(fact)
    times = measure(row.engines, options.blocks, 0.0, time.process_time)
    rates = {name: row.steps / taken * 1e3 for name, taken in times.items()}
    ours = np.median(next(iter(rates.values())))
    print(f"{'samples/s: median':>18} {'best':>8} {'ours / it':>10}")
    for name, found in rates.items():
        print(f"{np.median(found):18.0f} {found.max():8.0f} {ours / np.median(found):10.2f}  {name}")


if __name__ == "__main__":
    main()
