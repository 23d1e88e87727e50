"""3x3 convolutions of stride 1 with 4/9 of the multiplications: Winograd's F(2x2, 3x3), exactly, in integers.

A tile of 2x2 outputs reads 4x4 inputs d and has the 3x3 weights g. With the matrices below

    outputs = A^T (U * V) A,    V = B^T d B,    U = G g G^T        (* element by element, summed over input channels)

so 16 multiplications do the work of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016).
G holds halves; with 2 G the result is four times the outputs, a multiple of 4, and a shift gives them exactly. V needs
11 bits and U 12, which suits multipliers of s16 pairs: a sum over channels is 16 contractions of s16 by s16, one for
each of the 16 *points*. Where bytes are multiplied as fast as they are loaded (VNNI) there is nothing to gain.

The package keeps the nine weights, a quarter of the bytes of U, which every call computes anew in scratch: some percent
of one small image's time. A block of some lines of tiles is then transformed into scratch, contracted into scratch, and
transformed back; the last step adds the start values and hands the outputs to `store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost, contract_emit, contract_problem
from dlc.targets.cpu.kernels.builder import Expr, let, load, splat, tail_mask, vector_type
from dlc.targets.cpu.kernels.contract_emit import Task
from dlc.targets.cpu.kernels.contract_loops import cut, cut_channels, each, loop, loops, shared, whole_index
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction, Run, Schedule
from dlc.targets.cpu.kernels.contract_wide import block_sizes, scratch
from dlc.targets.layout import simplify

_TAPS, _OUT, _SIDE = 3, 2, 4
_POINTS = _SIDE * _SIDE
_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
_WEIGHT = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))  # 2 G
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T
_LINE = 64
_WEIGHT_COST = 64  # instructions to load, widen, transform and store one vector of weights
_MOST_WEIGHTS = 768 << 10  # bytes of U: it lies on the stack


@dataclass(frozen=True)
class _Image:
    """What a contraction is as a convolution: extents of the output and where the input lies."""

    height: int
    width: int
    line: int  # elements from one line of the input to the next
    channels: int

    @property
    def tiles(self) -> tuple[int, int]:
        """Lines of tiles and tiles in a line; the last ones may hang over the edge."""
        return -(-self.height // _OUT), -(-self.width // _OUT)


def _image(problem: Contraction) -> _Image | None:
    """The 3x3 convolution of stride 1 that `problem` is; None when it is something else."""
    if len(problem.outer) < 1 or len(problem.runs) != _TAPS or problem.groups != 1 or problem.w_k_stride is not None:
        return None
    line, step = problem.outer[-1], problem.rows
    numbers = (line.extent, line.a_stride, step.extent, step.a_stride, problem.n)
    numbers += tuple(value for run in problem.runs for value in run)
    if not all(isinstance(number, int) for number in numbers):
        return None
    channels = step.a_stride
    if any(run != Run(i * line.a_stride, _TAPS * channels) for i, run in enumerate(problem.runs)):
        return None
    return _Image(line.extent, step.extent, line.a_stride, channels)


def declines(problem: Contraction, isa: Isa) -> str | None:
    """Why the convolution cannot be computed this way; None when it can."""
    if isa.dot != "pmaddwd" or (problem.a_dtype, problem.w_dtype) != ("uint8", "int8"):
        return f"Winograd's algorithm is for s16 products, not for {problem.a_dtype} by {problem.w_dtype} on {isa.name}"
    image = _image(problem)
    if image is None:
        return "Winograd's algorithm is for 3x3 convolutions of stride 1, extents known"
    if image.channels % 8 or image.channels > most_channels():
        return f"Winograd's algorithm needs a multiple of 8 channels up to {most_channels()}, not {image.channels}"
    if 2 * packed_points(problem, isa) > _MOST_WEIGHTS:
        return f"the transformed weights of {image.channels} x {problem.n} channels are too large for the stack"
    return None


def most_channels() -> int:
    """Channels up to which no sum leaves 32 bits, nor does one on the way to the outputs, whatever the values."""
    inputs, weights, outputs = (np.kron(matrix, matrix) for matrix in (_INPUT, _WEIGHT, _OUTPUT))
    # Activations are not negative, so that a point of V is largest where they are 255 under one sign only.
    v = 255 * np.maximum(inputs.clip(min=0).sum(1), -inputs.clip(max=0).sum(1))
    u = 128 * abs(weights).sum(1)
    assert max(v.max(), u.max()) < 2**15
    return int((2**31 - 1) // (abs(outputs) @ (v * u)).max())


def _vectors(problem: Contraction, isa: Isa) -> int:
    return contract_problem.vectors_of(problem, isa)


def _v_stride(image: _Image) -> int:
    # A line more than the points: tiles that lie a power of two apart would compete for the same set of L1.
    return _POINTS * image.channels + _LINE // 2


def _m_stride(problem: Contraction, isa: Isa) -> int:
    return _POINTS * _vectors(problem, isa) * isa.lanes() + _LINE // 4


def _tile_bytes(problem: Contraction, isa: Isa) -> int:
    """Scratch of one tile."""
    image = _image(problem)
    assert image is not None
    return 2 * _v_stride(image) + 4 * _m_stride(problem, isa)


def _product(problem: Contraction, isa: Isa, tiles: int) -> Contraction:
    """The contractions of all points over `tiles` tiles: one group a point."""
    image = _image(problem)
    assert image is not None
    return Contraction(
        "int16",
        "int16",
        0,
        (),
        Axis(tiles, _v_stride(image)),
        (Run(0, image.channels),),
        _vectors(problem, isa) * isa.lanes(),
        _POINTS,
        image.channels,
    )


def _inner(schedule: Schedule) -> Schedule:
    return replace(schedule, unit="vector")


# Choice ---------------------------------------------------------------------------------------------------------------


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """Schedules: `mr`, `nr`, `hot`, `unroll` of the contractions and, as `block`, the lines of tiles in a block."""
    image = _image(problem)
    assert image is not None
    (lines, columns), result = image.tiles, []
    for size in block_sizes(lines, _tile_bytes(problem, isa) * columns, machine):
        inner = contract_cost.candidates(_product(problem, isa, size * columns), isa, machine)
        result += [replace(schedule, unit="winograd", block=size) for schedule in inner]
    return result


def predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The contractions as `contract_cost` prices them, and the instructions of both transforms."""
    image, core = _image(problem), contract_cost.core_of(isa, machine)
    assert image is not None
    lines, columns = image.tiles
    full, rest = divmod(lines, schedule.block)
    total = 0.0
    for count, size in ((full, schedule.block), (1, rest)):
        if count and size:
            inner = _product(problem, isa, size * columns)
            total += count * contract_cost.predicted_seconds(inner, _inner(schedule), isa, machine)
    # Loads (widened), sums and stores of 16 points; then loads, sums, shifts and the epilogues of four outputs.
    vectors = _vectors(problem, isa)
    forward = (3 * _POINTS + 2 * _POINTS) * image.channels / isa.lanes(16)
    backward = (_POINTS + 24 + 8) * vectors
    cycles = (forward + backward) / core.vectors + 4 * contract_cost.STORE_COST * vectors
    # What a block writes to scratch and reads again.
    tile = _tile_bytes(problem, isa)
    level = contract_cost.level_of(tile * columns * schedule.block, machine)
    cycles += 0.0 if level == 0 else 2 * tile / core.bandwidth[level]
    images = prod(axis.extent if isinstance(axis.extent, int) else contract_cost.GUESS for axis in problem.outer[:-1])
    weights = packed_points(problem, isa) / isa.lanes(16) / _POINTS * _WEIGHT_COST / core.vectors
    tiles = contract_cost.seconds(cycles * lines * columns, machine)
    return images * (total + tiles) + contract_cost.seconds(weights, machine)


def packed_points(problem: Contraction, isa: Isa) -> int:
    """Elements (int16) of U."""
    return contract_problem.packed_size(_product(problem, isa, 1), isa)


def packed_size(problem: Contraction, isa: Isa) -> int:
    """Elements of the packed weights."""
    return packed_points(problem, isa) // _POINTS * _TAPS**2


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """W (1, 9 * channels, n) tap by tap, each in the order in which `contract_problem.pack` arranges a point of U."""
    image = _image(problem)
    assert image is not None and weight.shape == (1, _TAPS**2 * image.channels, problem.n)
    taps = replace(_product(problem, isa, 1), groups=_TAPS**2)
    wide = np.zeros((_TAPS**2, image.channels, int(taps.n)), np.int16)
    wide[:, :, : problem.n] = weight.reshape(_TAPS**2, image.channels, -1)
    return contract_problem.pack(taps, _inner(schedule), isa, wide).astype(np.int8)


# Code -----------------------------------------------------------------------------------------------------------------


def emit(task: Task) -> None:
    """Emit the convolution."""
    _Emitter(task).run()


def _combine(values: Sequence[Expr], row: Sequence[int]) -> Expr:
    """The sum of `values` times the factors of `row`, whose greatest is positive: 2, 1, 0 or -1."""
    terms = sorted(((sign, value) for sign, value in zip(row, values, strict=True) if sign), key=lambda t: -t[0])
    if terms[0][0] == 2:
        terms.append((1, terms[0][1]))
    total = terms[0][1]
    for sign, value in terms[1:]:
        total = total + value if sign > 0 else total - value
    return let(total)


def _transform(grid: Sequence[Sequence[Expr]], matrix: Sequence[Sequence[int]]) -> list[list[Expr]]:
    """matrix x grid x matrix^T."""
    columns = [[_combine(column, row) for row in matrix] for column in zip(*grid, strict=True)]
    return [[_combine(line, row) for row in matrix] for line in zip(*columns, strict=True)]


class _Emitter:
    def __init__(self, task: Task) -> None:
        problem, isa, image = task.problem, task.isa, _image(task.problem)
        assert image is not None
        self.problem, self.schedule, self.isa, self.image = problem, task.schedule, isa, image
        self.a, self.w, self.init, self.store, self.share = task.a, task.w, task.init, task.store, task.share
        self.lanes = isa.lanes()
        self.v_stride, self.m_stride = _v_stride(image), _m_stride(problem, isa)

    def run(self) -> None:
        lines, columns = self.image.tiles
        most = self.schedule.block * columns
        self.v = scratch("v", "int16", most * self.v_stride)
        self.m = scratch("m", "int32", most * self.m_stride)
        self._weights()
        parts = shared(cut(lines, self.schedule.block), self.share)

        with loops([axis.extent for axis in self.problem.outer[:-1]]) as index:
            for part in parts:
                with each(part) as first:
                    self._block(index, first, part.size)

    def _weights(self) -> None:
        """U from the nine weights of each pair of channels, in the order in which they are packed."""
        lanes, count = self.isa.lanes(16), packed_points(self.problem, self.isa) // _POINTS
        self.u = scratch("u", "int16", _POINTS * count)
        with loop(count // lanes) as part:
            taps = [
                let(T.cast(self.w.buffer[T.ramp(tap * count + part * lanes, 1, lanes)], vector_type("int16", lanes)))
                for tap in range(_TAPS**2)
            ]
            points = _transform([taps[i : i + _TAPS] for i in range(0, _TAPS**2, _TAPS)], _WEIGHT)
            for at, value in enumerate(value for line in points for value in line):
                T.buffer_store(self.u.buffer, value, [T.ramp(at * count + part * lanes, 1, lanes)])

    def _block(self, index: tuple[Expr, ...], first: Expr, lines: int) -> None:
        columns = self.image.tiles[1]
        with loop(lines) as y, loop(columns) as x:
            self._forward(index, first + y, x, y * columns + x)
        taps = _product(self.problem, self.isa, lines * columns)
        contract_emit.emit(Task(taps, _inner(self.schedule), self.isa, self.v, self.u, None, self._keep))
        with loop(lines) as y, loop(columns) as x:
            self._backward(index, first + y, x, y * columns + x)

    def _keep(self, _: Any, row: Expr, channel: Expr, value: Expr, lanes: int, mask: Expr) -> None:
        """Store products as M; its rows have room for whole vectors."""
        T.buffer_store(self.m.buffer, value, [T.ramp(simplify(row * self.m_stride + channel), 1, lanes)])

    def _forward(self, index: tuple[Expr, ...], y: Expr, x: Expr, tile: Expr) -> None:
        """V of one tile of one line."""
        image, lanes = self.image, self.isa.lanes(16)
        if image.channels % lanes:
            lanes = 8
        base = self.problem.a_offset
        base = base + sum(i * axis.a_stride for i, axis in zip(index, self.problem.outer[:-1], strict=True))
        down = [let(whole_index(simplify(base + i * image.line))) for i in self._inputs(y, image.height)]
        right = [let(whole_index(simplify(i * image.channels))) for i in self._inputs(x, image.width)]
        with loop(image.channels // lanes) as part:
            grid = [
                [
                    let(T.cast(self.a.buffer[T.ramp(d + r + part * lanes, 1, lanes)], vector_type("int16", lanes)))
                    for r in right
                ]
                for d in down
            ]
            points = _transform(grid, _INPUT)
            for (i, j), at in zip(product(range(_SIDE), repeat=2), range(_POINTS), strict=True):
                place = simplify(tile * self.v_stride + at * image.channels + part * lanes)
                T.buffer_store(self.v.buffer, points[i][j], [T.ramp(place, 1, lanes)])

    @staticmethod
    def _inputs(tile: Expr, outputs: int) -> list[Expr]:
        """Positions of a tile's four inputs; what only outputs over the edge need is read from the last one instead."""
        positions = [tile * _OUT + i for i in range(_SIDE)]
        if outputs % _OUT:
            positions[-1] = T.min(whole_index(positions[-1]), T.int64(outputs + _TAPS - 2))
        return positions

    def _backward(self, index: tuple[Expr, ...], y: Expr, x: Expr, tile: Expr) -> None:
        """The outputs of one tile: all channels."""
        for part in cut_channels(self.problem.n, 1, self.lanes):
            with each(part) as vector:
                self._outputs(index, y, x, tile, vector, part.ragged)

    def _outputs(self, index: tuple[Expr, ...], y: Expr, x: Expr, tile: Expr, vector: Expr, ragged: Expr) -> None:
        lanes, width = self.lanes, _vectors(self.problem, self.isa) * self.lanes
        mask = let(tail_mask(ragged, lanes)) if ragged else None
        channel = whole_index(simplify(vector * lanes))
        at = [simplify(tile * self.m_stride + i * width + vector * lanes) for i in range(_POINTS)]
        sums = [let(self.m.buffer[T.ramp(place, 1, lanes)]) for place in at]
        grid = [sums[i : i + _SIDE] for i in range(0, _POINTS, _SIDE)]
        start: Any = None
        if self.init is not None:
            start = let(load(self.init.buffer, "int32", channel, lanes, mask))
        for i, line in enumerate(_transform(grid, _OUTPUT)):
            for j, value in enumerate(line):
                result = T.shift_right(value, splat(T.int32(2), lanes))
                result = let(result if start is None else result + start)
                row, column = whole_index(simplify(y * _OUT + i)), whole_index(simplify(x * _OUT + j))
                inside = [
                    place < T.int64(extent)
                    for place, offset, extent in ((row, i, self.image.height), (column, j, self.image.width))
                    if offset and extent % _OUT
                ]
                if not inside:
                    self.store((*index, row), column, channel, result, lanes, mask)
                    continue
                with T.If(inside[0] if len(inside) == 1 else T.And(*inside)), T.Then():
                    self.store((*index, row), column, channel, result, lanes, mask)
