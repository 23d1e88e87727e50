"""Where the time of a CPU package goes: every kernel alone, measured and predicted, in microseconds.

    python bench/by_kernel.py PACKAGE [--shape NAME=1,3,224,224] [--blocks N]

Each kernel runs again and again on what its predecessors left, so that its operands lie in caches much as they do in a
run of the whole model. The least of the blocks' times counts: noise only ever adds. A prediction for a symbolic extent
is scaled to the one that is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Mapping

import numpy as np

import dlc
from dlc import explain
from dlc.runtime.session import bind_symbols

_SECONDS = 0.002  # a kernel's share of a block
_GUESS = 64  # what predictions assume for a symbolic extent


def inputs_of(session: dlc.Session, shapes: Mapping[str, tuple[int, ...]]) -> list[np.ndarray]:
    """Random inputs; symbolic extents that no option sets are 1."""
    rng, result = np.random.default_rng(0), []
    for info in session.inputs:
        shape = shapes.get(info.name) or tuple(d if isinstance(d, int) else 1 for d in info.shape)
        values = rng.standard_normal(shape) if "float" in info.dtype else rng.integers(0, 2, shape)
        result.append(values.astype(info.dtype))
    return result


class Stepper:
    """The native entry of a session, limited to a range of its kernels."""

    def __init__(self, session: dlc.Session, inputs: list[np.ndarray]) -> None:
        self.sizes = bind_symbols(session.inputs, [x.shape for x in inputs])
        outputs = list(session.run({i.name: x for i, x in zip(session.inputs, inputs, strict=True)}).values())
        self.keep = (session, inputs, outputs)
        self.call, self.argument = session.executable.native_call(inputs, outputs, self.sizes)
        # The range follows the arrays, the constants and the workspace in the entry's argument table.
        constants = len(session.package.manifest["build"]["constants"])
        begin = self.argument.value + 8 * (len(inputs) + len(outputs) + constants + 1)
        self.range = (ctypes.c_uint64 * 2).from_address(begin)

    def least(self, first: int, last: int, blocks: int) -> float:
        """The least microseconds of the kernels from `first` to before `last`."""
        self.range[:] = 0, last
        self.call(self.argument)
        self.range[:] = first, last
        started = time.perf_counter()
        self.call(self.argument)
        count, best = max(1, int(_SECONDS / (time.perf_counter() - started + 1e-7))), float("inf")
        for _ in range(blocks):
            started = time.perf_counter()
            for _ in range(count):
                self.call(self.argument)
            best = min(best, (time.perf_counter() - started) / count)
        return best * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--shape", action="append", default=[], help="NAME=1,3,224,224")
    parser.add_argument("--blocks", type=int, default=20)
    arguments = parser.parse_args()
    session = dlc.load(arguments.package)
    pairs = (text.split("=") for text in arguments.shape)
    shapes = {name: tuple(int(d) for d in extents.split(",")) for name, extents in pairs}
    stepper = Stepper(session, inputs_of(session, shapes))
    rows = explain.read(session.package).nodes
    print(f"{'measured':>9} {'predicted':>9}  tile, kernel, node")
    for number, row in enumerate(rows):
        measured, predicted = stepper.least(number, number + 1, arguments.blocks), ""
        if row["predicted_us"] is not None:
            symbols = [part.partition("=")[0].strip() for part in row["predicted_for"].split(",") if part]
            scale = np.prod([stepper.sizes[name] / _GUESS for name in symbols])
            predicted = f"{row['predicted_us'] * scale:.1f}"
        print(f"{measured:9.1f} {predicted:>9}  {row['tile']:24} {row['kernel']:20} {row['node']}", flush=True)
    print(f"{stepper.least(0, len(rows), arguments.blocks):9.1f}  all")


if __name__ == "__main__":
    main()
