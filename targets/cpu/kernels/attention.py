"""The code of attention: softmax(q k) v without the scores in memory.

For each place of the batch dimensions (batch and head) and each block of queries: for each block of keys a strip of
scores, the block's queries by its keys, is made, scaled and masked as it is stored; each of its rows becomes
exponentials of the difference from the largest score of the row so far; they are multiplied with v, a part of the keys
at a time, so that a part stays in L1 while the rows pass by. Where a later block of keys has a larger score, what was
summed before is scaled down by the exponential of the difference (T. Dao et al., FlashAttention, 2022); in the end each
row is divided by its sum. Scratch is on the stack, and of a size that the numbers of queries and keys do not change.

Both products are the packed GEMM's. k and v are packed as it reads weights, where they do not lie well: k once for each
place if it all fits, else block by block.

A row that has no score but -inf is NaN, as one that has a NaN: its sum is zero.

Error: that of softmax (`normalise`) and of both products, and 4 e relative for each block of keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from dlc.passes.partition.attention import TRANSPOSE
from dlc.passes.partition.hidden import Step
from dlc.targets.cpu.kernels import contract, vecmath
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.amx import aligned_stack
from dlc.targets.cpu.kernels.anchored import Accumulator, Piece, across, masked, sweep, tree
from dlc.targets.cpu.kernels.attention_cost import strip_stride, whole_lines
from dlc.targets.cpu.kernels.attention_packing import Packing
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, let, positions, splat
from dlc.targets.cpu.kernels.contract import Schedule
from dlc.targets.cpu.kernels.contract_loops import cut, each, loop, shared_loop, whole_index
from dlc.targets.layout import Layout, simplify

if TYPE_CHECKING:
    from dlc.targets.cpu.attention_region import AttentionRegion

_UNROLL = 4  # vectors of a row that are computed together
_ZERO_POWER = -105.0  # e to the power of less is zero in float32, for us and for the reference


def _scratch_operand(name: str, count: int) -> Operand:
    return Operand(name, "float32", Layout.dense((count,)), aligned_stack("float32", count))


def _blocks_of(extent: Expr, size: int) -> Expr:
    """How many blocks of `size` an extent has."""
    return -(-extent // size) if isinstance(extent, int) else let(T.truncdiv(extent + (size - 1), T.int64(size)))


class Emitter:
    """The code of one kernel."""

    def __init__(
        self, region: AttentionRegion, schedule: Mapping[str, Any], named: Mapping[str, Operand], y: Operand
    ) -> None:
        self.region, self.named, self.y, self.isa, self.lanes = region, named, y, region.isa, region.lanes
        self.body, self.sizes, self.values = region.body, region.sizes, region.values
        self.packing = Packing(region, named)
        self.rows, self.keys, self.part = (int(schedule[n]) for n in ("rows", "block", "part"))
        self.ahead = schedule["ahead"]
        chosen = {key: dict(schedule[key]) for key in ("keys", "values")}
        self.packs = {key: values.pop("packed") for key, values in chosen.items()}
        self.tiles = {key: Schedule.from_json(values) for key, values in chosen.items()}
        sizes, rows = self.sizes, self.rows
        # All keys in one block need no running maxima, and in one part no running sums.
        self.alone = isinstance(sizes.keys, int) and sizes.keys <= self.keys
        if self.packs["keys"]:
            packed = whole_lines(sizes.keys if self.ahead else self.keys)
            self.panel = _scratch_operand("panel", packed * sizes.depth)
        if region.direct(region.q) is None:
            self.queries = _scratch_operand("queries", rows * sizes.depth_stride())
        self.stride = strip_stride(self.keys)
        self.strip = _scratch_operand("strip", rows * self.stride)
        if self.packs["values"]:
            self.packed_v = _scratch_operand("packed", self.part * sizes.width_stride())
        several = not self.alone or self.part < self.keys
        self.sums = _scratch_operand("sums", rows * sizes.width_stride()) if several else None
        self.peaks, self.totals = (_scratch_operand(name, rows * self.lanes) for name in ("peaks", "totals"))
        self.scales, self.nearest = _scratch_operand("scales", rows), _scratch_operand("nearest", 1)

    def run(self, share: Share | None) -> None:
        """Emit everything. The last block begins earlier where the queries are no multiple of a block."""
        sizes, known = self.sizes, isinstance(self.sizes.queries, int)
        count = _blocks_of(sizes.queries, self.rows)
        extents = [*sizes.batch, count]
        mine = Share.best(extents) if share is not None else None

        def part(axis: int) -> Share | None:
            return share if axis == mine else None

        with ExitStack() as frames:
            place = tuple(frames.enter_context(shared_loop(n, part(i))) for i, n in enumerate(sizes.batch))
            if self.packs["keys"] and self.ahead:
                self._each_block(sizes.keys, self.keys, partial(self._pack_keys, place))
            with shared_loop(count, part(len(sizes.batch))) as block:
                begin, rows = simplify(block * self.rows), self.rows
                if known and sizes.queries % rows:
                    begin = let(T.min(whole_index(begin), T.int64(sizes.queries - rows)))
                elif not known:
                    begin = let(whole_index(begin))
                    rows = let(T.min(T.int64(rows), sizes.queries - begin))
                self.block(place, begin, rows)

    @staticmethod
    def _each_block(extent: Expr, size: int, visit: Any, seen: tuple[Expr, Expr] | None = None) -> None:
        """Call `visit(first, count)` for blocks of an extent; the last one is smaller where it is no multiple.

        `seen`: the numbers of the first block that is wanted and of the first behind it that is not; None for all.
        """
        if isinstance(extent, int):
            for segment in cut(extent, size):
                part = None
                if seen is not None:
                    before = whole_index(segment.start // size)
                    low, high = (let(T.min(T.max(n - before, T.int64(0)), T.int64(segment.count))) for n in seen)
                    part = low, high
                with each(replace(segment, part=part)) as first:
                    visit(first, segment.size)
            return
        with T.serial(*(seen or (T.int64(0), _blocks_of(extent, size)))) as number:
            first = let(number * size)
            visit(first, let(T.min(T.int64(size), extent - first)))

    def _seen(self, begin: Expr, rows: Expr) -> tuple[Expr, Expr] | None:
        """The blocks of keys that some of `rows` queries from `begin` on see, as `_each_block` has it."""
        first, last, _ = self.region.band
        if self.alone or (first is None and last is None):
            return None
        count, size = whole_index(_blocks_of(self.sizes.keys, self.keys)), T.int64(self.keys)

        def within(key: Expr) -> Expr:
            return T.max(whole_index(simplify(key)), T.int64(0))

        low = T.int64(0) if first is None else let(T.truncdiv(within(begin + first), size))
        if last is None:
            return low, count
        behind = within(begin + rows + last)
        return low, let(T.max(low, T.min(count, T.truncdiv(behind + (self.keys - 1), size))))

    def _each_seen(self, begin: Expr, rows: Expr, visit: Any) -> None:
        """Call `visit(first, count)` for the blocks of keys that count for `rows` queries from `begin` on.

        Those that are hidden count where the number that hides them is not far below the largest score of each row:
        then they come in a second and a third round, those before the others and those behind.
        """
        keys, number, seen = self.sizes.keys, self.region.band.number, self._seen(begin, rows)
        if seen is None or number == -inf:
            self._each_block(keys, self.keys, visit, seen)
            return
        nearest, (low, high), count = self.nearest.buffer, seen, whole_index(_blocks_of(keys, self.keys))
        T.buffer_store(nearest, T.float32(0), [0])
        with T.serial(T.int64(0), T.int64(3)) as rnd:
            begins = let(T.Select(rnd == T.int64(0), low, T.Select(rnd == T.int64(1), T.int64(0), high)))
            ends = let(T.Select(rnd == T.int64(0), high, T.Select(rnd == T.int64(1), low, count)))
            counts = T.Or(rnd == T.int64(0), nearest[0] > T.float32(_ZERO_POWER))
            self._each_block(keys, self.keys, visit, (begins, let(T.Select(counts, ends, begins))))
            with T.If(rnd == T.int64(0)), T.Then():
                T.buffer_store(nearest, T.float32(-inf), [0])

                def compare(row: Expr) -> None:
                    below = let(T.float32(number) - let(self.peaks.buffer[simplify(row * self.lanes)]))
                    T.buffer_store(nearest, v.larger(below, nearest[0]), [0])

                self._each_row(rows, compare)

    def _pack_keys(self, place: Sequence[Expr], first: Expr, count: Expr) -> None:
        """Pack the block of `count` keys from key `first` on at a place of the batch."""
        self.packing.keys(self.panel, self._packed_first(first), self.tiles["keys"].nr, place, (first, count))

    def _packed_first(self, first: Expr) -> Expr:
        """Where the block of keys that begins with key `first` lies in the panel."""
        return simplify(first * self.sizes.depth) if self.ahead else 0

    # --- one block of queries ---

    def block(self, place: tuple[Expr, ...], begin: Expr, rows: Expr) -> None:
        """The `rows` queries from `begin` on."""
        queries = self._queries(place, begin, rows)
        if not self.alone:
            self._each_row(rows, lambda row: self._set_running(row, -inf, 0.0))
        if self.sums is not None:
            zero = splat(T.float32(0), self.lanes)
            self._each_sum(rows, lambda row, piece, at: T.buffer_store(self.sums.buffer, zero, [at]))

        def visit(first: Expr, count: Expr) -> None:
            self._scores(place, (begin, rows), (first, count), queries)
            self._each_row(rows, lambda row: self._powers(row, count))
            if self.alone:  # the store of the product needs them
                self._each_row(rows, lambda row: self._scale(place, begin, row))
            self._values(place, (begin, rows), (first, count))

        self._each_seen(begin, rows, visit)
        if not self.alone:
            self._each_row(rows, lambda row: self._scale(place, begin, row))
        if self.sums is not None:
            self._each_sum(
                rows, lambda row, piece, at: self._finish(place, begin, row, piece.base, self._sum(at), piece.mask)
            )

    def _each_row(self, rows: Expr, visit: Any) -> None:
        with loop(rows) as row:
            visit(row)

    def _each_sum(self, rows: Expr, visit: Any) -> None:
        """Call `visit(row, piece, position)` for each vector of the running sums."""
        with loop(rows) as row:
            self._sums_of(row, partial(visit, row))

    def _sums_of(self, row: Expr, visit: Any) -> None:
        def several(pieces: list[Piece]) -> None:
            for piece in pieces:
                visit(piece, positions(simplify(row * self.sizes.width_stride() + piece.base), self.lanes))

        sweep(self.sizes.width, self.lanes, _UNROLL, several)

    def _sum(self, at: Expr) -> Expr:
        assert self.sums is not None
        return let(self.sums.buffer[at])

    def _set_sum(self, at: Expr, value: Expr) -> None:
        assert self.sums is not None
        T.buffer_store(self.sums.buffer, value, [at])

    def _queries(self, place: Sequence[Expr], begin: Expr, rows: Expr) -> tuple[Operand, Expr, Expr]:
        """The block's queries: their memory, the step from one to the next, the position of the first."""
        if self.region.direct(self.region.q) is not None:
            return self._lying(self.region.q, place, begin)
        with loop(rows) as row:

            def visit(pieces: list[Piece]) -> None:
                for piece in pieces:
                    index = self.packing.index(self.region.q, place, (simplify(begin + row), piece.base))
                    value = self.packing.evaluator().value(self.region.q, index, self.lanes, piece.mask)
                    at = simplify(row * self.sizes.depth_stride() + piece.base)
                    T.buffer_store(self.queries.buffer, value, [positions(at, self.lanes)])

            sweep(self.sizes.depth, self.lanes, 4, visit)
        return self.queries, self.sizes.depth_stride(), 0

    def _scores(
        self, place: tuple[Expr, ...], queries: tuple[Expr, Expr], keys: tuple[Expr, Expr],
        operand: tuple[Operand, Expr, Expr],
    ) -> None:  # fmt: skip
        """Make the strip of some (first, count) queries and keys."""
        made, (begin, rows), (first, count), (q, q_step, q_first) = (
            self.region.softmax.inputs[0],
            queries,
            keys,
            operand,
        )

        def store(_: Sequence[Expr], row: Expr, key: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            evaluator = self.packing.evaluator()
            evaluator.bind(self.region.scores.output.name, acc)
            index = tuple(whole_index(simplify(i)) for i in (*place, begin + row, first + key))
            for name, step in self.region.steps.items():
                evaluator.bind(name, self._step(step, self.values[name].dtype, index, lanes))
            value = evaluator.value(made, index, lanes, mask)
            # Lanes behind the last key lie in the strip's own margin.
            T.buffer_store(self.strip.buffer, value, [positions(simplify(row * self.stride + key), lanes)])

        k, step, start = self._keys(place, first, count)
        problem = self.sizes.of_scores(rows, count, q_step, q_first, step, start)
        contract.emit(problem, self.tiles["keys"], self.isa, q, k, None, store)

    def _step(self, step: Step, dtype: str, index: Sequence[Expr], lanes: int) -> Expr:
        """A vector of a mask that is two numbers."""
        row, key = index[-2:]
        behind = T.ramp(T.int32(0), 1, lanes) > splat(T.cast(row + step.last - key, "int32"), lanes)
        after, before = (
            v.constant(n if dtype != "bool" else bool(n), dtype, lanes) for n in (step.behind, step.before)
        )
        return let(v.select(let(behind), after, before))

    def _keys(self, place: Sequence[Expr], first: Expr, count: Expr) -> tuple[Operand, Expr, Expr]:
        """`count` keys from key `first` on, packed or not: their memory, the step of its rows, where they begin."""
        if not self.packs["keys"]:
            return self._lying(self.region.k, place, 0, first)
        if not self.ahead:
            self._pack_keys(place, first, count)
        return self.panel, None, self._packed_first(first)

    def _lying(self, name: str, place: Sequence[Expr], row: Expr, column: Expr = 0) -> tuple[Operand, Expr, Expr]:
        """An operand that is read where it lies: its memory, the step of its rows, the position of an element."""
        found = self.region.direct(name)
        assert found is not None
        source, layout = found
        index = self.packing.index(name, place, (row, column))
        return self.named[source], layout.strides[-2], let(whole_index(layout.flat(index)))

    # --- softmax ---

    def _running(self, operand: Operand, row: Expr) -> tuple[Any, Expr]:
        return operand.buffer, positions(simplify(row * self.lanes), self.lanes)

    def _set_running(self, row: Expr, peak: Expr, total: Expr) -> None:
        for operand, value in ((self.peaks, peak), (self.totals, total)):
            buffer, at = self._running(operand, row)
            vector = splat(T.float32(value), self.lanes) if isinstance(value, float) else value
            T.buffer_store(buffer, vector, [at])

    def _powers(self, row: Expr, count: Expr) -> None:
        """Make exponentials of a row of the strip, and bring its maximum and sum (a part in each lane) up to date."""
        low = v.constant(-inf, "float32", self.lanes)
        peak = splat(across(self._fold(row, count, low, v.larger), "float32", self.lanes, v.larger), self.lanes)
        if not self.alone:
            peaks, at = self._running(self.peaks, row)
            before = let(peaks[at])
            peak = let(v.larger(peak, before))
        # A row without any score yet must not become NaN by the difference of infinities.
        zero = v.constant(0, "float32", self.lanes)
        base = let(v.select(v.equal(peak, low), zero, peak))
        total = self._fold(
            row, count, zero, lambda a, b: a + b, lambda x: vecmath.unary("exp", let(x - base), self.isa)
        )
        if not self.alone:
            totals, at = self._running(self.totals, row)
            factor = let(vecmath.unary("exp", let(before - base), self.isa))
            total = let(totals[at] * factor + total)

            def correct(_: Piece, at: Expr) -> None:
                self._set_sum(at, self._sum(at) * factor)

            self._sums_of(row, correct)
        self._set_running(row, peak, total)

    def _fold(self, row: Expr, count: Expr, start: Expr, combine: Any, change: Any = None) -> Expr:
        """Combine a row of the strip, each vector changed, over vectors; what is changed is stored in its place."""
        partial_sums = [Accumulator("float32", self.lanes, start) for _ in range(_UNROLL)]

        def visit(pieces: list[Piece]) -> None:
            for piece, total in zip(pieces, partial_sums, strict=False):
                at = positions(simplify(row * self.stride + piece.base), self.lanes)
                x = let(self.strip.buffer[at])
                if change is not None:
                    x = let(change(x))
                    T.buffer_store(self.strip.buffer, x, [at])
                total.set(combine(masked(piece, x, start), total.get()))

        sweep(count, self.lanes, _UNROLL, visit)
        return let(tree([p.get() for p in partial_sums], combine))

    def _scale(self, place: tuple[Expr, ...], begin: Expr, row: Expr) -> None:
        """What the sums of a row are multiplied with: one over its total, or what the nodes behind softmax make of it.

        These give a row as it is, or zero.
        """
        totals, at = self._running(self.totals, row)
        total = let(across(let(totals[at]), "float32", self.lanes, lambda a, b: a + b))
        missing, one = (v.constant(value, "float32") for value in (nan, 1.0))
        inverse = let(v.select(v.equal(total, v.constant(0, "float32")), missing, one / total))
        evaluator = self.packing.evaluator()
        evaluator.bind(self.region.softmax.output.name, inverse)
        index = tuple(whole_index(simplify(i)) for i in (*place, begin + row, 0))
        T.buffer_store(self.scales.buffer, evaluator.value(self.region.weights, index), [row])

    # --- the product with v ---

    def _values(self, place: tuple[Expr, ...], queries: tuple[Expr, Expr], keys: tuple[Expr, Expr]) -> None:
        """Multiply the strip with v, a part of the keys at a time."""
        (begin, rows), (first, count) = queries, keys

        def finish(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            self._finish(place, begin, row, channel, acc, mask)

        def add(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            at = positions(simplify(row * self.sizes.width_stride() + channel), lanes)
            self._set_sum(at, self._sum(at) + acc)

        def visit(key: Expr, size: Expr) -> None:
            if self.packs["values"]:
                values, step, start = self.packed_v, None, 0
                self.packing.values(self.packed_v, self.tiles["values"].nr, place, (simplify(first + key), size))
            else:
                values, step, start = self._lying(self.region.v, place, simplify(first + key))
            problem = self.sizes.of_values(rows, size, self.stride, key, step, start)
            contract.emit(
                problem, self.tiles["values"], self.isa, self.strip, values, None, finish if self.sums is None else add
            )

        self._each_block(count, self.part, visit)

    def _finish(self, place: tuple[Expr, ...], begin: Expr, row: Expr, channel: Expr, acc: Expr, mask: Expr) -> None:
        """Divide a vector by its row's total, compute what follows the product with v, and store it."""
        index = tuple(whole_index(simplify(i)) for i in (*place, begin + row, channel))
        scale = splat(let(self.scales.buffer[row]), self.lanes)
        result = let(acc * scale)
        if self.region.weights != self.region.softmax.output.name:  # a row made zero is zero, also one of NaN
            zero = v.constant(0, "float32", self.lanes)
            result = let(v.select(v.equal(scale, zero), zero, result))
        evaluator = self.packing.evaluator()
        evaluator.bind(self.region.mixed.output.name, result)
        out = self.body.outputs[0]
        last = self.region.producers[out]
        target = tuple(index[a % len(index)] for a in last.attrs["axes"]) if last.op == TRANSPOSE else index
        made = last.inputs[0] if last.op == TRANSPOSE else out
        self.y.store(target, evaluator.value(made, index, self.lanes, mask), self.lanes, mask)
