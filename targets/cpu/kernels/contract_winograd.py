"""3x3 convolutions of stride 1 with 4/9 or 1/4 of the multiplications: code for Winograd's algorithm.

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
from dlc.targets.cpu.kernels.contract_winograd_plan import (
    TAPS,
    Matrix,
    declines,
    inner,
    note,
    pack,
    packed_size,
    plan_of,
)
from dlc.targets.layout import simplify

__all__ = ["candidates", "declines", "emit", "note", "pack", "packed_size", "predicted_seconds"]


def emit(task: Task) -> None:
    """Emit the convolution."""
    _Emitter(task).run()


def _combine(values: Sequence[Expr], row: Sequence[float]) -> Expr:
    """The sum of `values` times the factors of `row`, of which one at least is positive."""
    terms = sorted(((factor, value) for factor, value in zip(row, values, strict=True) if factor), key=lambda t: -t[0])
    total: Any = None
    for factor, value in terms:
        if abs(factor) != 1:
            kind, _, lanes = str(value.ty.dtype).partition("x")
            constant = T.int16(int(abs(factor))) if kind == "int16" else T.float32(abs(factor))
            value = value * splat(constant, int(lanes or 1))
        total = value if total is None else total + value if factor > 0 else total - value
    return total if len(terms) == 1 and terms[0][0] == 1 else let(total)


def _apply(values: Sequence[Expr], factors: Sequence[Matrix]) -> Sequence[Expr]:
    for matrix in factors:
        values = [_combine(values, row) for row in matrix]
    return values


def _transform(grid: Sequence[Sequence[Expr]], factors: Sequence[Matrix]) -> list[Sequence[Expr]]:
    """matrix x grid x matrix^T, where `matrix` is the product of `factors`."""
    columns = [_apply(column, factors) for column in zip(*grid, strict=True)]
    return [_apply(line, factors) for line in zip(*columns, strict=True)]


class _Emitter:
    def __init__(self, task: Task) -> None:
        self.problem, self.schedule, self.isa = task.problem, task.schedule, task.isa
        self.a, self.w, self.init, self.store, self.share = task.a, task.w, task.init, task.store, task.share
        self.plan = plan_of(task.problem, task.schedule, task.isa)
        self.form, self.image, self.integer = self.plan.form, self.plan.image, self.plan.integer
        self.lanes, self.m_stride = self.isa.lanes(), self.plan.m_stride(self.schedule.nr)
        self.u_vector = self.image.channels * self.lanes  # elements of one point of U for a vector of channels

    def run(self) -> None:
        block, total = self.schedule.block, self.plan.tiles
        self.v = scratch("v", self.plan.v_dtype, block * self.plan.v_stride)
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
        lanes, points = self.isa.lanes(16), self.form.points
        doubled = tuple(tuple(2 * factor for factor in row) for row in self.form.weight)
        self.u = scratch("u", "int16", self.plan.u_size)
        for part in self.panels:
            count = part.size * self.u_vector
            with each(part) as vector, loop(count // lanes) as step:
                w_base, u_base = (vector * (self.u_vector * of) + step * lanes for of in (TAPS**2, points))
                places = [simplify(w_base + tap * count) for tap in range(TAPS**2)]
                taps = [let(self._widened(load(self.w.buffer, "int8", at, lanes), lanes)) for at in places]
                u = _transform([taps[i : i + TAPS] for i in range(0, TAPS**2, TAPS)], [doubled])
                for at, value in enumerate(value for line in u for value in line):
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
        points = self.plan.product(tiles, part.size)
        points = replace(points, w_offset=simplify(vector * (self.form.points * self.u_vector)))
        u = self.u if self.integer else self.w
        contract_emit.emit(Task(points, inner(self.schedule), self.isa, self.v, u, None, self._keep))
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
        for extent in reversed([*(axis.extent for axis in self.image.images[1:]), *self.plan.grid]):
            index.insert(0, let(T.truncmod(rest, T.int64(extent))))
            rest = let(T.truncdiv(rest, T.int64(extent)))
        if not self.image.images:
            return (), index[-2], index[-1]
        return (rest, *index[:-2]), index[-2], index[-1]

    def _forward(self, number: Expr, tile: Expr) -> None:
        """V of one tile."""
        image, lanes = self.image, self.isa.lanes(16 if self.integer else 32)
        if self.integer and image.channels % lanes:
            lanes = 8
        index, y, x = self._place(number)
        base = self.problem.a_offset + sum(i * axis.a_stride for i, axis in zip(index, image.images, strict=True))
        down = [let(whole_index(simplify(base + i * image.line))) for i in self._inputs(y, image.height)]
        right = [let(whole_index(simplify(i * image.channels))) for i in self._inputs(x, image.width)]
        begin = let(whole_index(simplify(tile * self.plan.v_stride)))
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
                points = _transform(grid, self.form.inputs)
                for at, (i, j) in enumerate(product(range(self.form.side), repeat=2)):
                    place = simplify(begin + at * self.plan.point_stride + vector * lanes)
                    T.buffer_store(self.v.buffer, points[i][j], [T.ramp(place, 1, lanes)])

    def _inputs(self, tile: Expr, outputs: int) -> list[Expr]:
        """Positions of a tile's inputs; what only outputs over the edge need is read from the last one instead."""
        out, last = self.form.out, T.int64(outputs + TAPS - 2)
        over = -outputs % out
        positions = [whole_index(tile * out + i) for i in range(self.form.side)]
        return [T.min(at, last) if i >= self.form.side - over else at for i, at in enumerate(positions)]

    def _outputs(
        self, place: tuple[tuple[Expr, ...], Expr, Expr], tile: Expr, first: Expr, vector: Expr, width: int,
        ragged: Expr,
    ) -> None:  # fmt: skip
        """The outputs of one tile in one vector of channels: number `vector` of a panel that begins at `first`."""
        (index, y, x), lanes = place, self.lanes
        mask = let(tail_mask(ragged, lanes)) if ragged else None
        channel = whole_index(simplify((first + vector) * lanes))
        base = tile * self.m_stride + vector * lanes
        sums = [
            let(self.m.buffer[T.ramp(simplify(base + i * width * lanes), 1, lanes)]) for i in range(self.form.points)
        ]
        side, out = self.form.side, self.form.out
        grid = [sums[i : i + side] for i in range(0, self.form.points, side)]
        start: Any = None
        if self.init is not None:
            start = let(load(self.init.buffer, self.problem.acc_dtype, channel, lanes, mask))
        for i, line in enumerate(_transform(grid, self.form.outputs)):
            for j, value in enumerate(line):
                result = T.shift_right(value, splat(T.int32(2), lanes)) if self.integer else value
                result = let(result if start is None else result + start)
                row, column = whole_index(simplify(y * out + i)), whole_index(simplify(x * out + j))
                inside = [
                    at < T.int64(extent)
                    for at, offset, extent in ((row, i, self.image.height), (column, j, self.image.width))
                    if extent % out and offset >= extent % out
                ]
                if not inside:
                    self.store((*index, row), column, channel, result, lanes, mask)
                    continue
                with T.If(inside[0] if len(inside) == 1 else T.And(*inside)), T.Then():
                    self.store((*index, row), column, channel, result, lanes, mask)
