"""Measures this machine: the clock, the bandwidth of every level of memory, multiply-adds of every instruction set.

Each number comes from a loop that is bound by it and by nothing else, and is the best of some rounds: whatever else the
machine does only makes one slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine, Speeds
from dlc.targets.cpu.isa import Isa, levels_of
from dlc.targets.cpu.kernels.anchored import Accumulator
from dlc.targets.cpu.kernels.builder import kernel as open_kernel
from dlc.targets.cpu.kernels.builder import let, load, symbolic
from dlc.targets.cpu.kernels.contract_loops import loop
from dlc.targets.cpu.kernels.dot import dot_for
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout, simplify

_ROUNDS = 12  # a machine that slows down for a while does so for all trials
_SECONDS = 0.01  # of a trial in one round
_CHAIN = 32  # dependent operations an iteration
_STREAMS = 8  # sums that do not wait for one another
_ROWS = 2  # of a register tile: two sums for each vector of weights that is loaded
_STEPS = 16  # groups of k, so few that all weights lie in L1
_MOST_MEMORY = 512 << 20  # bytes, however large the last cache


class _Trial:
    """A kernel that does `work` units in each of its repetitions, whose number is its last dimension."""

    def __init__(self, compiled: Compiled, arrays: Sequence[np.ndarray], dims: Sequence[int], work: float) -> None:
        self.compiled, self.arrays, self.dims, self.work = compiled, arrays, dims, work
        self.best, self.repeats = 0.0, 1
        # The least of some: after one that was interrupted, trials would be too short to say anything.
        while (taken := min(self._seconds() for _ in range(3))) < _SECONDS / 4:
            self.repeats *= 4
        self.repeats = max(1, int(self.repeats * _SECONDS / taken))

    def _seconds(self) -> float:
        argument, table = self.compiled.raw([a.ctypes.data for a in self.arrays], (*self.dims, self.repeats))
        started = time.perf_counter()
        self.compiled.function(argument)
        taken = time.perf_counter() - started
        del table
        return taken

    def run(self) -> None:
        """Run once; `best` is the most units a second so far."""
        self.best = max(self.best, self.work * self.repeats / self._seconds())


def measure_speeds(machine: Machine, progress: Callable[[str, int, int], None] = lambda *_: None) -> Speeds:
    """Measure `machine`, which is this one; takes a few seconds."""
    levels = levels_of(machine)
    progress("compiling", 0, _ROUNDS + 1)
    clock, reads = _clock(levels[0]), _reads(levels[0], machine)
    floats = {isa.name: _multiply_adds(isa, "float32", "float32") for isa in levels}
    integers = {isa.name: _multiply_adds(isa, "uint8", "int8") for isa in levels}
    for number in range(_ROUNDS):
        progress("measuring", 1 + number, _ROUNDS + 1)
        for trial in (clock, *reads.values(), *floats.values(), *integers.values()):
            trial.run()
    sizes = sorted(reads)
    l1, l2, l3, *_, memory = (reads[size].best for size in sizes)
    return Speeds(
        clock.best,
        (l1, l2, l3, memory),
        _effective([(size, reads[size].best) for size in sizes[2:-1]], memory, machine.l3),
        {name: trial.best for name, trial in floats.items()},
        {name: trial.best for name, trial in integers.items()},
    )


def _effective(reads: Sequence[tuple[int, float]], memory: float, whole: int) -> int:
    """Bytes that stay in a shared cache: what is read faster than halfway (of a ratio) between it and memory."""
    middle, found = (reads[0][1] * memory) ** 0.5, reads[0][0]
    for size, bandwidth in reads:
        if bandwidth < middle:
            return found
        found = size
    return whole


def _clock(isa: Isa) -> _Trial:
    """Cycles a second: additions and exclusive ors that wait for one another take one each on every processor."""
    repeats = symbolic("repeats")
    with open_kernel("clock", [("x", "int64", Layout.dense((3,)))], [repeats]) as k:
        (x,) = k.operands
        a, b = let(x.load((1,))), let(x.load((2,)))
        value = Accumulator("int64", 1, x.load((0,)))
        with loop(repeats):
            for _ in range(_CHAIN // 2):
                value.set(T.bitwise_xor(value.get() + a, b))
        x.store((0,), value.get())
    return _Trial(Compiled(k.func, isa, 1, 1), [_aligned(24, np.int64, 3)], (), _CHAIN)


def _reads(isa: Isa, machine: Machine) -> dict[int, _Trial]:
    """Bytes a second by the size of what is read: half of L1, half of L2, sizes in L3, and one that no cache holds.

    L3 is shared, and on a virtual machine with strangers: how much of it is ours shows only in what larger buffers
    read.
    """
    count, repeats, lanes = symbolic("count"), symbolic("repeats"), isa.lanes()
    step = _STREAMS * lanes
    layout = Layout.dense((simplify(count * step),))
    with open_kernel("read", [("x", "int32", layout), ("y", "int32", Layout.dense((step,)))], [count, repeats]) as k:
        x, y = k.operands
        sums = [Accumulator("int32", lanes, y.load((i * lanes,), lanes)) for i in range(_STREAMS)]
        with loop(repeats), loop(count) as position:
            for i, each in enumerate(sums):
                each.set(each.get() + x.load((simplify(position * step + i * lanes),), lanes))
        for i, each in enumerate(sums):
            y.store((i * lanes,), each.get(), lanes)
    compiled = Compiled(k.func, isa, 2, 2)
    shared = [size for i in range(1, 10) if (size := machine.l2 << i) < machine.l3] or [machine.l3]
    sizes = [machine.l1 // 2, machine.l2 // 2, *shared, max(2 * machine.l3, min(4 * machine.l3, _MOST_MEMORY))]
    steps = [size // (4 * step) for size in sizes]
    memory = _aligned(max(sizes), np.int32, 0)
    result = _aligned(4 * step, np.int32, 0)
    return {
        size: _Trial(compiled, [memory, result], [count], count * 4 * step)
        for size, count in zip(sizes, steps, strict=True)
    }


def _multiply_adds(isa: Isa, a_dtype: str, w_dtype: str) -> _Trial:
    """Multiply-adds a second of a register tile whose operands lie in L1. Tiles of AMX are not measured."""
    repeats, lanes, dot = symbolic("repeats"), isa.lanes(), dot_for(isa, a_dtype, w_dtype)
    # As many sums as the registers hold hide the latency of a multiply-add.
    rows, vectors = _ROWS, (isa.registers - _ROWS * len(dot.phases) - 2) // _ROWS
    word = "float32" if a_dtype == "float32" else "int32"
    width = dot.group * lanes
    operands = [
        ("a", word, Layout.dense((rows * lanes,))),
        ("w", w_dtype, Layout.dense((_STEPS * vectors * width,))),
        ("y", dot.acc_dtype, Layout.dense((rows * vectors * lanes,))),
    ]
    with open_kernel("multiply", operands, [repeats]) as k:
        a, w, y = k.operands
        spread = [[let(p) for p in dot.spread(a.load((r * lanes,), lanes), lanes)] for r in range(rows)]
        sums = [Accumulator(dot.acc_dtype, lanes, y.load((i * lanes,), lanes)) for i in range(rows * vectors)]
        with loop(repeats), loop(_STEPS) as step:
            for vector in range(vectors):
                at: Any = (step * vectors + vector) * width
                for phase, indices in enumerate(dot.phases):
                    weights = load(w.buffer, w_dtype, simplify(at), len(indices) * lanes)
                    widened = let(dot.widen(weights, lanes))
                    for row in range(rows):
                        each = sums[row * vectors + vector]
                        each.set(dot.step(each.get(), spread[row][phase], widened, lanes))
                    at = at + len(indices) * lanes
        for i, each in enumerate(sums):
            y.store((i * lanes,), each.get(), lanes)
    arrays = [_aligned(4 * rows * lanes, word, 0), _aligned(_STEPS * vectors * width * 4, w_dtype, 0)]
    arrays.append(_aligned(4 * rows * vectors * lanes, dot.acc_dtype, 0))
    return _Trial(Compiled(k.func, isa, 3, 1), arrays, (), _STEPS * rows * vectors * width)


def _aligned(size: int, dtype: Any, value: int) -> np.ndarray:
    """At least `size` bytes that begin on a cache line."""
    raw = np.full(size + 64, value, np.uint8)
    shift = -raw.ctypes.data % 64
    return raw[shift : shift + size].view(dtype)
