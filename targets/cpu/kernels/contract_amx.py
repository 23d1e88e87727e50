"""The tile emitter of contractions: blocks of up to four accumulator tiles, stored while the next block multiplies.

The unit of work is a *block*: ti tiles of rows times tj tiles of 16 channels. Tile registers 0-3 accumulate, 4-5 hold
activations, straight from memory with the rows' stride, 6-7 hold weights. All tiles of a kernel have one configuration:
rows that do not divide into tiles make the last tile overlap its predecessor, so that remainders need no other size.

Vectors have nothing to do while tiles multiply. So a finished block is written to scratch as int32, described by a
`_Pending`, and handed to `store` a few rows a step during the next block's loop over k. One scratch is enough: the loop
has stored all of it before the next block's tiles are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels.amx import (
    GROUP,
    LANES,
    ROW_BYTES,
    ROWS,
    TDPBUSD,
    TILELOADD,
    TILELOADDT1,
    TILERELEASE,
    TILESTORED,
    TILEZERO,
    Instruction,
    Memory,
    TileUnit,
    aligned_stack,
)
from dlc.targets.cpu.kernels.builder import Expr, let, load, stack, tail_mask
from dlc.targets.cpu.kernels.contract_amx_plan import rows_of, step_bytes, steps_of, tile_rows
from dlc.targets.cpu.kernels.contract_emit import Task
from dlc.targets.cpu.kernels.contract_loops import Segment, cut, each, loop, whole_index
from dlc.targets.layout import simplify

PARTIAL_BLOCKS = 16  # whose partial sums wait in scratch when k is cut: 64 KB of 2x2 blocks
_A_TILES, _W_TILES = (4, 5), (6, 7)
_LINE = 64


def emit_tiles(task: Task) -> None:
    """Emit the contraction with tiles.

    `store` is called once for each row and 16 channels, in no particular order.
    """
    _Emitter(task).run()


def tile_shapes(rows: Expr, width: int) -> list[tuple[Expr, Expr]]:
    """(rows, bytes per row) of the eight tiles, for tiles of `rows` rows and steps of `width` bytes of k."""
    return [(rows, ROW_BYTES)] * 4 + [(rows, width)] * 2 + [(width // GROUP, ROW_BYTES)] * 2


@dataclass(frozen=True)
class _Piece:
    """The steps of k that one visit to a block takes, and where its sums lie in scratch."""

    begin: Expr
    count: Expr
    first: Expr  # a Python bool where it is known
    last: Expr
    slot: Expr


@dataclass(frozen=True)
class _Place:
    """Which outputs a block makes: tiles of rows and of channels, and the loops around them."""

    row_tile: Expr
    ti: int
    vector: Expr
    tj: int
    outer: tuple[Expr, ...]
    group: Expr


class _Pending:
    """The finished block that is not stored yet; constant indices, so that LLVM keeps it in registers."""

    NEXT, END, ROW, AT, CHANNEL, LEFT, VECTORS, OUTER = range(8)

    def __init__(self, outer: int) -> None:
        self.values = stack("int64", self.OUTER + outer)
        for at in range(self.OUTER + outer):
            T.buffer_store(self.values, T.int64(0), [at])

    def __getitem__(self, at: int) -> Expr:
        return self.values[at]

    def __setitem__(self, at: int, value: Expr) -> None:
        T.buffer_store(self.values, whole_index(value), [at])


class _Emitter:
    def __init__(self, task: Task) -> None:
        problem, schedule = self.problem, self.schedule = task.problem, task.schedule
        self.a, self.w, self.init, self.store = task.a, task.w, task.init, task.store
        self.ti, self.tj = schedule.mr // ROWS, schedule.nr
        assert 0 < self.ti * self.tj <= 4
        self.width, self.steps = step_bytes(problem), steps_of(problem)
        self.rows = rows_of(problem, schedule.flat)
        self.n = int(problem.n)
        self.vectors, self.ragged = -(-self.n // LANES), self.n % LANES
        self.blocked = 0 < schedule.k_block < len(self.steps)
        self.emulated = task.isa.emulated

    # Set-up -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._cut_rows()
        self.column_parts = cut(self.vectors, self.tj)
        self.scratch_block = self.ti * ROWS * self.tj * LANES
        self.scratch = aligned_stack("int32", self.scratch_block * (PARTIAL_BLOCKS if self.blocked else 1))
        self.pending = _Pending(len(self.rows.outer))
        self.ahead = stack("int64", 1) if self._prefetches() else None
        self.offset_of = self._offsets()
        self.unit = TileUnit(self.emulated)
        self.unit.configure(tile_shapes(self.height, self.width))
        with loop(self.problem.groups) as group:
            if self.schedule.hot == "w":
                self._channels_outside(group)
            else:
                self._rows_outside(group)
        self._store_rows(self.pending[_Pending.NEXT], self.pending[_Pending.END])
        self.unit.emit(TILERELEASE)

    def _cut_rows(self) -> None:
        extent = self.rows.extent
        if isinstance(extent, int):
            self.extent, (tiles, self.height) = extent, tile_rows(extent)
        else:
            self.extent = let(T.max(extent, T.int64(0)))
            tiles = let(T.truncdiv(self.extent + (ROWS - 1), T.int64(ROWS)))
            # Never zero: the processor refuses a tile without rows, even when no loop will use it.
            divisor = T.max(tiles, T.int64(1))
            self.height = let(T.max(T.truncdiv(self.extent + divisor - 1, divisor), T.int64(1)))
        self.exact = isinstance(extent, int) and tiles * self.height == extent
        self.row_parts = cut(tiles, self.ti)

    def _offsets(self) -> Callable[[Expr], Expr]:
        """Where the activations of a step begin, from the row's own position."""
        runs = self.problem.runs
        offsets = [simplify(runs[step.run].offset + step.begin) for step in self.steps]
        if all(isinstance(offset, int) for offset in offsets):
            stride = offsets[1] - offsets[0] if len(offsets) > 1 else 0
            if all(offset == offsets[0] + stride * i for i, offset in enumerate(offsets)):
                return lambda step: offsets[0] + step * stride
        table = stack("int64", len(offsets))
        for at, offset in enumerate(offsets):
            T.buffer_store(table, whole_index(offset), [at])
        return lambda step: table[step]

    # Loops over blocks ------------------------------------------------------------------------------------------------

    def _channels_outside(self, group: Expr) -> None:
        for part in self.column_parts:
            with each(part) as vector:
                if self.ahead is not None:
                    T.buffer_store(self.ahead, whole_index(self._stream(group, vector + part.size)), [0])
                self._outer((), partial(self._row_blocks, part.size, vector, group))

    def _row_blocks(self, tj: int, vector: Expr, group: Expr, outer: tuple[Expr, ...]) -> None:
        for rows in self.row_parts:
            place = _Place(0, rows.size, vector, tj, outer, group)
            self._inner(rows, partial(self._block, place, "row_tile"))

    def _rows_outside(self, group: Expr) -> None:
        self._outer((), partial(self._column_blocks, group))

    def _column_blocks(self, group: Expr, outer: tuple[Expr, ...]) -> None:
        for rows in self.row_parts:
            with each(rows) as tile:
                for part in self.column_parts:
                    place = _Place(tile, rows.size, 0, part.size, outer, group)
                    self._inner(part, partial(self._block, place, "vector"))

    def _outer(self, index: tuple[Expr, ...], then: Callable[[tuple[Expr, ...]], None]) -> None:
        if len(index) == len(self.rows.outer):
            then(index)
            return
        with loop(self.rows.outer[len(index)].extent) as i:
            self._outer((*index, i), then)

    def _inner(self, segment: Segment, then: Callable[[Expr, _Piece], None]) -> None:
        """The blocks of the loop whose operand streams; with `k_block`, some at a time for each block of k."""
        total = len(self.steps)
        if not self.blocked or segment.when is not None or (isinstance(segment.count, int) and segment.count == 1):
            with each(segment) as start:
                then(start, _Piece(0, total, True, True, 0))
            return
        size = self.schedule.k_block
        blocks = -(-total // size)
        companies = simplify(T.truncdiv(whole_index(segment.count) + (PARTIAL_BLOCKS - 1), T.int64(PARTIAL_BLOCKS)))
        with loop(companies) as company, T.serial(T.int64(0), T.int64(blocks)) as q:
            begin = let(q * size)
            count = size if total % size == 0 else let(T.min(T.int64(size), total - begin))
            left = T.min(whole_index(PARTIAL_BLOCKS), segment.count - company * PARTIAL_BLOCKS)
            with T.serial(T.int64(0), left) as slot:
                start = simplify((company * PARTIAL_BLOCKS + slot) * segment.size + segment.start)
                then(start, _Piece(begin, count, q == T.int64(0), q == T.int64(blocks - 1), slot))

    # One block --------------------------------------------------------------------------------------------------------

    def _block(self, around: _Place, inner: str, at: Expr, piece: _Piece) -> None:
        """The block whose place is `around` except that its `inner` coordinate is `at`."""
        problem, place = self.problem, replace(around, **{inner: at})
        starts = []
        for i in range(place.ti):
            start = (place.row_tile + i) * self.height
            if not self.exact:
                start = T.min(whole_index(simplify(start)), whole_index(self.extent - self.height))
            starts.append(let(whole_index(simplify(start))))
        base = problem.a_offset + place.group * problem.a_group_stride
        base = base + sum(i * axis.a_stride for i, axis in zip(place.outer, self.rows.outer, strict=True))
        a = [let(whole_index(simplify(base + start * self.rows.a_stride))) for start in starts]
        w = [let(whole_index(self._stream(place.group, place.vector + j))) for j in range(place.tj)]
        sums = {
            (i, j): let(whole_index(simplify(
                piece.slot * self.scratch_block + ((starts[i] - starts[0]) * self.tj + j) * LANES
            )))
            for i in range(place.ti)
            for j in range(place.tj)
        }  # fmt: skip
        self._begin(place, piece, sums)
        self._reduce(place, piece, a, w)
        for (i, j), where in sums.items():
            self.unit.emit(TILESTORED, i * place.tj + j, Memory(self.scratch, "int32", where), self._scratch_stride())
        if piece.last is True:
            self._finish(place, piece, starts)
        else:
            with T.If(piece.last), T.Then():
                self._finish(place, piece, starts)

    def _stream(self, group: Expr, vector: Expr) -> Expr:
        """Where the packed weights of 16 channels begin."""
        return simplify((group * self.vectors + vector) * (len(self.steps) * self.width * LANES))

    def _scratch_stride(self) -> Expr:
        return T.int64(self.tj * LANES * 4)

    def _begin(self, place: _Place, piece: _Piece, sums: dict[tuple[int, int], Expr]) -> None:
        if piece.first is True:
            self._start_values(place)
            return
        with T.If(piece.first):
            with T.Then():
                self._start_values(place)
            with T.Else():
                for (i, j), at in sums.items():
                    scratch = Memory(self.scratch, "int32", at)
                    self.unit.emit(TILELOADD, i * place.tj + j, scratch, self._scratch_stride())

    def _start_values(self, place: _Place) -> None:
        """Zero, or one row of start values for all rows: a load with stride zero. A ragged vector adds them at last."""
        for i in range(place.ti):
            for j in range(place.tj):
                if self.init is None or self.ragged:
                    self.unit.emit(TILEZERO, i * place.tj + j)
                    continue
                at = simplify(place.group * self.n + (place.vector + j) * LANES)
                self.unit.emit(TILELOADD, i * place.tj + j, Memory(self.init.buffer, "int32", at), T.int64(0))

    def _reduce(self, place: _Place, piece: _Piece, a: list[Expr], w: list[Expr]) -> None:
        size = self.schedule.k_block if self.blocked else len(self.steps)
        # Where k is cut, its last block may be the shortest; the waiting rows must be out by its end, too.
        shortest = len(self.steps) % size or size
        if not self.blocked or piece.first is True:
            shortest = len(self.steps)
        rows = -(-self.ti * ROWS // shortest)
        with loop(piece.count) as index:
            step = simplify(piece.begin + index)
            self._multiply(place, step, a, w)
            if self.ahead is not None:
                self._prefetch()
            begin = let(self.pending[_Pending.NEXT])
            end = let(T.min(begin + rows, self.pending[_Pending.END]))
            self._store_rows(begin, end)
            self.pending[_Pending.NEXT] = end

    def _multiply(self, place: _Place, step: Expr, a: list[Expr], w: list[Expr]) -> None:
        """One step of k: all loads first where the tiles suffice, else one operand's tiles take turns."""
        hot_a = self.schedule.hot == "a"
        offset = let(whole_index(self.offset_of(step)))

        def load_a(i: int) -> None:
            memory = Memory(self.a.buffer, "uint8", a[i] + offset)
            stride = T.int64(1) * self.rows.a_stride
            self._load(hot_a, _A_TILES[i % 2], memory, stride)

        def load_w(j: int) -> None:
            memory = Memory(self.w.buffer, "int8", w[j] + step * (self.width * LANES))
            self._load(not hot_a, _W_TILES[j % 2], memory, T.int64(ROW_BYTES))

        def dot(i: int, j: int) -> None:
            self.unit.emit(TDPBUSD, i * place.tj + j, _A_TILES[i % 2], _W_TILES[j % 2])

        pairs = [(i, j) for i in range(place.ti) for j in range(place.tj)]
        if place.ti <= 2 and place.tj <= 2:
            for i in range(max(place.ti, place.tj)):
                for side, count in ((load_a, place.ti), (load_w, place.tj)):
                    if i < count:
                        side(i)
        elif place.tj == 1:
            load_w(0)
        else:
            load_a(0)
        for i, j in pairs:
            if place.ti > 2:
                load_a(i)
            if place.tj > 2:
                load_w(j)
            dot(i, j)

    def _load(self, hot: bool, tile: int, memory: Memory, stride: Expr) -> None:
        instruction: Instruction = TILELOADD if hot else TILELOADDT1
        self.unit.emit(instruction, tile, memory, stride)

    def _prefetches(self) -> bool:
        return self.schedule.hot == "w" and self.schedule.prefetch > 0

    def _prefetch(self) -> None:
        """Bring some lines of the next panel of weights into L2; they may lie behind the last one."""
        ahead, lines = self.ahead, self.schedule.prefetch
        assert ahead is not None
        at = let(ahead[0])
        for line in range(lines):
            where = T.address_of(self.w.buffer[at + line * _LINE])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", where, T.int32(0), T.int32(2), T.int32(1)))
        T.buffer_store(ahead, at + lines * _LINE, [0])

    # Storing ----------------------------------------------------------------------------------------------------------

    def _finish(self, place: _Place, piece: _Piece, starts: list[Expr]) -> None:
        """Describe the block that now lies in scratch; its rows are counted from that of its first tile."""
        pending = self.pending
        # Rows that the tile before this block has made already are not stored twice.
        done = 0 if self.exact else place.row_tile * self.height - starts[0]
        pending[_Pending.NEXT] = simplify(done)
        pending[_Pending.END] = simplify(starts[-1] + self.height - starts[0])
        pending[_Pending.ROW] = starts[0]
        pending[_Pending.AT] = simplify(piece.slot * self.scratch_block)
        pending[_Pending.CHANNEL] = simplify(place.group * self.n + place.vector * LANES)
        pending[_Pending.LEFT] = simplify(self.n - place.vector * LANES)
        pending[_Pending.VECTORS] = place.tj
        for axis, index in enumerate(place.outer):
            pending[_Pending.OUTER + axis] = index

    def _store_rows(self, begin: Expr, end: Expr) -> None:
        pending, rows = self.pending, self.rows
        with T.serial(begin, end) as u:
            row = let(pending[_Pending.ROW] + u)
            outer = tuple(pending[_Pending.OUTER + axis] for axis in range(len(rows.outer)))
            if not rows.line:
                self._store_row(u, outer, row)
                return
            last = let(T.truncdiv(row, T.int64(rows.line)))
            inside = let(row - last * rows.line)
            with T.If(inside < T.int64(rows.kept)), T.Then():
                self._store_row(u, (*outer, last), inside)

    def _store_row(self, u: Expr, outer: tuple[Expr, ...], row: Expr) -> None:
        narrowest = min(part.size for part in self.column_parts)
        for j in range(self.column_parts[0].size):
            if j < narrowest:
                self._store_vector(u, outer, row, j)
            else:
                with T.If(self.pending[_Pending.VECTORS] > T.int64(j)), T.Then():
                    self._store_vector(u, outer, row, j)

    def _store_vector(self, u: Expr, outer: tuple[Expr, ...], row: Expr, j: int) -> None:
        at = self.pending[_Pending.AT] + (u * self.tj + j) * LANES
        channel = let(self.pending[_Pending.CHANNEL] + j * LANES)
        value: Any = let(self.scratch[T.ramp(at, 1, LANES)])
        mask = None
        if self.ragged and any(part.size == j + 1 for part in self.column_parts):  # only a last vector is ragged
            mask = tail_mask(self.pending[_Pending.LEFT] - j * LANES, LANES)
        if self.ragged and self.init is not None:
            value = let(value + load(self.init.buffer, "int32", channel, LANES, mask))
        self.store(outer, row, channel, value, LANES, mask)
