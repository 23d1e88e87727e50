"""Throughput of a pipeline of two stages beside a single session, on ResNet-18 with random weights, in one run.

Blocks of inputs take turns: the single session, then the pipeline, so that a machine that slows down slows both. Prints
the median of the block ratios. The pipeline needs two free cores; `--spec multi:2xcpu,tensor` times the other form.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import dlc

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.resnet import resnet18


def seconds(session: dlc.Session, inputs: list[dict[str, np.ndarray]]) -> float:
    """The time that a stream of inputs takes."""
    started = time.perf_counter()
    for _ in session.map(inputs):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Compile both, check that they agree, time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="multi:2xcpu")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--inputs", type=int, default=24, help="inputs in a block")
    parser.add_argument("--blocks", type=int, default=9)
    options = parser.parse_args()
    model = resnet18(options.size)
    rng = np.random.default_rng(0)
    shape = (1, 3, options.size, options.size)
    inputs = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(options.inputs)]
    single = dlc.load(dlc.compile(model, target="cpu"))
    package = dlc.compile(model, target=options.spec)
    for number, stage in enumerate(package.manifest["build"]["stages"]):
        sizes = f"weights {stage['weights'] / 1e6:.1f} MB, activations {stage['activations'] / 1e6:.1f} MB"
        print(f"worker {number}: predicted {stage['predicted_us'] / 1e3:.2f} ms, {sizes}")
    with dlc.load(package) as several:
        gap = max(np.abs(a["y"] - b["y"]).max() for a, b in zip(single.map(inputs), several.map(inputs), strict=True))
        print(f"largest difference of the outputs: {gap:.1e}")
        ratios = []
        for _ in range(options.blocks):
            one, more = seconds(single, inputs), seconds(several, inputs)
            ratios.append(one / more)
            print(f"cpu {one / len(inputs) * 1e3:.2f} ms, {options.spec} {more / len(inputs) * 1e3:.2f} ms an input")
        low, high = min(ratios), max(ratios)
        print(f"throughput of {options.spec} over cpu: {np.median(ratios):.2f} (median; {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
