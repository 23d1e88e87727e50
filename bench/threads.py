"""Two threads against one: our own packages, and onnxruntime beside them, in alternating calls.

    python bench/threads.py [--threads N] [--rounds N]

Prints for each model the median time on one thread and on N, the ratio of the two with its 95 % interval, and
onnxruntime's ratio.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session
from dlc.zoo import model_path
from tests.models import light_model

MODELS = {"resnet50": 1, "squeezenet": 1, "densenet121": 1, "zoo:vision, batch 32": 32}


def _load(name: str, batch: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    model = onnx.load(model_path("vision")) if name.startswith("zoo:") else light_model(name)
    session = dlc.load(dlc.compile(model, target="reference"))
    rng = np.random.default_rng(0)
    shapes = {i.name: [d if isinstance(d, int) else batch for d in i.shape] for i in session.inputs}
    return model, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _rounds(runs: list[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Seconds, (rounds, runs); each round calls them in turn."""
    for run in runs:
        run()
    found = np.empty((rounds, len(runs)))
    for row in found:
        for column, run in enumerate(runs):
            start = time.perf_counter()
            run()
            row[column] = time.perf_counter() - start
    return found


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=31, show_default=True)
def main(threads: int, rounds: int) -> None:
    """Print the table."""
    print(f"{'model':24} {'1 thread, ms':>13} {f'{threads} threads, ms':>14} {'times (95 %)':>20} {'onnxruntime':>12}")
    for name, batch in MODELS.items():
        model, inputs = _load(name, batch)
        package = dlc.compile(model, target="cpu")
        sessions = [dlc.load(package, threads=n) for n in (1, threads)]
        ours = _rounds([partial(session.run, inputs) for session in sessions], rounds)
        content = model.SerializeToString()
        peers = [onnxruntime_session(content, n) for n in (1, threads)]
        theirs = _rounds([partial(peer.run, None, inputs) for peer in peers], rounds)
        middle, low, high = interval(ours[:, 1], ours[:, 0])
        one, many = np.median(ours, axis=0) * 1e3
        ratio = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        peer = np.median(theirs[:, 0] / theirs[:, 1])
        print(f"{name:24} {one:13.2f} {many:14.2f} {ratio:>20} {peer:12.2f}", flush=True)


if __name__ == "__main__":
    main()
