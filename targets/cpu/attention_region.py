"""A region that is attention (`passes/partition/attention.py`): softmax(q k) v without the scores in memory.

For each place of the batch dimensions (batch and head) k is packed as the GEMM reads weights, once. Then, for each
block of queries, a strip of scores, the block's rows by all keys, is made, scaled and masked as it is stored, goes
through softmax where it lies, and is multiplied with v. The strip and the packed k are on the stack. Both products are
the packed GEMM's, and softmax is the row of the softmax kernel, so each sum is made in the same order as by three
kernels; only where v is taken in parts (of keys) are the sums of the parts added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.ir.graph import Graph, Node
from dlc.passes.partition.attention import TRANSPOSE, keeps_last, products
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract, contract_cost, normalise
from dlc.targets.cpu.kernels.amx import aligned_stack
from dlc.targets.cpu.kernels.anchored import Piece, Region, sweep
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, kernel, let, positions, splat, tail_mask
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule
from dlc.targets.cpu.kernels.contract_loops import cut, cut_channels, each, loop, shared_loop, whole_index
from dlc.targets.cpu.kernels.evaluate import Evaluator, is_one
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.kernels.transpose import interleave
from dlc.targets.layout import Layout, simplify

KIND = "attention"
_MOST_SCRATCH = 2 << 20  # bytes: they lie on the stack
_SHARED_MICROSECONDS = 10.0  # predicted time from which on a kernel is shared out
_LINE = 16  # float32 of a cache line
_PACK = 3  # instructions to load, compute and store one vector of k
_SOFTMAX = 30  # instructions for a vector of scores: three passes and an exponential


@dataclass(frozen=True)
class Sizes:
    """Extents of one attention, of which all are known: places of the batch, queries, keys, and what a key and a
    value have."""

    batch: tuple[int, ...]
    queries: int
    keys: int
    depth: int
    width: int

    @staticmethod
    def of(body: Graph) -> Sizes:
        """The sizes of a body without symbols."""
        scores, _, mixed = products(body)
        *batch, queries, keys = scores.output.shape
        return Sizes(tuple(batch), queries, keys, body.values()[scores.inputs[0]].shape[-1], mixed.output.shape[-1])

    def stride(self) -> int:
        """Elements from one row of scores to the next: whole vectors, and never a multiple of a page, whose lines would
        compete for one set of L1."""
        return -(-self.keys // _LINE) * _LINE + _LINE

    def depth_stride(self) -> int:
        """Elements from one row of the copied queries to the next."""
        return -(-self.depth // _LINE) * _LINE

    def panel(self) -> int:
        """Elements of the packed keys."""
        return -(-self.keys // _LINE) * _LINE * self.depth

    def of_scores(self, rows: int) -> Contraction:
        """A block of queries times the packed keys."""
        axis, run = Axis(rows, self.depth_stride()), Run(0, self.depth)
        return Contraction("float32", "float32", 0, (), axis, (run,), self.keys)

    def of_values(self, rows: int, keys: int, step: Expr, begin: Expr = 0, place: Expr = 0) -> Contraction:
        """A strip of scores, its keys from `begin` on, times as many rows of v, `step` apart, from `place` on."""
        axis, run = Axis(rows, self.stride()), Run(0, keys)
        return Contraction(
            "float32", "float32", begin, (), axis, (run,), self.width, w_k_stride=step, w_offset=place
        )  # fmt: skip


def unfit(body: Graph, isa: Isa, machine: Machine) -> str | None:
    """Why attention is better left to three kernels; None where one is faster."""
    values = body.values()
    scores, _, mixed = products(body)
    types = {values[name].dtype for name in (*scores.inputs, *mixed.inputs, scores.output.name, mixed.output.name)}
    if types != {"float32"}:
        return f"the kernel of attention is for float32, not {', '.join(sorted(types - {'float32'}))}"
    ranks = [len(values[name].shape) for name in (*scores.inputs, mixed.inputs[1])]
    if min(ranks) < 2 or not _broadcasts(mixed.output.shape[:-2], scores.output.shape[:-2]):
        return "the values have batch dimensions that the scores do not have"
    extents = [d for name in (*scores.inputs, *mixed.inputs) for d in values[name].shape]
    if not all(isinstance(d, int) for d in extents):
        return "the number of queries or keys is known only when running"
    sizes = Sizes.of(body)
    if 0 in (*sizes.batch, sizes.queries, sizes.keys, sizes.depth, sizes.width):
        return "it is empty"
    if _scratch(sizes, 1) > _MOST_SCRATCH:
        return f"the packed keys and a row of scores are {_scratch(sizes, 1)} bytes, more than fit the stack"
    return None


def _broadcasts(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(simplify(x - y) == 0 for x, y in zip(a, b, strict=True))


def _scratch(sizes: Sizes, rows: int) -> int:
    """Bytes on the stack."""
    return 4 * (sizes.panel() + rows * (sizes.stride() + sizes.depth_stride() + sizes.width))


def _blocks(sizes: Sizes, machine: Machine) -> int:
    """How many queries a block has: as many as leave strip and packed keys in L2."""
    rows = sizes.queries
    budget = max(3 * machine.l2 // 4, _scratch(sizes, 1))
    while rows > 1 and _scratch(sizes, rows) > budget:
        rows = -(-rows // 2)
    count = -(-sizes.queries // rows)
    return -(-sizes.queries // count)


class AttentionRegion:
    """One attention with its epilogue; the interface is that of `ContractionRegion`."""

    def __init__(
        self, body: Graph, layouts: Mapping[str, Layout], constants: Mapping[str, np.ndarray], isa: Isa
    ) -> None:
        self.body, self.layouts, self.constants, self.isa = body, dict(layouts), constants, isa
        self.values, self.producers, self.sizes = body.values(), body.producers(), Sizes.of(body)
        self.scores, self.softmax, self.mixed = products(body)
        self.q, self.k = self.scores.inputs
        self.weights, self.v = self.mixed.inputs
        self.init = None
        self.lanes = isa.lanes()

    # --- choices ---

    def choose(self, machine: Machine) -> dict[str, Any]:
        """How many queries a block has, in how many keys at a time v is read, and the tiles of both products."""
        sizes = self.sizes
        rows = _blocks(sizes, machine)
        best = contract.choose(sizes.of_scores(rows), self.isa, machine)
        scores = contract.predicted_seconds(sizes.of_scores(rows), best, self.isa, machine)
        mixed, chunk, tiles = min(self._chunks(rows, machine), key=lambda found: found[0])
        core = contract_cost.core_of(self.isa, machine)
        vectors = -(-sizes.keys // self.lanes)
        soft = contract_cost.seconds(rows * vectors * _SOFTMAX / core.vectors)
        pack = contract_cost.seconds(vectors * sizes.depth * (_PACK + log2(self.lanes)) / core.vectors)
        count = -(-sizes.queries // rows)
        seconds = prod(sizes.batch) * (pack + count * (scores + soft + mixed))
        return {
            "rows": rows, "chunk": chunk, "scores": best.to_json(), "mixed": tiles.to_json(),
            "predicted_us": round(seconds * 1e6, 3),
        }  # fmt: skip

    def _chunks(self, rows: int, machine: Machine) -> list[tuple[float, int, Schedule]]:
        """(predicted seconds, keys at a time, tiles) of ways to multiply a strip with v."""
        found, chunk = [], self.sizes.keys
        while True:
            problem = self.sizes.of_values(rows, chunk, self._step())
            tiles = contract.choose(problem, self.isa, machine)
            seconds = contract.predicted_seconds(problem, tiles, self.isa, machine)
            found.append((seconds * self.sizes.keys / chunk, chunk, tiles))
            if chunk <= _LINE:
                return found
            chunk = -(-chunk // 2)

    # --- operands ---

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name, constant or None)."""
        return [(value.name, self.constants.get(value.name)) for value in self.body.inputs]

    def _step(self) -> Expr:
        return self._v_layout().strides[-2]

    def _v_layout(self) -> Layout:
        """v (..., keys, width) as it lies in memory."""
        node = self.producers.get(self.v)
        return self.layouts[self.v] if node is None else _permuted(self.layouts[node.inputs[0]], node)

    # --- code ---

    def emit(
        self,
        name: str,
        schedule: Mapping[str, Any],
        operands: Sequence[tuple[str, np.ndarray | None]],
        dims: Sequence[Any],
        halo_fill: float | None,
    ) -> Any:
        """Generate the kernel over `operands` (what `operands` gave) and, last, the output."""
        out = self.body.outputs[0]
        params = [(f"x{i}", self.values[n].dtype, self.layouts[n]) for i, (n, _) in enumerate(operands)]
        params.append(("y", self.values[out].dtype, self.layouts[out]))
        long = schedule["predicted_us"] >= _SHARED_MICROSECONDS
        with kernel(name, params, dims, shared=long) as k:
            if halo_fill is not None:
                fill_halo(k.operands[-1], halo_fill)
            named = {label: operand for (label, _), operand in zip(operands, k.operands[:-1], strict=True)}
            _Emitter(self, schedule, named, k.operands[-1]).run(k.share)
        return k.func


def _permuted(layout: Layout, node: Node) -> Layout:
    """The layout of a transpose's result in the memory of its input."""
    axes = [axis % len(layout.shape) for axis in node.attrs["axes"]]
    shape, strides, halo = (tuple(of[a] for a in axes) for of in (layout.shape, layout.strides, layout.halo))
    return replace(layout, shape=shape, strides=strides, halo=halo)


def _scratch_operand(name: str, count: int) -> Operand:
    return Operand(name, "float32", Layout.dense((count,)), aligned_stack("float32", count))


class _Emitter:
    """The code of one kernel."""

    def __init__(
        self, region: AttentionRegion, schedule: Mapping[str, Any], named: Mapping[str, Operand], y: Operand
    ) -> None:
        self.region, self.named, self.y, self.isa, self.lanes = region, named, y, region.isa, region.lanes
        self.body, self.sizes, self.values = region.body, region.sizes, region.values
        self.rows, self.chunk = int(schedule["rows"]), int(schedule["chunk"])
        self.tiles = {key: Schedule.from_json(schedule[key]) for key in ("scores", "mixed")}
        self.panel = _scratch_operand("panel", self.sizes.panel())
        self.queries = _scratch_operand("queries", self.rows * self.sizes.depth_stride())
        self.strip = _scratch_operand("strip", self.rows * self.sizes.stride())
        self.width = -(-self.sizes.width // self.lanes) * self.lanes
        self.parts = self.chunk < self.sizes.keys
        self.sums = _scratch_operand("sums", self.rows * self.width) if self.parts else None

    def run(self, share: Share | None) -> None:
        """Emit everything. The last block begins earlier where the queries are no multiple of a block."""
        sizes = self.sizes
        count = -(-sizes.queries // self.rows)
        extents = [*sizes.batch, count]
        mine = Share.best(extents) if share is not None else None

        def part(axis: int) -> Share | None:
            return share if axis == mine else None

        with ExitStack() as frames:
            place = tuple(frames.enter_context(shared_loop(n, part(i))) for i, n in enumerate(sizes.batch))
            self.pack(place)
            with shared_loop(count, part(len(sizes.batch))) as block:
                begin = simplify(block * self.rows)
                if sizes.queries % self.rows:
                    begin = let(T.min(whole_index(begin), T.int64(sizes.queries - self.rows)))
                self.block(place, begin)

    def _evaluator(self) -> Evaluator:
        return Evaluator(self.body, self.named, self.isa)

    def _index(self, name: str, place: Sequence[Expr], inner: Sequence[Expr]) -> tuple[Expr, ...]:
        """The index of an operand: the batch dimensions that it has, broadcast, then `inner`."""
        shape = self.values[name].shape[: -len(inner)]
        used = place[len(place) - len(shape) :]
        outer = (0 if is_one(n) else i for n, i in zip(shape, used, strict=True))
        return tuple(whole_index(i) for i in (*outer, *inner))

    # --- k ---

    def pack(self, place: Sequence[Expr]) -> None:
        """Pack the keys at a place of the batch, as `contract.pack` does with weights."""
        sizes, lanes = self.sizes, self.lanes
        node = self._turned()
        for part in cut_channels(sizes.keys, self.tiles["scores"].nr, lanes):
            with each(part) as vector:
                base = simplify(vector * (sizes.depth * lanes))
                for j in range(part.size):
                    ragged = part.ragged if j == part.size - 1 else 0
                    key = simplify((vector + j) * lanes)

                    def at(k: Expr, base: Expr = base, size: int = part.size, j: int = j) -> Expr:
                        return simplify(base + (k * size + j) * lanes)

                    if node is None:
                        self._copy(place, key, ragged, at)
                    else:
                        self._turn(node, place, key, ragged, at)

    def _turned(self) -> Node | None:
        """The transpose in the region that makes k from rows of keys."""
        name = self.region.k
        while (node := self.region.producers.get(name)) is not None:
            if node.op == TRANSPOSE:
                return None if keeps_last(node) else node
            name = next(n for n in node.inputs if n not in self.body.constants and n not in self.region.constants)
        return None

    def _copy(self, place: Sequence[Expr], key: Expr, ragged: Any, at: Any) -> None:
        mask = let(tail_mask(T.int32(ragged), self.lanes)) if ragged else None
        with loop(self.sizes.depth) as k:
            index = self._index(self.region.k, place, (k, key))
            value = self._evaluator().value(self.region.k, index, self.lanes, mask)
            T.buffer_store(self.panel.buffer, value, [positions(at(k), self.lanes)])

    def _turn(self, node: Node, place: Sequence[Expr], key: Expr, ragged: Any, at: Any) -> None:
        """A vector of keys: squares of rows are turned in registers."""
        full, rest = divmod(self.sizes.depth, self.lanes)
        if full:
            with loop(full) as i:
                self._square(node, place, key, ragged, simplify(i * self.lanes), self.lanes, at)
        if rest:
            self._square(node, place, key, ragged, full * self.lanes, rest, at)

    def _square(
        self, node: Node, place: Sequence[Expr], key: Expr, ragged: Any, k: Expr, depth: int, at: Any
    ) -> None:  # fmt: skip
        lanes, evaluator, source = self.lanes, self._evaluator(), node.inputs[0]
        mask = let(tail_mask(T.int32(depth), lanes)) if depth < lanes else None
        rows = []
        for i in range(ragged or lanes):
            turned = self._index(node.output.name, place, (k, simplify(key + i)))
            index: list[Expr] = [0] * len(turned)
            for position, axis in enumerate(node.attrs["axes"]):
                index[axis % len(turned)] = turned[position]
            rows.append(evaluator.value(source, index, lanes, mask))
        rows += [splat(T.float32(0), lanes)] * (lanes - len(rows))
        keys = let(tail_mask(T.int32(ragged), lanes)) if ragged else None
        for i, vector in enumerate(interleave(rows)[:depth]):
            evaluator.bind(node.output.name, vector)
            index = self._index(self.region.k, place, (simplify(k + i), key))
            value = evaluator.value(self.region.k, index, lanes, keys)
            T.buffer_store(self.panel.buffer, value, [positions(at(simplify(k + i)), lanes)])

    # --- one block of queries ---

    def block(self, place: tuple[Expr, ...], begin: Expr) -> None:
        """All of the queries from `begin` on that are in one block."""
        self._copy_queries(place, begin)
        strip = self._strip(begin)
        self._scores(place, begin, strip)
        named = {**self.named, self.region.softmax.inputs[0]: strip}
        inside = replace(self.body, outputs=(self.region.weights,))
        region = Region(inside, self.region.softmax, named, {self.region.weights: strip}, self.isa)
        with loop(self.rows) as row:
            normalise.softmax_row(region, (*place, simplify(begin + row)))
        self._values(place, begin)

    def _strip(self, begin: Expr) -> Operand:
        """The strip as the rows from `begin` on of the scores at one place of the batch."""
        shape, stride = self.region.scores.output.shape, self.sizes.stride()
        strides = (*(0 for _ in shape[:-2]), stride, 1)
        halo = ((0, 0),) * len(shape)
        layout = Layout(shape, strides, simplify(-begin * stride), self.rows * stride, halo)
        return replace(self.strip, layout=layout)

    def _copy_queries(self, place: Sequence[Expr], begin: Expr) -> None:
        with loop(self.rows) as row:

            def visit(pieces: list[Piece]) -> None:
                for piece in pieces:
                    index = self._index(self.region.q, place, (simplify(begin + row), piece.base))
                    value = self._evaluator().value(self.region.q, index, self.lanes, piece.mask)
                    at = simplify(row * self.sizes.depth_stride() + piece.base)
                    T.buffer_store(self.queries.buffer, value, [positions(at, self.lanes)])

            sweep(self.sizes.depth, self.lanes, 4, visit)

    def _scores(self, place: tuple[Expr, ...], begin: Expr, strip: Operand) -> None:
        made = self.region.softmax.inputs[0]

        def store(_: Sequence[Expr], row: Expr, key: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            evaluator = self._evaluator()
            evaluator.bind(self.region.scores.output.name, acc)
            index = (*(whole_index(i) for i in place), whole_index(simplify(begin + row)), key)
            # Lanes behind the last key lie in the strip's own margin.
            strip.store(index, evaluator.value(made, index, lanes, mask), lanes)

        problem = self.sizes.of_scores(self.rows)
        contract.emit(problem, self.tiles["scores"], self.isa, self.queries, self.panel, None, store)

    def _values(self, place: tuple[Expr, ...], begin: Expr) -> None:
        """Multiply the strip with v, a part of the keys at a time."""
        v, layout = self._v()
        steps = zip(layout.shape[:-2], layout.strides[:-2], place[len(place) - len(layout.shape) + 2 :], strict=True)
        first = simplify(layout.offset + sum((0 if is_one(n) else i * s for n, s, i in steps), 0))

        def finish(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            self._finish((*place, simplify(begin + row), channel), acc, lanes, mask)

        def add(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            assert self.sums is not None
            at = positions(simplify(row * self.width + channel), lanes)
            T.buffer_store(self.sums.buffer, self.sums.buffer[at] + acc, [at])

        if self.sums is not None:
            self._each_sum(lambda row, piece, at: T.buffer_store(self.sums.buffer, self._zero(), [at]))
        for segment in cut(self.sizes.keys, self.chunk):
            with each(segment) as key:
                at = let(whole_index(simplify(first + key * layout.strides[-2])))
                problem = self.sizes.of_values(self.rows, segment.size, layout.strides[-2], key, at)
                store = finish if self.sums is None else add
                contract.emit(problem, self.tiles["mixed"], self.isa, self.strip, v, None, store)
        if self.sums is not None:
            self._each_sum(
                lambda row, piece, at: finish((), row, piece.base, let(self.sums.buffer[at]), self.lanes, piece.mask)
            )

    def _v(self) -> tuple[Operand, Layout]:
        node = self.region.producers.get(self.region.v)
        return self.named[self.region.v if node is None else node.inputs[0]], self.region._v_layout()

    def _zero(self) -> Expr:
        return splat(T.float32(0), self.lanes)

    def _each_sum(self, visit: Any) -> None:
        with loop(self.rows) as row:

            def several(pieces: list[Piece]) -> None:
                for piece in pieces:
                    visit(row, piece, positions(simplify(row * self.width + piece.base), self.lanes))

            sweep(self.sizes.width, self.lanes, 4, several)

    def _finish(self, index: tuple[Expr, ...], acc: Expr, lanes: int, mask: Expr) -> None:
        """Compute what follows the product with v, and store it."""
        index = tuple(whole_index(i) for i in index)
        evaluator = self._evaluator()
        evaluator.bind(self.region.mixed.output.name, acc)
        out = self.body.outputs[0]
        last = self.region.producers[out]
        target = tuple(index[a % len(index)] for a in last.attrs["axes"]) if last.op == TRANSPOSE else index
        made = last.inputs[0] if last.op == TRANSPOSE else out
        self.y.store(target, evaluator.value(made, index, lanes, mask), lanes, mask)
