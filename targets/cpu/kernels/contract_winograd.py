"""3x3 convolutions of stride 1 with 4/9 of the multiplications: code for Winograd's F(2x2, 3x3).

The algorithm is in `contract_winograd_plan`, its price in `contract_winograd_cost`. The tiles of all images are one
sequence, cut into blocks. A block is transformed into scratch (V). Panel by panel of output channels it is then
contracted into scratch (M) and transformed back; the last step adds the start values and hands the outputs to `store`.
U is read once a block, V once a panel, from the cache that holds it; M is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels import contract_emit
from dlc.targets.cpu.kernels import contract_winograd_plan as plan
from dlc.targets.cpu.kernels.builder import Expr, Share, let, load, splat, tail_mask, vector_type
from dlc.targets.cpu.kernels.contract_emit import Task
from dlc.targets.cpu.kernels.contract_loops import (
    Segment,
    cut,
    cut_channels,
    each,
    loop,
    shared,
    shared_loop,
    whole_index,
)
from dlc.targets.cpu.kernels.contract_wide import scratch
from dlc.targets.cpu.kernels.contract_winograd_cost import candidates, predicted_seconds
from dlc.targets.cpu.kernels.contract_winograd_plan import OUT, POINTS, SIDE, TAPS, declines, note, pack, packed_size
from dlc.targets.layout import simplify

__all__ = ["candidates", "declines", "emit", "note", "pack", "packed_size", "predicted_seconds"]


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
        problem, isa = task.problem, task.isa
        self.problem, self.schedule, self.isa, self.image = problem, task.schedule, isa, plan.image_of(problem)
        self.a, self.w, self.init, self.store, self.share = task.a, task.w, task.init, task.store, task.share
        self.lanes, self.integer = isa.lanes(), plan.in_integers(problem)
        self.v_stride, self.m_stride = plan.v_stride(problem), plan.m_stride(isa, self.schedule.nr)
        self.u_vector = self.image.channels * self.lanes  # elements of one point of U for a vector of channels

    def run(self) -> None:
        block, total = self.schedule.block, self.image.tiles
        self.v = scratch("v", "int16" if self.integer else "float32", block * self.v_stride)
        self.m = scratch("m", self.problem.acc_dtype, block * self.m_stride)
        count = -(-total // block) if isinstance(total, int) else let(T.truncdiv(total + (block - 1), T.int64(block)))
        panels = cut_channels(self.problem.n, self.schedule.nr, self.lanes)
        by_blocks, by_panels = self._shares(count, sum(part.count for part in panels))
        self.panels = shared(panels, by_panels)
        if self.integer:
            self._weights()
        if isinstance(total, int):
            for part in shared(cut(total, block), by_blocks):
                with each(part) as first:
                    self._block(first, part.size)
            return
        # One code for blocks of any size: their tiles are symbolic.
        with shared_loop(count, by_blocks) as number:
            first = let(number * block)
            self._block(first, let(T.min(T.int64(block), total - first)))

    def _shares(self, blocks: Expr, panels: int) -> tuple[Share | None, Share | None]:
        """What is shared out: blocks, or panels, before which each part then transforms all inputs."""
        if self.share is None:
            return None, None
        return (self.share, None) if Share.best([blocks, panels]) == 0 else (None, self.share)

    def _weights(self) -> None:
        """U from the nine weights of each pair of channels, in the order in which they are packed."""
        lanes = self.isa.lanes(16)
        self.u = scratch("u", "int16", plan.packed_points(self.problem, self.isa))
        for part in self.panels:
            count = part.size * self.u_vector
            with each(part) as vector, loop(count // lanes) as step:
                w_base, u_base = (vector * (self.u_vector * of) + step * lanes for of in (TAPS**2, POINTS))
                places = [simplify(w_base + tap * count) for tap in range(TAPS**2)]
                taps = [let(self._widened(load(self.w.buffer, "int8", at, lanes), lanes)) for at in places]
                points = _transform([taps[i : i + TAPS] for i in range(0, TAPS**2, TAPS)], plan.WEIGHT)
                for at, value in enumerate(value for line in points for value in line):
                    T.buffer_store(self.u.buffer, value, [T.ramp(simplify(u_base + at * count), 1, lanes)])

    def _widened(self, value: Expr, lanes: int) -> Expr:
        return T.cast(value, vector_type("int16", lanes)) if self.integer else value

    def _block(self, first: Expr, tiles: Expr) -> None:
        with loop(tiles) as tile:
            self._forward(first + tile, tile)
        for part in self.panels:
            with each(part) as vector:
                self._panel(first, tiles, vector, part)

    def _panel(self, first: Expr, tiles: Expr, vector: Expr, part: Segment) -> None:
        """The outputs of a block in a panel of channels that begins with `vector`."""
        points = plan.product_of(self.problem, self.isa, tiles, part.size)
        points = replace(points, w_offset=simplify(vector * (POINTS * self.u_vector)))
        u = self.u if self.integer else self.w
        contract_emit.emit(Task(points, plan.inner(self.schedule), self.isa, self.v, u, None, self._keep))
        with loop(tiles) as tile:
            index, y, x = self._place(first + tile)
            for each_vector in cut_channels(part.size * self.lanes - (-part.ragged % self.lanes), 1, self.lanes):
                with each(each_vector) as i:
                    self._outputs((index, y, x), tile, vector, i, part.size, each_vector.ragged)

    def _keep(self, _: Any, row: Expr, channel: Expr, value: Expr, lanes: int, mask: Expr) -> None:
        """Store products as M; its rows have room for whole vectors."""
        T.buffer_store(self.m.buffer, value, [T.ramp(simplify(row * self.m_stride + channel), 1, lanes)])

    def _place(self, number: Expr) -> tuple[tuple[Expr, ...], Expr, Expr]:
        """Image, line of tiles and tile in it of a tile by its number."""
        index: list[Expr] = []
        rest = whole_index(simplify(number))
        for extent in reversed([*(axis.extent for axis in self.image.images[1:]), *self.image.grid]):
            index.insert(0, let(T.truncmod(rest, T.int64(extent))))
            rest = let(T.truncdiv(rest, T.int64(extent)))
        if not self.image.images:
            return (), index[-2], index[-1]
        return (rest, *index[:-2]), index[-2], index[-1]

    def _forward(self, number: Expr, tile: Expr) -> None:
        """V of one tile."""
        problem, image, lanes = self.problem, self.image, self.isa.lanes(16 if self.integer else 32)
        if self.integer and image.channels % lanes:
            lanes = 8
        index, y, x = self._place(number)
        base = problem.a_offset + sum(i * axis.a_stride for i, axis in zip(index, image.images, strict=True))
        down = [let(whole_index(simplify(base + i * image.line))) for i in self._inputs(y, image.height)]
        right = [let(whole_index(simplify(i * image.channels))) for i in self._inputs(x, image.width)]
        begin = let(whole_index(simplify(tile * self.v_stride)))
        for part in cut_channels(image.channels, 1, lanes):
            mask = tail_mask(part.ragged, lanes) if part.ragged else None
            with each(part) as vector:
                grid = [
                    [
                        let(
                            self._widened(
                                load(self.a.buffer, self.a.storage, d + r + vector * lanes, lanes, mask), lanes
                            )
                        )
                        for r in right
                    ]
                    for d in down
                ]
                points = _transform(grid, plan.INPUT)
                for (i, j), at in zip(product(range(SIDE), repeat=2), range(POINTS), strict=True):
                    place = simplify(begin + at * plan.point_stride(problem) + vector * lanes)
                    T.buffer_store(self.v.buffer, points[i][j], [T.ramp(place, 1, lanes)])

    @staticmethod
    def _inputs(tile: Expr, outputs: int) -> list[Expr]:
        """Positions of a tile's four inputs; what only outputs over the edge need is read from the last one instead."""
        positions = [tile * OUT + i for i in range(SIDE)]
        if outputs % OUT:
            positions[-1] = T.min(whole_index(positions[-1]), T.int64(outputs + TAPS - 2))
        return positions

    def _outputs(
        self, place: tuple[tuple[Expr, ...], Expr, Expr], tile: Expr, first: Expr, vector: Expr, width: int,
        ragged: Expr,
    ) -> None:  # fmt: skip
        """The four outputs of one tile in one vector of channels: number `vector` of a panel that begins at `first`."""
        (index, y, x), lanes = place, self.lanes
        mask = let(tail_mask(ragged, lanes)) if ragged else None
        channel = whole_index(simplify((first + vector) * lanes))
        base = tile * self.m_stride + vector * lanes
        sums = [let(self.m.buffer[T.ramp(simplify(base + i * width * lanes), 1, lanes)]) for i in range(POINTS)]
        grid = [sums[i : i + SIDE] for i in range(0, POINTS, SIDE)]
        start: Any = None
        if self.init is not None:
            start = let(load(self.init.buffer, self.problem.acc_dtype, channel, lanes, mask))
        for i, line in enumerate(_transform(grid, plan.OUTPUT)):
            for j, value in enumerate(line):
                result = T.shift_right(value, splat(T.int32(2), lanes)) if self.integer else value
                result = let(result if start is None else result + start)
                row, column = whole_index(simplify(y * OUT + i)), whole_index(simplify(x * OUT + j))
                inside = [
                    at < T.int64(extent)
                    for at, offset, extent in ((row, i, self.image.height), (column, j, self.image.width))
                    if offset and extent % OUT
                ]
                if not inside:
                    self.store((*index, row), column, channel, result, lanes, mask)
                    continue
                with T.If(inside[0] if len(inside) == 1 else T.And(*inside)), T.Then():
                    self.store((*index, row), column, channel, result, lanes, mask)
