"""`dlc.trie_step`: binary searches in lockstep, as many as vectors have lanes, so that their reads overlap.

A search is a chain of reads that each wait for the one before, and most of them miss the caches. Those of other lanes,
and of a second vector, do not wait: the processor has them all on the way at once. The lanes go on until the last of
them has found its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.ir.ops import trie_step
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Accumulator, Piece, Region, emitter, sweep, why_not
from dlc.targets.cpu.kernels.builder import Expr, Operand, hold, let, splat
from dlc.targets.cpu.kernels.contract_loops import whole_index
from dlc.targets.cpu.kernels.evaluate import At, Evaluator

_VECTORS = 2


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, [trie_step.NAME])
    if reason is None and len(body.outputs) == 1 and body.outputs[0] != body.nodes[-1].output.name:
        return "several results"
    return reason


def gather(table: Operand, place: Expr, isa: Isa) -> Expr | None:
    """The elements of an int32 table at int32 positions, by one instruction; None where the level has none."""
    lanes, begin = v.lanes_of(place), T.address_of(table.buffer[table.layout.offset])
    if isa.vector_bits == 512 and lanes == 16:
        every = T.broadcast(T.bool(True), lanes)
        name = "llvm.x86.avx512.mask.gather.dpi.512"
        return v.intrinsic(name, v.like(0, place), begin, place, every, T.int32(4))
    if "avx2" in isa.requires and lanes == 8:
        return v.intrinsic("llvm.x86.avx2.gather.d.d.256", v.like(0, place), begin, place, v.like(-1, place), T.int8(4))
    return None


class _Search:
    """The searches of one vector."""

    def __init__(self, region: Region, piece: Piece, lanes: int) -> None:
        parent, word, self.offsets, self.words = region.anchor.inputs
        self.lanes, self.values, self.isa = lanes, region.body.values(), region.isa
        self.evaluator = Evaluator(region.body, region.inputs, region.isa)
        self.word = region.value(word, (piece.base,), lanes, piece.mask)
        at = region.value(parent, (piece.base,), lanes, piece.mask)
        base = self._taken(self.offsets, at)
        size = let(self._taken(self.offsets, hold(at + v.like(1, at))) - base)
        self.some = hold(size > v.like(0, size))
        self.base, self.size = Accumulator("int32", lanes, base), Accumulator("int32", lanes, size)

    def _taken(self, table: str, position: Expr) -> Expr:
        """The table's numbers at int32 positions; negative ones count from the end, those outside are pulled in."""
        extent = self.values[table].shape[0]
        last = hold(splat(T.cast(whole_index(extent - 1), "int32"), self.lanes))
        position = hold(position)
        wrapped = hold(v.select(position < v.like(0, position), position + last + v.like(1, last), position))
        place = hold(v.larger(v.like(0, position), v.smaller(wrapped, last)))
        operand = self.evaluator.operands.get(table)
        if operand is not None and operand.dtype == "int32" and operand.layout.is_dense:
            found = gather(operand, place, self.isa)
            if found is not None:
                return hold(found)
        found = self.evaluator.at(table, At((hold(v.convert(place, "int64")),), self.lanes, None, self.lanes > 1))
        return hold(v.convert(found, "int32"))

    def open(self) -> Expr:
        """Whether a lane has more than one place left."""
        size = self.size.get()
        return v.any_lane(size > v.like(1, size))

    def halve(self) -> None:
        """One step of all lanes."""
        base, size = hold(self.base.get()), hold(self.size.get())
        half = hold(T.truncdiv(size, v.like(2, size)))
        middle = hold(base + half)
        self.base.set(v.select(self._taken(self.words, middle) <= self.word, middle, base))
        self.size.set(size - half)

    def result(self) -> Expr:
        """The numbers found."""
        base = hold(self.base.get())
        found = hold(v.both(v.equal(self._taken(self.words, base), self.word), self.some))
        none = T.cast(whole_index(self.values[self.words].shape[0] - 1), "int32")
        return v.select(found, base, splat(none, self.lanes))


def _write(region: Region) -> None:
    (extent,), halvings = region.shape, int(region.anchor.attrs["halvings"])
    lanes = region.isa.lanes()

    def visit(pieces: Sequence[Piece]) -> None:
        searches = [_Search(region, piece, lanes) for piece in pieces]
        steps = Accumulator("int32", 1, T.int32(0))

        def open_() -> Expr:
            some = searches[0].open()
            for search in searches[1:]:
                some = T.Or(some, search.open())
            return v.convert(hold(T.And(some, steps.get() < T.int32(halvings))), "int32")

        going = Accumulator("int32", 1, open_())
        with T.While(going.get() != T.int32(0)):
            for search in searches:
                search.halve()
            steps.set(steps.get() + T.int32(1))
            going.set(open_())
        for piece, search in zip(pieces, searches, strict=True):
            region.finish((piece.base,), search.result(), lanes, piece.mask)

    sweep(extent, lanes, _VECTORS, visit)


emit = emitter(_write)
