"""A region that is attention (`passes/partition/attention.py`): softmax(q k) v without the scores in memory.

For each place of the batch dimensions (batch and head) k is packed as the GEMM reads weights, once. Then, for each
block of queries, a strip of scores, the block's rows by all keys, is made, scaled and masked as it is stored, goes
through softmax where it lies, and is multiplied with v, a part of the keys at a time, each packed before: a part stays
in L1 while the block's rows pass by. All of these are on the stack. Both products are the packed GEMM's, and softmax is
the row of the softmax kernel, so each sum is made in the same order as by three kernels; only the sums of the parts of
v are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.ir.graph import Graph, Node
from dlc.passes.partition.attention import TRANSPOSE, keeps_last, products
from dlc.passes.simplify.match import same_shape
from dlc.targets.cpu import region_cost
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract, contract_cost, normalise
from dlc.targets.cpu.kernels.amx import aligned_stack
from dlc.targets.cpu.kernels.anchored import Piece, Region, sweep
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, kernel, let, positions, splat, tail_mask
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule
from dlc.targets.cpu.kernels.contract_loops import Segment, cut, cut_channels, each, loop, shared_loop, whole_index
from dlc.targets.cpu.kernels.evaluate import Evaluator, is_one
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.kernels.transpose import interleave
from dlc.targets.layout import Layout, simplify

KIND = "attention"
_MOST_L2 = 1 << 20  # bytes: scratch lies on the stack
_SHARED_MICROSECONDS = 10.0  # predicted time from which on a kernel is shared out
_LINE = 16  # float32 of a cache line
_PACK = 3  # instructions to load, compute and store one vector of k
_SOFTMAX = 30  # instructions for a vector of scores: three passes and an exponential


@dataclass(frozen=True)
class Sizes:
    """Extents of one attention: places of the batch, which may be symbolic, queries, keys, and what a key and a value
    have."""

    batch: tuple[Expr, ...]
    queries: int
    keys: int
    depth: int
    width: int

    @property
    def places(self) -> int:
        """How many places the batch has, a symbolic extent counting as one."""
        return prod(n for n in self.batch if isinstance(n, int))

    @staticmethod
    def of(body: Graph) -> Sizes:
        """The sizes of a body."""
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

    def width_stride(self) -> int:
        """Elements from one row of sums to the next, and of a packed row of v."""
        return -(-self.width // _LINE) * _LINE

    def of_scores(
        self, rows: int, keys: int, q_step: Expr, q_first: Expr = 0, step: Expr = None, first: Expr = 0
    ) -> Contraction:  # fmt: skip
        """A block of queries, `q_step` apart from `q_first` on, times keys: packed, or from `first` on."""
        axis, run = Axis(rows, q_step), Run(0, self.depth)
        return Contraction(
            "float32", "float32", q_first, (), axis, (run,), keys, w_k_stride=step, w_offset=first
        )  # fmt: skip

    def of_values(self, rows: int, keys: int, begin: Expr = 0, step: Expr = None, first: Expr = 0) -> Contraction:
        """A strip of scores, its keys from `begin` on, times as many rows of v: packed, or from `first` on."""
        axis, run = Axis(rows, self.stride()), Run(0, keys)
        return Contraction(
            "float32", "float32", begin, (), axis, (run,), self.width, w_k_stride=step, w_offset=first
        )  # fmt: skip


def unfit(body: Graph) -> str | None:
    """Why attention is better left to three kernels; None where one is faster."""
    values = body.values()
    scores, _, mixed = products(body)
    types = {values[name].dtype for name in (*scores.inputs, *mixed.inputs, scores.output.name, mixed.output.name)}
    if types != {"float32"}:
        return f"the kernel of attention is for float32, not {', '.join(sorted(types - {'float32'}))}"
    ranks = [len(values[name].shape) for name in (*scores.inputs, mixed.inputs[1])]
    if min(ranks) < 2 or not same_shape(mixed.output.shape[:-2], scores.output.shape[:-2]):
        return "the values have batch dimensions that the scores do not have"
    extents = [d for name in (*scores.inputs, *mixed.inputs) for d in values[name].shape[-2:]]
    if not all(isinstance(d, int) for d in extents):
        return "the number of queries or keys is known only when running"
    sizes = Sizes.of(body)
    if 0 in (sizes.places, sizes.queries, sizes.keys, sizes.depth, sizes.width):
        return "it is empty"
    if 4 * sizes.stride() > _MOST_L2:
        return f"a row of {sizes.keys} scores is more than the stack takes"
    return None


def _l2(machine: Machine) -> int:
    """What of L2 is made use of: half for packed keys, three quarters for a strip, both of which lie on the stack."""
    return min(machine.l2, _MOST_L2)


def _panel(sizes: Sizes, machine: Machine) -> int:
    """How many keys are packed at a time: all if they take half of L2, else a part, for each block again."""
    keys = sizes.keys
    while keys > _LINE and 4 * keys * sizes.depth > _l2(machine) // 2:
        keys = -(-keys // (2 * _LINE)) * _LINE
    return keys


def _block(sizes: Sizes, machine: Machine) -> int:
    """How many queries a block has: all, half, a quarter, ..., until their strip stays in L2.

    There are at least four blocks of all batches, for threads to share.
    """
    rows, least = sizes.queries, -(-4 // sizes.places)
    while rows > 1 and contract_cost.level_of(4 * rows * sizes.stride(), replace(machine, l2=_l2(machine))) > 1:
        rows = -(-rows // 2)
    count = max(-(-sizes.queries // rows), min(least, sizes.queries))
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
        sizes, isa = self.sizes, self.isa
        rows, panel = _block(sizes, machine), _panel(sizes, machine)
        part = self._part(rows, machine)
        soft = rows * -(-sizes.keys // self.lanes) * _SOFTMAX / contract_cost.core_of(isa, machine).vectors
        each = contract_cost.seconds(soft, machine)
        count = -(-sizes.queries // rows)
        packing, found = 0.0, {}
        problems = (sizes.of_scores(rows, panel, self.q_step()), sizes.of_values(rows, part))
        for name, operand, problem in zip(("keys", "values"), (self.k, self.v), problems, strict=True):
            tiles = contract.choose(problem, isa, machine)
            pack = self._pack_seconds(problem, machine)
            direct = self.direct(operand)
            if direct is not None and pack > self._conflict_seconds(problem, tiles, direct[1].strides[-2], machine):
                problem, pack = replace(problem, w_k_stride=direct[1].strides[-2]), 0.0
                tiles = contract.choose(problem, isa, machine)
            times = sizes.keys / (part if operand == self.v else panel)
            each += times * contract.predicted_seconds(problem, tiles, isa, machine)
            packing += pack * times * (1 if operand == self.k and panel == sizes.keys else count)
            found[name] = {**tiles.to_json(), "packed": problem.w_k_stride is None}
        seconds = sizes.places * (packing + count * each) + self._beside(machine)
        return {"rows": rows, "panel": panel, "part": part, **found, "predicted_us": round(seconds * 1e6, 3)}

    def _beside(self, machine: Machine) -> float:
        """The time of what is computed around the products and the softmax."""
        counted = {self.scores.output.name, self.softmax.output.name, self.mixed.output.name}
        nodes = [n for n in self.body.nodes if n.output.name not in counted and n.op != TRANSPOSE]
        core = contract_cost.core_of(self.isa, machine)
        cycles = region_cost.pointwise_cycles(nodes, self.values, self.isa, core, by_rows=True)
        return contract_cost.seconds(cycles, machine)

    def _part(self, rows: int, machine: Machine) -> int:
        """How many keys a part of v has: what the tiles read again and again is in L1."""
        part = self.sizes.keys
        while part > _LINE:
            tiles = contract.choose(self.sizes.of_values(rows, part), self.isa, machine)
            if rows <= tiles.mr or contract_cost.level_of(4 * part * (tiles.nr * self.lanes + tiles.mr), machine) == 0:
                break
            part = -(-part // 2)
        return part

    def _pack_seconds(self, problem: Contraction, machine: Machine) -> float:
        """The time to pack the right operand of a product."""
        vectors = -(-int(problem.n) // self.lanes) * int(problem.runs[0].length)
        core = contract_cost.core_of(self.isa, machine)
        return contract_cost.seconds(vectors * (_PACK / core.vectors + self.lanes * 4 / core.bandwidth[1]), machine)

    def _conflict_seconds(self, problem: Contraction, tiles: Schedule, step: int, machine: Machine) -> float:
        """The time that reading the right operand where it lies takes longer, because its rows compete for L1."""
        depth, core = int(problem.runs[0].length), contract_cost.core_of(self.isa, machine)
        if not contract_cost.rows_compete(4 * step, depth, tiles.nr * self.lanes * 4, core):
            return 0.0
        again = -(-problem.rows.extent // tiles.mr) - 1
        lines = -(-int(problem.n) // self.lanes) * depth * self.lanes * 4
        return contract_cost.seconds(again * lines / core.bandwidth[1], machine)

    def q_step(self) -> Expr:
        """Elements from one query to the next, where they are read: in place, or copied because they are computed."""
        direct = self.direct(self.q)
        return self.sizes.depth_stride() if direct is None else direct[1].strides[-2]

    def direct(self, name: str) -> tuple[str, Layout] | None:
        """(input, layout) of an operand that lies in memory as it is, perhaps transposed; None where it is computed."""
        node = self.producers.get(name)
        if node is None:
            return name, self.layouts[name]
        if node.op == TRANSPOSE and keeps_last(node) and node.inputs[0] not in self.producers:
            return node.inputs[0], _permuted(self.layouts[node.inputs[0]], node)
        return None

    # --- operands ---

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name, constant or None)."""
        return [(value.name, self.constants.get(value.name)) for value in self.body.inputs]

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


def _scratch_operand(name: str, count: int) -> Operand:
    return Operand(name, "float32", Layout.dense((count,)), aligned_stack("float32", count))


def _permuted(layout: Layout, node: Node) -> Layout:
    """The layout of a transpose's result in the memory of its input."""
    axes = [axis % len(layout.shape) for axis in node.attrs["axes"]]
    shape, strides, halo = (tuple(of[a] for a in axes) for of in (layout.shape, layout.strides, layout.halo))
    return replace(layout, shape=shape, strides=strides, halo=halo)


class _Emitter:
    """The code of one kernel."""

    def __init__(
        self, region: AttentionRegion, schedule: Mapping[str, Any], named: Mapping[str, Operand], y: Operand
    ) -> None:
        self.region, self.named, self.y, self.isa, self.lanes = region, named, y, region.isa, region.lanes
        self.body, self.sizes, self.values = region.body, region.sizes, region.values
        self.rows, self.keys, self.part = (int(schedule[n]) for n in ("rows", "panel", "part"))
        chosen = {key: dict(schedule[key]) for key in ("keys", "values")}
        self.packs = {key: values.pop("packed") for key, values in chosen.items()}
        self.tiles = {key: Schedule.from_json(values) for key, values in chosen.items()}
        if self.packs["keys"]:
            self.panel = _scratch_operand("panel", -(-self.keys // _LINE) * _LINE * self.sizes.depth)
        if region.direct(region.q) is None:
            self.queries = _scratch_operand("queries", self.rows * self.sizes.depth_stride())
        self.strip = _scratch_operand("strip", self.rows * self.sizes.stride())
        if self.packs["values"]:
            self.packed_v = _scratch_operand("packed", self.part * self.sizes.width_stride())
        several = self.part < self.sizes.keys
        self.sums = _scratch_operand("sums", self.rows * self.sizes.width_stride()) if several else None

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
            if self.packs["keys"] and self.keys == sizes.keys:
                self.pack_keys(place, 0, self.keys)
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

    # --- k and v ---

    def pack_keys(self, place: Sequence[Expr], first: Expr, count: int) -> None:
        """Pack `count` keys from key `first` on at a place of the batch."""
        node, depth = self._turned(), self.sizes.depth
        if node is None:
            self._pack(self.panel, self.tiles["keys"], self.region.k, place, (0, first), (depth, count))
            return
        for part in cut_channels(count, self.tiles["keys"].nr, self.lanes):
            with each(part) as vector:
                for j in range(part.size):
                    at = partial(self._packed_at, let(whole_index(simplify(vector * (depth * self.lanes)))), part, j)
                    key = simplify(first + (vector + j) * self.lanes)
                    self._turn(node, place, key, part.ragged if j == part.size - 1 else 0, at)

    def pack_values(self, place: Sequence[Expr], first: Expr, count: int) -> None:
        """Pack the values of `count` keys from key `first` on."""
        sizes = (count, self.sizes.width)
        self._pack(self.packed_v, self.tiles["values"], self.region.v, place, (first, 0), sizes)

    def _pack(
        self, panel: Operand, tiles: Schedule, name: str, place: Sequence[Expr], first: tuple[Expr, Expr],
        sizes: tuple[int, int],
    ) -> None:  # fmt: skip
        """Pack the part of a right operand that is of some size (k, channels) and begins at `first`, row by row, as
        `contract.pack` does with weights."""
        depth, n = sizes
        for part in cut_channels(n, tiles.nr, self.lanes):
            mask = let(tail_mask(T.int32(part.ragged), self.lanes)) if part.ragged else None
            with each(part) as vector:
                base = let(whole_index(simplify(vector * (depth * self.lanes))))
                with loop(depth) as k:
                    for j in range(part.size):
                        channel = simplify(first[1] + (vector + j) * self.lanes)
                        index = self._index(name, place, (simplify(first[0] + k), channel))
                        last = mask if j == part.size - 1 else None
                        value = self._evaluator().value(name, index, self.lanes, last)
                        T.buffer_store(panel.buffer, value, [positions(self._packed_at(base, part, j, k), self.lanes)])

    def _packed_at(self, base: Expr, part: Segment, j: int, k: Expr) -> Expr:
        """Where vector `j` of a tile that begins at `base` lies for one k."""
        return simplify(base + (k * part.size + j) * self.lanes)

    def _turned(self) -> Node | None:
        """The transpose in the region that makes k from rows of keys."""
        name = self.region.k
        while (node := self.region.producers.get(name)) is not None:
            if node.op == TRANSPOSE:
                return None if keeps_last(node) else node
            name = next(n for n in node.inputs if n not in self.body.constants and n not in self.region.constants)
        return None

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
            straight: list[Expr] = [0] * len(turned)
            for position, axis in enumerate(node.attrs["axes"]):
                straight[axis % len(turned)] = turned[position]
            rows.append(evaluator.value(source, straight, lanes, mask))
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

    def _queries(self, place: Sequence[Expr], begin: Expr) -> tuple[Operand, Expr, Expr]:
        """The block's queries: their memory, the step from one to the next, the position of the first."""
        if self.region.direct(self.region.q) is not None:
            return self._lying(self.region.q, place, begin)
        with loop(self.rows) as row:

            def visit(pieces: list[Piece]) -> None:
                for piece in pieces:
                    index = self._index(self.region.q, place, (simplify(begin + row), piece.base))
                    value = self._evaluator().value(self.region.q, index, self.lanes, piece.mask)
                    at = simplify(row * self.sizes.depth_stride() + piece.base)
                    T.buffer_store(self.queries.buffer, value, [positions(at, self.lanes)])

            sweep(self.sizes.depth, self.lanes, 4, visit)
        return self.queries, self.sizes.depth_stride(), 0

    def _scores(self, place: tuple[Expr, ...], begin: Expr, strip: Operand) -> None:
        made = self.region.softmax.inputs[0]
        q, q_step, q_first = self._queries(place, begin)

        def store(part: Expr, _: Sequence[Expr], row: Expr, key: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            evaluator = self._evaluator()
            evaluator.bind(self.region.scores.output.name, acc)
            index = (*(whole_index(i) for i in place), *(whole_index(simplify(i)) for i in (begin + row, part + key)))
            # Lanes behind the last key lie in the strip's own margin.
            strip.store(index, evaluator.value(made, index, lanes, mask), lanes)

        for segment in cut(self.sizes.keys, self.keys):
            with each(segment) as part:
                k, step, first = self._keys(place, part, segment.size)
                problem = self.sizes.of_scores(self.rows, segment.size, q_step, q_first, step, first)
                contract.emit(problem, self.tiles["keys"], self.isa, q, k, None, partial(store, part))

    def _keys(self, place: Sequence[Expr], first: Expr, count: int) -> tuple[Operand, Expr, Expr]:
        """`count` keys from key `first` on, packed or not: their memory, the step of its rows, where they begin."""
        if not self.packs["keys"]:
            return self._lying(self.region.k, place, 0, first)
        if self.keys < self.sizes.keys:
            self.pack_keys(place, first, count)
        return self.panel, None, 0

    def _lying(self, name: str, place: Sequence[Expr], row: Expr, column: Expr = 0) -> tuple[Operand, Expr, Expr]:
        """An operand that is read where it lies: its memory, the step of its rows, the position of an element."""
        found = self.region.direct(name)
        assert found is not None
        source, layout = found
        index = self._index(name, place, (row, column))
        return self.named[source], layout.strides[-2], let(whole_index(layout.flat(index)))

    def _values(self, place: tuple[Expr, ...], begin: Expr) -> None:
        """Multiply the strip with v, a part of the keys at a time."""
        sums, stride = self.sums, self.sizes.width_stride()

        def finish(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            self._finish((*place, simplify(begin + row), channel), acc, lanes, mask)

        def add(_: Sequence[Expr], row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            assert sums is not None
            at = positions(simplify(row * stride + channel), lanes)
            T.buffer_store(sums.buffer, sums.buffer[at] + acc, [at])

        if sums is not None:
            self._each_sum(lambda row, piece, at: T.buffer_store(sums.buffer, splat(T.float32(0), self.lanes), [at]))
        tiles = self.tiles["values"]
        for segment in cut(self.sizes.keys, self.part):
            with each(segment) as key:
                if self.packs["values"]:
                    v, step, first = self.packed_v, None, 0
                    self.pack_values(place, key, segment.size)
                else:
                    v, step, first = self._lying(self.region.v, place, key)
                problem = self.sizes.of_values(self.rows, segment.size, key, step, first)
                contract.emit(problem, tiles, self.isa, self.strip, v, None, finish if sums is None else add)
        if sums is not None:
            self._each_sum(
                lambda row, piece, at: finish((), row, piece.base, let(sums.buffer[at]), self.lanes, piece.mask)
            )

    def _each_sum(self, visit: Any) -> None:
        with loop(self.rows) as row:

            def several(pieces: list[Piece]) -> None:
                for piece in pieces:
                    visit(row, piece, positions(simplify(row * self.sizes.width_stride() + piece.base), self.lanes))

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
