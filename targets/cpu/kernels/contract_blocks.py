"""Rows of int8 times 4-bit weights with a scale for each block of 32 k (`dlc.block_matmul`).

The multipliers take one unsigned operand: the codes, each plus 8, as they lie in memory. Eight times the sum of a
row's block is taken off again; these sums are made once for each tile of rows, in scratch. A step is four k of one row
times four k of a vector of channels; two steps share a vector of bytes, one in the low halves and one in the high ones.

Packed weights: [tile of nr vectors][block][pair of steps][vector][lanes x 4 k]; scales, as bits of bfloat16:
[tile of nr vectors][block][vector][lanes].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost
from dlc.targets.cpu.kernels.amx import aligned_stack
from dlc.targets.cpu.kernels.anchored import across
from dlc.targets.cpu.kernels.builder import (
    Expr,
    Operand,
    Share,
    hold,
    let,
    positions,
    splat,
    stack,
    tail_mask,
    vector_type,
)
from dlc.targets.cpu.kernels.contract_loops import Segment, cut, cut_channels, each, loop, shared, whole_index
from dlc.targets.cpu.kernels.dot import neon_dot
from dlc.targets.cpu.kernels.storage import widen
from dlc.targets.cpu.kernels.vector import convert, fence
from dlc.targets.layout import simplify

BLOCK = 32  # k that share a scale
_STEP = 4  # k of one step
_PAIRS = BLOCK // (2 * _STEP)  # vectors of bytes a block
MOST_K = 1 << 16  # the sums of a tile's rows lie on the stack

Store = Callable[[Expr, Expr, Expr, int, Expr], None]


@dataclass(frozen=True)
class Blocks:
    """The problem: `rows` (int or symbolic) rows of `k` times weights of `n` channels; k is a multiple of `BLOCK`."""

    rows: Expr
    k: int
    n: int

    @property
    def count(self) -> int:
        """Blocks of k."""
        return self.k // BLOCK


# --- the multiply-adds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """How the sums of one block are made; `lanes` channels of 32 bits at a time.

    Attributes:
        dtype, width: of the running sums: elements, and how many of them for a channel.
        instructions: of arithmetic for one step.
        closing: instructions that make int32 sums of the running ones.
        step: (running sums, codes of four k, four k of a row in each channel, lanes) -> running sums.
        close: (running sums, lanes) -> int32 sums.
    """

    dtype: str
    width: int
    instructions: float
    closing: float
    step: Callable[[Expr, Expr, Expr, int], Expr]
    close: Callable[[Expr, int], Expr]


def _vnni(acc: Expr, w: Expr, x: Expr, lanes: int) -> Expr:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return T.call_llvm_pure_intrin(vector_type("int32", lanes), name, acc, w, x)


_PMADDUBS = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}
_PMADDWD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}


def _pairs(acc: Expr, w: Expr, x: Expr, lanes: int) -> Expr:
    # No saturation, and no overflow in a block: 16 products of at most 15 * 128 are 30,720.
    return acc + T.call_llvm_pure_intrin(vector_type("int16", 2 * lanes), _PMADDUBS[lanes], w, x)


def _close_pairs(acc: Expr, lanes: int) -> Expr:
    ones = splat(T.int16(1), 2 * lanes)
    return T.call_llvm_pure_intrin(vector_type("int32", lanes), _PMADDWD[lanes], acc, ones)


def _plain(acc: Expr, w: Expr, x: Expr, lanes: int) -> Expr:
    # The bytes of a channel one after the other, as 32-bit numbers.
    codes, row = (T.reinterpret(vector_type("int32", lanes), value) for value in (w, x))
    for byte in range(_STEP):
        code = T.bitwise_and(T.shift_right(codes, splat(T.int32(8 * byte), lanes)), splat(T.int32(255), lanes))
        number = T.shift_left(row, splat(T.int32(24 - 8 * byte), lanes))
        acc = acc + code * T.shift_right(number, splat(T.int32(24), lanes))
    return acc


def _steps(isa: Isa) -> _Steps:
    if isa.dot in ("vnni", "amx"):
        return _Steps("int32", 1, 1, 0, _vnni, lambda acc, lanes: acc)
    if isa.dot in ("usdot", "sdot"):  # codes of 4 bits are s8 too
        return _Steps("int32", 1, 1, 0, partial(neon_dot, "sdot"), lambda acc, lanes: acc)
    if isa.lanes() in _PMADDUBS:
        return _Steps("int16", 2, 2, 1, _pairs, _close_pairs)
    return _Steps("int32", 1, 28, 0, _plain, lambda acc, lanes: acc)


# --- choice and packing ----------------------------------------------------------------------------------------------


def _tiles(isa: Isa) -> Iterator[tuple[int, int]]:
    """(rows, vectors) of tiles whose sums, of integers and of floats, fit the registers."""
    for mr in range(1, 5):
        for nr in range(1, 9):
            # Besides the sums: two vectors of codes, a row's word, the mask and what a product passes through.
            if 2 * mr * nr + 5 <= isa.registers:
                yield mr, nr


def predicted_seconds(problem: Blocks, mr: int, nr: int, isa: Isa, machine: Machine) -> float:
    """The slower of computing and reading the weights, and a part of the other."""
    core, steps = contract_cost.core_of(isa, machine), _steps(isa)
    rows = problem.rows if isinstance(problem.rows, int) else contract_cost.GUESS
    vectors = -(-problem.n // isa.lanes())
    unpack = nr * (3 * _PAIRS + 2)
    multiply = mr * nr * (2 * _PAIRS * steps.instructions + steps.closing + 3)
    # Each sum waits for the one before it: few of them at a time leave the ports idle.
    waiting = 2 * _PAIRS * core.latency if mr * nr < 4 else 0.0
    loads = (nr * (_PAIRS + 1) + mr * (2 * _PAIRS + 1)) / core.loads
    block = max((unpack + multiply) / core.vectors, loads, waiting / 2)
    tiles = -(-rows // mr) * -(-vectors // nr)
    compute = tiles * (problem.count * block + 20)
    read = problem.count * vectors * isa.lanes() * (BLOCK // 2 + 2)
    level = contract_cost.level_of(read, machine)
    traffic = 0.0 if level == 0 else read * -(-rows // mr) / core.bandwidth[level]
    return contract_cost.seconds(contract_cost.together(compute, traffic), machine)


def choose(problem: Blocks, isa: Isa, machine: Machine) -> dict[str, Any]:
    """The tile of the least predicted time, as JSON."""
    priced = [(predicted_seconds(problem, mr, nr, isa, machine), mr, nr) for mr, nr in _tiles(isa)]
    predicted, mr, nr = min(priced)
    return {"unit": "blocks", "mr": mr, "nr": nr, "hot": "a", "predicted_us": round(predicted * 1e6, 3)}


def pack(codes: np.ndarray, scales: np.ndarray, nr: int, isa: Isa) -> tuple[np.ndarray, np.ndarray]:
    """Codes (K, N) and scales (K / BLOCK, N) in bfloat16 as the kernel reads them: (uint8, uint16), both flat."""
    lanes = isa.lanes()
    (k, n), count = codes.shape, scales.shape[0]
    vectors = -(-n // lanes)
    raised = np.full((k, vectors * lanes), 8, np.uint8)
    raised[:, :n] = codes.astype(np.int16) + 8
    # (block, pair of steps, half, k of a step, vector, lane) -> (block, pair, vector, lane and k of a step)
    parts = raised.reshape(count, _PAIRS, 2, _STEP, vectors, lanes).transpose(0, 1, 4, 2, 5, 3)
    parts = parts.reshape(count, _PAIRS, vectors, 2, lanes * _STEP)
    bytes_ = parts[..., 0, :] | parts[..., 1, :] << 4
    wide = np.zeros((count, vectors * lanes), np.uint16)
    wide[:, :n] = scales.view(np.uint16)
    factors = wide.reshape(count, vectors, lanes)
    tiles = [slice(first, first + nr) for first in range(0, vectors, nr)]
    flat = [bytes_[:, :, tile].reshape(-1) for tile in tiles], [factors[:, tile].reshape(-1) for tile in tiles]
    return np.concatenate(flat[0]), np.concatenate(flat[1])


def sizes(problem: Blocks, isa: Isa) -> tuple[int, int]:
    """Elements of the packed weights and scales."""
    padded = -(-problem.n // isa.lanes()) * isa.lanes()
    return problem.k * padded // 2, problem.count * padded


# --- code ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One product inside an open `kernel(...)`.

    Attributes:
        mr, nr: rows and vectors of a tile.
        x: rows (rows, k), contiguous from the start of the operand.
        w, scales: what `pack` made.
        store: called with (row, channel, float32 sums, lanes, mask).
        share: which part of the channels is computed; all without.
    """

    problem: Blocks
    isa: Isa
    mr: int
    nr: int
    x: Operand
    w: Operand
    scales: Operand
    store: Store
    share: Share | None = None


def emit(task: Task) -> None:
    """Emit the product."""
    _Emitter(task).run()


class _Emitter:
    def __init__(self, task: Task) -> None:
        self.task, self.problem = task, task.problem
        self.lanes, self.steps = task.isa.lanes(), _steps(task.isa)
        self.sums = aligned_stack("int32", task.mr * self.problem.count)
        self.totals = stack("float32", task.mr * task.nr * self.lanes)

    def run(self) -> None:
        channels = shared(cut_channels(self.problem.n, self.task.nr, self.lanes), self.task.share)
        for rows in cut(self.problem.rows, self.task.mr):
            with each(rows) as row:
                self._sum_rows(row, rows.size)
                for part in channels:
                    with each(part) as vector:
                        self._tile(row, rows.size, part, vector)

    def _at(self, row: Expr, k: Expr) -> Expr:
        return simplify(self.task.x.layout.offset + row * self.problem.k + k)

    def _sum_rows(self, row: Expr, size: int) -> None:
        """Minus eight times the sum of each block of the rows of a tile."""
        half = BLOCK // 2
        with loop(self.problem.count) as block:
            for i in range(size):
                begin = let(whole_index(self._at(simplify(row + i), block * BLOCK)))
                parts = [convert(self.task.x.buffer[positions(begin + at, half)], "int32") for at in (0, half)]
                total = across(let(parts[0] + parts[1]), "int32", half, lambda a, b: a + b)
                T.buffer_store(self.sums, total * T.int32(-8), [simplify(i * self.problem.count + block)])

    def _slot(self, i: int, j: int) -> Expr:
        return T.ramp((i * self.task.nr + j) * self.lanes, 1, self.lanes)

    def _tile(self, row: Expr, rows: int, part: Segment, vector: Expr) -> None:
        lanes, vectors = self.lanes, part.size
        ragged = not (isinstance(part.ragged, int) and part.ragged == 0)
        mask = tail_mask(part.ragged, lanes) if ragged else None
        for i in range(rows):
            for j in range(vectors):
                T.buffer_store(self.totals, splat(T.float32(0), lanes), [self._slot(i, j)])
        first = let(whole_index(simplify(vector * (self.problem.k * lanes // 2))))
        factor = let(whole_index(simplify(vector * (self.problem.count * lanes))))
        with loop(self.problem.count) as block:
            w = let(whole_index(simplify(first + block * (vectors * BLOCK * lanes // 2))))
            scale = let(whole_index(simplify(factor + block * (vectors * lanes))))
            self._block(row, rows, vectors, block, w, scale)
        for i in range(rows):
            for j in range(vectors):
                last = mask if j == vectors - 1 else None
                channel = whole_index(simplify((vector + j) * lanes))
                self.task.store(whole_index(simplify(row + i)), channel, self.totals[self._slot(i, j)], lanes, last)

    def _block(self, row: Expr, rows: int, vectors: int, block: Expr, w: Expr, scale: Expr) -> None:
        lanes, steps = self.lanes, self.steps
        running = stack(steps.dtype, self.task.mr * self.task.nr * lanes * steps.width)

        def place(i: int, j: int) -> Expr:
            return T.ramp((i * self.task.nr + j) * lanes * steps.width, 1, lanes * steps.width)

        zero = splat(T.int32(0) if steps.dtype == "int32" else T.int16(0), lanes * steps.width)
        for i in range(rows):
            begin = splat(self._sum(i, block), lanes) if steps.width == 1 else zero
            for j in range(vectors):
                T.buffer_store(running, begin, [place(i, j)])
        for pair in range(_PAIRS):
            codes = [self._codes(w, pair, vectors, j) for j in range(vectors)]
            for half in range(2):
                for i in range(rows):
                    word = self._word(row, i, block, 2 * pair + half)
                    for j in range(vectors):
                        T.buffer_store(
                            running, steps.step(running[place(i, j)], codes[j][half], word, lanes), [place(i, j)]
                        )
        for j in range(vectors):
            factor = hold(widen(self.task.scales.buffer[positions(simplify(scale + j * lanes), lanes)], "bfloat16"))
            for i in range(rows):
                total = steps.close(running[place(i, j)], lanes)
                if steps.width > 1:
                    total = total + splat(self._sum(i, block), lanes)
                # Rounded twice, as everywhere: no fused multiply-add.
                added = fence(convert(total, "float32") * factor)
                T.buffer_store(self.totals, self.totals[self._slot(i, j)] + added, [self._slot(i, j)])

    def _sum(self, i: int, block: Expr) -> Expr:
        return self.sums[simplify(i * self.problem.count + block)]

    def _codes(self, w: Expr, pair: int, vectors: int, j: int) -> tuple[Expr, Expr]:
        """The codes of two steps."""
        size = _STEP * self.lanes
        both = let(self.task.w.buffer[positions(simplify(w + (pair * vectors + j) * size), size)])
        words = let(T.reinterpret(vector_type("uint16", size // 2), both))
        upper = T.reinterpret(vector_type("uint8", size), T.shift_right(words, splat(T.uint16(4), size // 2)))
        half = splat(T.uint8(15), size)
        return let(T.bitwise_and(both, half)), let(T.bitwise_and(upper, half))

    def _word(self, row: Expr, i: int, block: Expr, step: int) -> Expr:
        """Four k of a row, for every channel."""
        at = self._at(simplify(row + i), block * BLOCK + step * _STEP)
        word = T.reinterpret("int32", self.task.x.buffer[T.ramp(at, 1, _STEP)])
        return let(T.reinterpret(vector_type("int8", _STEP * self.lanes), splat(word, self.lanes)))
