"""Engines that take turns in blocks, and what the ratio of their times says of a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from dlc.bench import interval

SLACK = 0.05
Times = Mapping[str, np.ndarray]  # milliseconds a run, of every block


def measure(
    engines: Mapping[str, Callable[[], object]],
    blocks: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
) -> Times:
    """Time the engines in turns, in blocks of about `seconds` each.

    With `pause`, so many seconds pass in front of each block: threads of the engine before may spin on for a while.
    """
    counts = {}
    for name, run in engines.items():
        run()
        started = clock()
        run()
        counts[name] = max(1, int(seconds / max(clock() - started, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(blocks):
        for name, run in engines.items():
            time.sleep(pause)
            run()
            started = clock()
            for _ in range(counts[name]):
                run()
            times[name].append((clock() - started) / counts[name] * 1e3)
    return {name: np.array(found) for name, found in times.items()}


def ratios(times: Times) -> tuple[str, np.ndarray]:
    """The best peer of ``dlc``, and its time over ours in every block."""
    best = min((name for name in times if name != "dlc"), key=lambda name: float(np.median(times[name])))
    return best, times[best] / times["dlc"]


def verdict(found: np.ndarray, bar: float) -> str:
    """The median of a ratio over the blocks, its interval, and whether it reaches its bar."""
    middle, low, high = interval(np.ones_like(found), found)
    reached = "met" if low > bar - SLACK else "missed" if high < bar - SLACK else "not distinguishable"
    return f"{middle:.2f} ({low:.2f}-{high:.2f}), bar {bar}: {reached}"
