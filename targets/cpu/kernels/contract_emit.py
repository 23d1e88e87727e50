"""The vector emitter of contractions: register tiles of mr rows x nr vectors of channels, unrolled by Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, let, load, splat, stack, tail_mask, vector_type
from dlc.targets.cpu.kernels.contract_loops import (
    Nest,
    Segment,
    cut,
    cut_channels,
    each,
    loop,
    nests,
    shared,
    shared_loop,
    whole_index,
)
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction, Run, Schedule, groups_of
from dlc.targets.cpu.kernels.dot import dot_for, load_first, load_group
from dlc.targets.layout import simplify

Store = Callable[[tuple[Expr, ...], Expr, Expr, Expr, int, Expr], None]

_UNROLLED_STEPS = 256  # multiply-adds of one tile up to which the whole reduction is straight-line code
_MAX_UNROLLED_RUNS = 9


@dataclass(frozen=True)
class _Tile:
    """One register tile: where it reads and which outputs it makes."""

    a_base: Expr
    w_base: Expr
    moves: tuple[Expr, ...]  # of A, from a_base, per row
    vectors: int
    ragged: Expr
    mask: Expr


@dataclass(frozen=True)
class Task:
    """A contraction to emit inside an open `kernel(...)`, and what an emitter needs for it.

    Attributes:
        problem, schedule, isa: what is computed, in which tiles, with which instructions.
        a, w: flat operands as the problem describes them (`w` packed by `pack` with the same schedule, or an
            activation).
        init: groups * n start values of the accumulators in `problem.acc_dtype`, or None for zero.
        store: ``store(outer_index, row, channel, vector, lanes, mask)`` is called for every accumulator vector, as
            scalar int64 indices of its first output; `mask` is None or true in the lanes that exist.
        share: which part of the work is done; None for all.
        turn: 1 where the tiles of channels are gone through backwards, else 0; None for never.
    """

    problem: Contraction
    schedule: Schedule
    isa: Isa
    a: Operand
    w: Operand
    init: Operand | None
    store: Store
    share: Share | None = None
    turn: Expr = None


def emit(task: Task) -> None:
    """Emit the contraction with vectors."""
    _Emitter(task).run()


class _Emitter:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.problem, self.schedule, self.isa = task.problem, task.schedule, task.isa
        self.a, self.w, self.init, self.store = task.a, task.w, task.init, task.store
        problem, isa = self.problem, self.isa
        self.dot, self.lanes = dot_for(isa, problem.a_dtype, problem.w_dtype), isa.lanes()
        self.block = self.dot.group * self.lanes  # elements of one packed vector
        self.packed = problem.w_k_stride is None
        self.steps = [groups_of(run.length, self.dot) for run in problem.runs]
        self.step_total = sum(self.steps)
        self.acc_type = vector_type(self.dot.acc_dtype, self.lanes)

    # Loops over tiles -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        problem, schedule = self.problem, self.schedule
        rows = problem.rows
        if schedule.mo > 1:
            assert isinstance(rows.extent, int) and schedule.mr == schedule.mo * rows.extent and problem.outer
        self.accumulators = stack(self.dot.acc_dtype, schedule.mr * schedule.nr * self.lanes)
        self.row_parts = cut(rows.extent, rows.extent if schedule.mo > 1 else schedule.mr)
        self.last_parts = cut(problem.outer[-1].extent, schedule.mo) if problem.outer else []
        channel_parts = cut_channels(problem.n, schedule.nr, self.lanes)
        self.mine = self._shared_axis(channel_parts)
        self.row_parts = shared(self.row_parts, self._share("rows"))
        self.last_parts = shared(self.last_parts, self._share("last"))
        channel_parts = shared(channel_parts, self._share("channels"))
        batched = [i for i, axis in enumerate(problem.outer) if not _is_zero(axis.w_stride)]
        others = [i for i in range(len(problem.outer)) if i not in batched]
        if schedule.mo > 1:
            assert len(problem.outer) - 1 not in batched

        def channels(index: dict[int, Expr], group: Expr, then: Callable[[Segment, Expr], None]) -> None:
            for part in channel_parts:
                with each(part, self.task.turn) as vector:
                    then(part, vector)

        with shared_loop(problem.groups, self._share("groups")) as group:
            self._outer(batched, {}, lambda fixed: self._ordered(fixed, others, group, channels))

    def _shared_axis(self, channel_parts: Sequence[Segment]) -> Any:
        """Which axis is shared out: ``groups``, the number of an outer one, ``last``, ``rows`` or ``channels``."""
        if self.task.share is None:
            return None
        counts: dict[Any, Expr] = {"groups": self.problem.groups}
        tiled = len(self.problem.outer) - 1 if self.schedule.mo > 1 else -1
        counts |= {i: axis.extent for i, axis in enumerate(self.problem.outer) if i != tiled}
        rows, channels = (_tiles(parts) for parts in (self.last_parts if tiled >= 0 else self.row_parts, channel_parts))
        counts |= {"channels": channels, "last" if tiled >= 0 else "rows": rows}
        # Where parts are as even, the larger operand is the one to be divided.
        last = counts.pop("channels")
        if self._reads_weights_most():
            counts = {"channels": last, **counts}
        else:
            counts["channels"] = last
        return list(counts)[Share.best(list(counts.values()))]

    def _reads_weights_most(self) -> bool:
        axes = [*(axis.extent for axis in self.problem.outer), self.problem.rows.extent]
        steps = prod(extent for extent in axes if isinstance(extent, int))
        return all(isinstance(e, int) for e in (*axes, self.problem.n)) and steps < self.problem.n

    def _share(self, axis: Any) -> Share | None:
        return self.task.share if axis == self.mine else None

    def _ordered(self, fixed: dict[int, Expr], others: list[int], group: Expr, channels: Callable[..., None]) -> None:
        if self.schedule.hot == "w":
            channels(
                fixed,
                group,
                lambda part, vector: self._outer(
                    others,
                    fixed,
                    lambda index: self._rows(index, lambda i, row, m: self._tile(i, row, m, group, part, vector)),
                ),
            )
        else:
            self._outer(
                others,
                fixed,
                lambda index: self._rows(
                    index,
                    lambda i, row, m: channels(
                        i, group, lambda part, vector: self._tile(i, row, m, group, part, vector)
                    ),
                ),
            )

    def _outer(self, axes: list[int], index: dict[int, Expr], then: Callable[[dict[int, Expr]], None]) -> None:
        """Loops over the outer `axes`; the last outer axis is left to `_rows` when tiles span it."""
        if not axes or (self.schedule.mo > 1 and axes == [len(self.problem.outer) - 1]):
            then(index)
            return
        with shared_loop(self.problem.outer[axes[0]].extent, self._share(axes[0])) as i:
            self._outer(axes[1:], {**index, axes[0]: i}, then)

    def _rows(self, index: dict[int, Expr], then: Callable[..., None]) -> None:
        """Loops over row tiles: calls `then(index, row, moves)` with the (outer step, row) of every row of the tile."""
        if self.schedule.mo == 1:
            for part in self.row_parts:
                with each(part) as row:
                    then(index, row, [(0, r) for r in range(part.size)])
            return
        last, count = len(self.problem.outer) - 1, self.problem.rows.extent
        for part in self.last_parts:
            with each(part) as start:
                then({**index, last: start}, 0, [(o, r) for o in range(part.size) for r in range(count)])

    # One tile ---------------------------------------------------------------------------------------------------------

    def _tile(
        self, index: dict[int, Expr], row: Expr, moves: list[tuple[int, int]], group: Expr, part: Segment, vector: Expr
    ) -> None:
        problem, lanes = self.problem, self.lanes
        outer = [index[i] for i in range(len(problem.outer))]
        a_base = problem.a_offset + row * problem.rows.a_stride + group * problem.a_group_stride
        a_base = a_base + sum(i * axis.a_stride for i, axis in zip(outer, problem.outer, strict=True))
        if self.packed:
            per_vector = self.step_total * self.block
            w_base = problem.w_offset + (group * -(-problem.n // lanes) + vector) * per_vector
        else:
            w_base = problem.w_offset + vector * lanes
            w_base = w_base + sum(i * axis.w_stride for i, axis in zip(outer, problem.outer, strict=True))
        step = problem.outer[-1].a_stride if problem.outer else 0
        mask = tail_mask(part.ragged, lanes) if not _is_zero(part.ragged) else None
        tile = _Tile(
            let(whole_index(simplify(a_base))),
            let(whole_index(simplify(w_base))),
            tuple(simplify(o * step + r * problem.rows.a_stride) for o, r in moves),
            part.size,
            part.ragged,
            mask,
        )
        channel = simplify(group * problem.n + vector * lanes)
        self._begin(tile, channel)
        self._reduce(tile)
        for i, (o, r) in enumerate(moves):
            place = tuple(
                whole_index(simplify(x + (o if axis == len(outer) - 1 else 0))) for axis, x in enumerate(outer)
            )
            for j in range(tile.vectors):
                value = self.accumulators[self._slot(i, j)]
                last = mask if j == tile.vectors - 1 else None
                self.store(
                    place,
                    whole_index(simplify(row + r)),
                    whole_index(simplify(channel + j * lanes)),
                    value,
                    lanes,
                    last,
                )

    def _slot(self, i: int, j: int) -> Expr:
        return T.ramp((i * self.schedule.nr + j) * self.lanes, 1, self.lanes)

    def _begin(self, tile: _Tile, channel: Expr) -> None:
        dtype = self.dot.acc_dtype
        for j in range(tile.vectors):
            start = splat(T.float32(0) if dtype == "float32" else T.int32(0), self.lanes)
            if self.init is not None:
                mask = tile.mask if j == tile.vectors - 1 else None
                start = let(load(self.init.buffer, dtype, simplify(channel + j * self.lanes), self.lanes, mask))
            for i in range(len(tile.moves)):
                T.buffer_store(self.accumulators, start, [self._slot(i, j)])

    # The reduction ----------------------------------------------------------------------------------------------------

    def _reduce(self, tile: _Tile) -> None:
        runs, problem = self.problem.runs, self.problem
        total = self.step_total
        work = total * len(tile.moves) * tile.vectors if isinstance(total, int) else None
        # Where sums need registers besides the accumulators, LLVM would move loads out of straight-line code and spill.
        straight = self.dot.fused and work is not None and work <= _UNROLLED_STEPS
        short = self.dot.group > 1 and self.dot.rereads and any(run.length < self.dot.group for run in runs)
        for nest in nests(runs, straight or (short and len(runs) <= _MAX_UNROLLED_RUNS)):
            w_first = sum(self.steps[: nest.first])
            with self._run_loops(nest) as (offset, number):
                steps = groups_of(nest.length, self.dot)
                a_base = tile.a_base + nest.offset + offset
                w_step = w_first + number * steps if self.packed else self._k_of(problem.runs, nest.first)
                self._run(tile, nest, a_base, w_step, straight)

    def _k_of(self, runs: Sequence[Run], first: int) -> Expr:
        return sum((run.length for run in runs[:first]), 0)

    @contextmanager
    def _run_loops(self, nest: Nest) -> Iterator[tuple[Expr, Expr]]:
        """Open the loops of a nest: yields the offset and the number of the run, both relative to its first one."""
        if not nest.loops:
            yield 0, 0
            return
        count, step = nest.loops[0]
        inner = Nest(nest.offset, nest.length, nest.loops[1:], nest.first, nest.offsets)
        below = 1
        for extent, _ in nest.loops[1:]:
            below *= extent
        with loop(count) as i, self._run_loops(inner) as (offset, number):
            yield i * step + offset, i * below + number

    def _run(self, tile: _Tile, nest: Nest, a_base: Expr, w_step: Expr, straight: bool) -> None:
        """All steps of one run."""
        group = self.dot.group
        length, unroll = nest.length, self.schedule.unroll
        left = 0 if group == 1 else length % group
        whole = length if group == 1 else length // group
        if isinstance(whole, int) and (straight or whole <= unroll):
            for k in range(whole):
                self._step(tile, a_base + k * group, w_step + k)
        else:
            count = whole // unroll if isinstance(whole, int) else let(T.truncdiv(whole, T.int64(unroll)))
            with loop(count) as block:
                for k in range(unroll):
                    self._step(tile, a_base + (block * unroll + k) * group, w_step + block * unroll + k)
            if isinstance(whole, int):
                for k in range(count * unroll, whole):
                    self._step(tile, a_base + k * group, w_step + k)
            elif unroll > 1:
                with loop(whole - count * unroll) as k:
                    self._step(tile, a_base + (count * unroll + k) * group, w_step + count * unroll + k)
        if left:
            # Weights of the k that the last step reads again are zero (see `pack`).
            if self.dot.rereads:
                base = a_base + (length - group if length > group else 0)
                reader = self._short_reader(nest) if length < group else None
            else:
                base, reader = a_base + whole * group, partial(load_first, self.a.buffer, self.dot, count=left)
            self._step(tile, base, w_step + whole, reader)

    def _step(self, tile: _Tile, a_at: Expr, w_step: Expr, reader: Callable[[Expr], Expr] | None = None) -> None:
        """One group of k: nr vectors of weights times mr rows."""
        dot, lanes, acc = self.dot, self.lanes, self.accumulators
        weights = self._weights(tile, w_step)
        if self.schedule.prefetch and self.packed:
            self._prefetch(tile, w_step)
        for i, move in enumerate(tile.moves):
            place = simplify(a_at + move)
            word = load_group(self.a.buffer, dot, place) if reader is None else reader(place)
            for phase, spread in enumerate(dot.spread(splat(word, lanes), lanes)):
                value = let(spread)
                for j in range(tile.vectors):
                    slot = [self._slot(i, j)]
                    T.buffer_store(acc, dot.step(acc[slot[0]], value, weights[j][phase], lanes), slot)

    def _weights(self, tile: _Tile, w_step: Expr) -> list[list[Expr]]:
        """The usable weights of every vector, one per phase."""
        dot, lanes, result, first = self.dot, self.lanes, [], 0
        if dot.split is not None and self.packed:
            first = tile.vectors // 2 * 2
            for j in range(0, first, 2):
                at = simplify(tile.w_base + (w_step * tile.vectors + j) * self.block)
                pair = T.reinterpret(vector_type("uint32", lanes), self.w.buffer[T.ramp(at, 1, 2 * lanes)])
                result += [[let(half)] for half in dot.split(let(pair), lanes)]
        return result + [self._alone(tile, w_step, j) for j in range(first, tile.vectors)]

    def _alone(self, tile: _Tile, w_step: Expr, j: int) -> list[Expr]:
        """The usable weights of vector `j`, which lies by itself."""
        dot, lanes = self.dot, self.lanes
        if not self.packed:
            at = simplify(tile.w_base + w_step * self.problem.w_k_stride + j * lanes)
            mask = tile.mask if j == tile.vectors - 1 else None
            return [let(dot.widen(load(self.w.buffer, self.w.storage, at, lanes, mask), lanes))]
        at = tile.w_base + (w_step * tile.vectors + j) * self.block
        result = []
        for phase in dot.phases:
            width = len(phase) * lanes
            result.append(let(dot.widen(load(self.w.buffer, self.w.storage, simplify(at), width), lanes)))
            at = at + width
        return result

    def _prefetch(self, tile: _Tile, w_step: Expr) -> None:
        line = 64 // np.dtype(self.problem.w_dtype).itemsize
        begin = simplify(tile.w_base + (w_step + self.schedule.prefetch) * tile.vectors * self.block)
        for at in range(0, tile.vectors * self.block, line):
            where = T.address_of(self.w.buffer[simplify(begin + at)])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", where, T.int32(0), T.int32(3), T.int32(1)))

    def _short_reader(self, nest: Nest) -> Callable[[Expr], Expr]:
        """How to read a run shorter than a group: whole words where they provably lie inside the buffer."""
        dot, count, buffer = self.dot, int(nest.length), self.a.buffer
        low, high = self._extremes(nest)
        missing = dot.group - count
        if _provable(high + dot.group <= self.a.layout.size):
            return lambda at: load_group(buffer, dot, at)
        if _provable(low - missing >= 0):
            return lambda at: load_group(buffer, dot, simplify(at - missing), missing)
        return lambda at: load_first(buffer, dot, at, count)

    def _extremes(self, nest: Nest) -> tuple[Expr, Expr]:
        """The lowest and highest position of A at which a run of this nest begins (strides are never negative)."""
        problem = self.problem
        axes: list[Axis] = [*problem.outer, problem.rows, Axis(problem.groups, problem.a_group_stride)]
        if not all(isinstance(offset, int) for offset in nest.offsets):
            return problem.a_offset - (1 << 60), problem.a_offset + (1 << 60)
        low = problem.a_offset + min(nest.offsets)
        high = problem.a_offset + max(nest.offsets) + sum((axis.extent - 1) * axis.a_stride for axis in axes)
        return simplify(low), simplify(high)


def _tiles(parts: Sequence[Segment]) -> Expr:
    return simplify(sum(part.count for part in parts))


def _is_zero(value: Expr) -> bool:
    return isinstance(value, int) and value == 0


def _provable(condition: Any) -> bool:
    result = condition if isinstance(condition, bool) else simplify(condition)
    return result is True or (isinstance(result, int) and result == 1)
