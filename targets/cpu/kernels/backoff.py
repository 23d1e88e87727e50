"""`dlc.backoff_score`: a block of queries at a time, hashed and their rows prefetched before the first is read.

Nearly every row of slots that is read misses the caches. So all rows that a block of queries may need, which their
hashes tell alone, are on the way before the first query waits for one.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.ir.ops import backoff_score as op
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Accumulator, Region, across, emitter, why_not
from dlc.targets.cpu.kernels.builder import Expr, hold, let, stack
from dlc.targets.cpu.kernels.contract_loops import loop

_BLOCK = 32  # queries


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    return why_not(body, [op.NAME])


class _Scores:
    """The lookups of a region: `grams` are (first word, last word) of each n-gram and history that is looked up."""

    def __init__(self, region: Region) -> None:
        self.region, values = region, region.body.values()
        self.ngram, self.first, self.first_backoff, self.slots, self.log10, self.backoff = region.anchor.inputs
        self.order = int(values[self.ngram].shape[1])
        self.last_word, self.last_place = (int(values[n].shape[0]) - 1 for n in (self.first, self.log10))
        self.probes = int(region.anchor.attrs["probes"])
        self.rows = int(values[self.slots].shape[0]) - self.probes + 1
        n = self.order
        self.grams = [(j, n - 1) for j in range(n - 2, -1, -1)] + [(j, n - 2) for j in range(n - 3, -1, -1)]
        self.homes, self.marks = (stack("int64", max(len(self.grams), 1) * _BLOCK) for _ in range(2))

    def word(self, query: Expr, j: int) -> Expr:
        """Word j of a query, pulled in."""
        found = hold(self.region.value(self.ngram, (query, j), 1))
        return hold(v.larger(T.int64(0), v.smaller(found, T.int64(self.last_word))))

    def prepare(self, query: Expr, at: Expr) -> None:
        """Hash a query's n-grams, keep that at position `at` of the block, and send for their rows."""
        words = [self.word(query, j) for j in range(self.order)]
        for end in dict.fromkeys(end for _, end in self.grams):
            values = [T.int64(0), T.int64(0)]
            for j in range(end, -1, -1):
                values = [
                    hold(T.truncmod((value + words[j] + T.int64(1)) * T.int64(factor), T.int64(prime)))
                    for value, (prime, factor) in zip(values, op.HASHES, strict=True)
                ]
                if (j, end) in self.grams:
                    self._send(self.grams.index((j, end)), at, values)

    def _send(self, number: int, at: Expr, values: list[Expr]) -> None:
        home = hold(T.shift_right(values[0] * T.int64(self.rows), T.int64(31)))
        place = at + T.int64(number * _BLOCK)
        T.buffer_store(self.homes, home, [place])
        T.buffer_store(self.marks, T.shift_left(values[1], T.int64(32)), [place])
        operand = self.region.inputs.get(self.slots)
        if operand is not None and operand.layout.is_dense:
            where = T.address_of(operand.buffer[operand.layout.offset + home * T.int64(op.ROW)])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", where, T.int32(0), T.int32(3), T.int32(1)))

    def find(self, first: int, end: int, at: Expr) -> Expr:
        """The place of an n-gram of the query at position `at`; -1 where it is not listed."""
        place = at + T.int64(self.grams.index((first, end)) * _BLOCK)
        home, low = hold(self.homes[place]), hold(self.marks[place])
        found, probe = Accumulator("int64", 1, T.int64(-1)), Accumulator("int64", 1, T.int64(0))
        with T.While(probe.get() < T.int64(self.probes)):
            raw = hold(self.region.value(self.slots, (hold(home + probe.get()), 0), op.ROW))
            read = hold(v.larger(raw, v.like(-1, raw)))
            rest = hold(read - T.broadcast(low, op.ROW))
            fits = v.both(rest >= v.like(0, rest), rest < v.like(1 << 32, rest))
            found.set(across(hold(v.select(fits, rest, v.like(-1, rest))), "int64", op.ROW, v.larger))
            empty = v.any_lane(hold(read < v.like(0, read)))
            ended = hold(T.Or(found.get() >= T.int64(0), empty))
            probe.set(v.select(ended, T.int64(self.probes), probe.get() + T.int64(1)))
        return hold(found.get())

    def _of(self, table: str, place: Expr) -> Expr:
        inside = hold(v.larger(T.int64(0), v.smaller(place, T.int64(self.last_place))))
        return self.region.value(table, (inside,), 1)

    def score(self, query: Expr, at: Expr) -> Expr:
        """The result of the query at position `at` of the block."""
        n = self.order
        result = Accumulator("float32", 1, self.region.value(self.first, (self.word(query, n - 1),), 1))
        for k in range(2, n + 1):
            place = self.find(n - k, n - 1, at)
            with T.If(place >= T.int64(0)):
                with T.Then():
                    result.set(self._of(self.log10, place))
                with T.Else():
                    if k == 2:
                        result.set(self.region.value(self.first_backoff, (self.word(query, n - 2),), 1) + result.get())
                    else:
                        history = self.find(n - k, n - 2, at)
                        weight = hold(self._of(self.backoff, history))
                        result.set(v.select(history >= T.int64(0), weight, T.float32(0)) + result.get())
        return hold(result.get())


def _write(region: Region) -> None:
    (extent, _), scores = region.shape, _Scores(region)
    total = T.int64(extent) if isinstance(extent, int) else extent
    with loop(let(T.truncdiv(total + T.int64(_BLOCK - 1), T.int64(_BLOCK)))) as block:
        begin = let(block * T.int64(_BLOCK))
        size = let(T.min(T.int64(_BLOCK), total - begin))
        with T.serial(T.int64(0), size) as at:
            scores.prepare(begin + at, at)
        with T.serial(T.int64(0), size) as at:
            region.finish((begin + at,), scores.score(begin + at, at), 1)


emit = emitter(_write)
