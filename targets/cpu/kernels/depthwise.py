"""Depthwise convolution: one output channel per input channel, vectors over channels.

    out[outer..., row, c] = init[c] + sum over taps t of A[a_offset + ... + row * a_stride + offset(t) + c] * W[t, c]

Integer taps are taken four (or two) at a time by the same multiply-adds as in `dot`: the taps above one another in a
column are merged into one 32-bit word per channel, and that word serves every output whose window covers the column.
A one-dimensional kernel merges neighbouring taps instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.errors import DlcError
from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, let, load, splat, stack, tail_mask, vector_type
from dlc.targets.cpu.kernels.contract_emit import Store
from dlc.targets.cpu.kernels.contract_loops import cut, cut_channels, each, shared, shared_loop, whole_index
from dlc.targets.cpu.kernels.contract_problem import Axis, Schedule
from dlc.targets.cpu.kernels.dot import Dot, dot_for
from dlc.targets.layout import Layout, simplify

_CODE = 512  # multiply-adds of one tile, all taps unrolled, up to which code stays small


@dataclass(frozen=True)
class Depthwise:
    """One depthwise convolution; extents, strides and offsets as in `Contraction`.

    Attributes:
        lines: offsets of the kernel's lines: all its axes but the innermost one.
        width, dilation: taps in a line and their distance in columns.
        stride: columns from one row (output position) to the next.
        column: elements from one column to the next.
    """

    a_dtype: str
    w_dtype: str
    a_offset: Expr
    outer: tuple[Axis, ...]
    rows: Axis
    lines: tuple[Expr, ...]
    width: int
    dilation: int
    stride: int
    column: Expr
    channels: int

    @property
    def acc_dtype(self) -> str:
        """Type of the sums and of `init`."""
        return "float32" if self.a_dtype == "float32" else "int32"

    def groups(self, size: int) -> list[tuple[tuple[int, int], ...]]:
        """The taps (line, column within the window) that are multiplied together, at most `size` each."""
        if len(self.lines) == 1:
            columns = [x * self.dilation for x in range(self.width)]
            return [tuple((0, c) for c in columns[first : first + size]) for first in range(0, self.width, size)]
        return [
            tuple((line, x * self.dilation) for line in range(first, min(first + size, len(self.lines))))
            for first in range(0, len(self.lines), size)
            for x in range(self.width)
        ]


def depthwise_problem(
    x: Layout,
    kernel: Sequence[int],
    out: Sequence[Expr],
    *,
    strides: Sequence[int],
    pads_begin: Sequence[int],
    dilations: Sequence[int],
    dtypes: tuple[str, str] = ("float32", "float32"),
) -> Depthwise:
    """A depthwise convolution of `x` (N, spatial..., C) with halo >= padding; `out` are the output's extents."""
    if x.strides[-1] != 1 or len(kernel) != len(out):
        raise DlcError(f"depthwise convolution needs channels-last input and a kernel of rank {len(out)}, got {kernel}")
    for axis, pad in enumerate(pads_begin):
        if x.halo[1 + axis][0] < pad:
            raise DlcError(f"halo {x.halo[1 + axis]} of spatial axis {axis} is smaller than padding {pad}")
    steps = x.strides[1:-1]
    taps = product(*[range(k) for k in kernel[:-1]])
    axes = [Axis(x.shape[0], x.strides[0])]
    axes += [Axis(o, simplify(step * stride)) for o, step, stride in zip(out, steps, strides, strict=True)]
    return Depthwise(
        a_dtype=dtypes[0],
        w_dtype=dtypes[1],
        a_offset=simplify(x.offset - sum(p * s for p, s in zip(pads_begin, steps, strict=True))),
        outer=tuple(axes[:-1]),
        rows=axes[-1],
        lines=tuple(
            simplify(sum(t * d * s for t, d, s in zip(tap, dilations[:-1], steps[:-1], strict=True))) for tap in taps
        ),
        width=int(kernel[-1]),
        dilation=int(dilations[-1]),
        stride=int(strides[-1]),
        column=steps[-1],
        channels=int(x.shape[-1]),
    )


def pack_depthwise(problem: Depthwise, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """Pack weights (C, 1, k...) as [vector of channels][group of taps][lanes x group], padded with zeros."""
    dot, lanes = dot_for(isa, problem.a_dtype, problem.w_dtype), isa.lanes()
    taps = weight.reshape(weight.shape[0], len(problem.lines), problem.width)
    if weight.shape[0] != problem.channels:
        raise DlcError(f"weight has {weight.shape[0]} channels, the input {problem.channels}")
    groups, vectors = problem.groups(dot.group), -(-problem.channels // lanes)
    wide = np.zeros((len(groups), dot.group, vectors * lanes), problem.w_dtype)
    for index, group in enumerate(groups):
        for position, (line, column) in enumerate(group):
            wide[index, position, : problem.channels] = taps[:, line, column // problem.dilation]
    split = np.moveaxis(wide.reshape(len(groups), dot.group, vectors, lanes), 2, 0)
    return np.ascontiguousarray(dot.arrange(split)).reshape(-1)


def choose_depthwise(problem: Depthwise, isa: Isa, machine: Machine) -> Schedule:
    """Rows per tile: few enough accumulators to leave registers for weights and words, and few leftover rows."""
    del machine  # every operand of a tile is in L1 whatever the machine
    dot = dot_for(isa, problem.a_dtype, problem.w_dtype)
    groups = len(problem.groups(dot.group))
    most = max(1, min(isa.registers // 4, _CODE // (groups * len(dot.phases))))
    if not isinstance(problem.rows.extent, int):
        return Schedule(min(most, 8), 1, hot="a")
    extent = problem.rows.extent

    def cost(rows: int) -> float:
        # Columns are loaded once per tile; the halo between tiles is loaded again.
        full, rest = divmod(extent, rows)
        edge = max(0, (problem.width - 1) * problem.dilation + 1 - problem.stride)
        tiles = full + (rest > 0)
        return extent * problem.stride + tiles * (edge + 2) + groups * extent

    return Schedule(min(range(1, min(most, extent) + 1), key=cost), 1, hot="a")


def predicted_seconds(problem: Depthwise, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The time of a depthwise convolution: words made once a tile, multiply-adds, and the input where it lies."""
    core, dot = contract_cost.core_of(isa, machine), dot_for(isa, problem.a_dtype, problem.w_dtype)
    outer, rows = prod(_int(axis.extent) for axis in problem.outer), _int(problem.rows.extent)
    vectors, groups = -(-problem.channels // isa.lanes()), problem.groups(dot.group)
    size = max(len(group) for group in groups)
    columns = (schedule.mr - 1) * problem.stride + (problem.width - 1) * problem.dilation + 1
    words = min(columns, schedule.mr * problem.width) * len(groups) / problem.width
    merge = 0 if dot.acc_dtype == "float32" else 3 * size - 2  # widened, moved up, merged
    others = words * (merge + dot.spread_cost) + len(groups) * (schedule.mr * dot.additions + dot.widen_cost)
    multiplies = len(groups) * schedule.mr * dot.multiplies
    loads = words * size + len(groups) * len(dot.phases)
    busy = max(multiplies / core.multiplies + others / core.vectors, loads / core.loads)
    tile = busy + contract_cost.TILE_OVERHEAD + contract_cost.STORE_COST * schedule.mr
    compute = outer * -(-rows // schedule.mr) * vectors * tile
    axes = (*problem.outer, problem.rows)
    read = max(_int(axis.extent) * _int(axis.a_stride) for axis in axes) * np.dtype(problem.a_dtype).itemsize
    level = contract_cost.level_of(read, machine)
    traffic = 0.0 if level == 0 else read / core.bandwidth[level]
    return contract_cost.seconds(contract_cost.together(compute, traffic), machine)


def _int(extent: Expr) -> int:
    return extent if isinstance(extent, int) else contract_cost.GUESS


def emit_depthwise(
    problem: Depthwise, schedule: Schedule, isa: Isa, a: Operand, w: Operand, init: Operand | None, store: Store,
    share: Share | None = None,
) -> None:  # fmt: skip
    """Emit the convolution inside an open `kernel(...)`; `init`, `store` and `share` as for `contract.emit`."""
    lanes = isa.lanes()
    dot = dot_for(isa, problem.a_dtype, problem.w_dtype)
    accumulators = stack(dot.acc_dtype, schedule.mr * lanes)
    row_parts, channel_parts = cut(problem.rows.extent, schedule.mr), cut_channels(problem.channels, 1, lanes)

    def tile(outer: tuple[Expr, ...], row: Expr, count: int, vector: Expr, ragged: Expr) -> None:
        base = problem.a_offset + row * problem.rows.a_stride + vector * lanes
        base = base + sum(i * axis.a_stride for i, axis in zip(outer, problem.outer, strict=True))
        mask = tail_mask(ragged, lanes) if ragged else None
        _Tile(problem, dot, lanes, a, w, accumulators, let(whole_index(simplify(base))), vector, mask).run(count, init)
        for r in range(count):
            value = accumulators[T.ramp(r * lanes, 1, lanes)]
            place = tuple(whole_index(i) for i in outer)
            store(place, whole_index(simplify(row + r)), whole_index(simplify(vector * lanes)), value, lanes, mask)

    counts = [axis.extent for axis in problem.outer]
    counts += [simplify(sum(part.count for part in parts)) for parts in (row_parts, channel_parts)]
    mine = None if share is None else Share.best(counts)
    if mine == len(counts) - 2:
        row_parts = shared(row_parts, share)
    if mine == len(counts) - 1:
        channel_parts = shared(channel_parts, share)

    def outer_loops(index: tuple[Expr, ...]) -> None:
        axis = len(index)
        if axis < len(problem.outer):
            with shared_loop(problem.outer[axis].extent, share if axis == mine else None) as i:
                outer_loops((*index, i))
            return
        for rows in row_parts:
            with each(rows) as row:
                for part in channel_parts:
                    with each(part) as vector:
                        tile(index, row, rows.size, vector, part.ragged)

    outer_loops(())


@dataclass(frozen=True)
class _Tile:
    """Some output positions times one vector of channels."""

    problem: Depthwise
    dot: Dot
    lanes: int
    a: Operand
    w: Operand
    accumulators: object
    base: Expr
    vector: Expr
    mask: Expr

    def run(self, count: int, init: Operand | None) -> None:
        dot, lanes, problem = self.dot, self.lanes, self.problem
        start = splat(T.float32(0) if dot.acc_dtype == "float32" else T.int32(0), lanes)
        if init is not None:
            start = let(load(init.buffer, dot.acc_dtype, simplify(self.vector * lanes), lanes, self.mask))
        for r in range(count):
            T.buffer_store(self.accumulators, start, [T.ramp(r * lanes, 1, lanes)])
        groups = problem.groups(dot.group)
        weights = [self._weights(len(groups), index) for index in range(len(groups))]
        # Words in the order of their columns; each is made once and given to all the outputs that need it.
        uses: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
        for index, group in enumerate(groups):
            for r in range(count):
                word = tuple((line, r * problem.stride + column) for line, column in group)
                uses.setdefault(word, []).append((r, index))
        for word in sorted(uses, key=lambda taps: (taps[0][0], taps[0][1])):
            for phase, value in enumerate(dot.spread(self._word(word), lanes)):
                named = let(value)
                for r, index in uses[word]:
                    slot = T.ramp(r * lanes, 1, lanes)
                    acc = self.accumulators[slot]  # type: ignore[index]
                    T.buffer_store(self.accumulators, dot.step(acc, named, weights[index][phase], lanes), [slot])

    def _weights(self, groups: int, index: int) -> list[Expr]:
        dot, lanes = self.dot, self.lanes
        at, result = (self.vector * groups + index) * dot.group * lanes, []
        for phase in dot.phases:
            width = len(phase) * lanes
            result.append(let(dot.widen(load(self.w.buffer, self.w.storage, simplify(at), width), lanes)))
            at = at + width
        return result

    def _word(self, taps: tuple[tuple[int, int], ...]) -> Expr:
        """The activations of some taps, merged into one word per channel; missing bytes are zero."""
        problem, lanes = self.problem, self.lanes
        values = []
        for line, column in taps:
            at = simplify(self.base + problem.lines[line] + column * problem.column)
            values.append(load(self.a.buffer, problem.a_dtype, at, lanes, self.mask))
        if problem.a_dtype == "float32":
            return let(values[0])
        merged: Expr = None
        for position, value in enumerate(values):
            wide = T.cast(value, vector_type("int32", lanes))
            if position:
                wide = T.shift_left(wide, splat(T.int32(8 * position), lanes))
            merged = wide if merged is None else T.bitwise_or(merged, wide)
        return let(merged)
