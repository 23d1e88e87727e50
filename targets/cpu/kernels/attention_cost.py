"""What one attention is in numbers, and how it is cut: blocks of queries and of keys, parts of values, tiles.

No size decides: the cut is the one of the least predicted time among those whose scratch the stack takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from dlc.hardware import Machine
from dlc.ir.dims import symbols
from dlc.ir.graph import Graph
from dlc.passes.partition.attention import TRANSPOSE, products
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract, contract_cost
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule

if TYPE_CHECKING:
    from dlc.targets.cpu.attention_region import AttentionRegion

LINE = 16  # float32 of a cache line
MOST_SCRATCH = 1 << 20  # bytes: scratch lies on the stack
_LONG = 1024  # queries or keys assumed where their number is known only when running: shorter ones lose nothing
_PACK = 3  # instructions to load, compute and store one vector of k
_SOFTMAX = 28  # instructions for a vector of scores: two passes and an exponential
_ROW = 90  # instructions for a row of a block besides: the folds of its lanes, the factor of what there is already
_PASSES = 5  # times that a strip is read or written


@dataclass(frozen=True)
class Sizes:
    """Extents of one attention: places of the batch, queries and keys, all of which may be symbolic, and what a key and
    a value have."""

    batch: tuple[Expr, ...]
    queries: Expr
    keys: Expr
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

    def guessed(self) -> Sizes:
        """The same with numbers of queries and keys in place of symbols."""
        queries, keys = (n if isinstance(n, int) else _LONG for n in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)

    def depth_stride(self) -> int:
        """Elements from one row of the copied queries to the next."""
        return whole_lines(self.depth)

    def width_stride(self) -> int:
        """Elements from one row of sums to the next, and of a packed row of v."""
        return whole_lines(self.width)

    def of_scores(
        self, rows: Expr, keys: Expr, q_step: Expr, q_first: Expr = 0, step: Expr = None, first: Expr = 0
    ) -> Contraction:  # fmt: skip
        """A block of queries, `q_step` apart from `q_first` on, times keys from `first` on: packed, or `step` apart."""
        axis, run = Axis(rows, q_step), Run(0, self.depth)
        return Contraction(
            "float32", "float32", q_first, (), axis, (run,), keys, w_k_stride=step, w_offset=first
        )  # fmt: skip

    def of_values(
        self, rows: Expr, keys: Expr, stride: int, begin: Expr = 0, step: Expr = None, first: Expr = 0
    ) -> Contraction:  # fmt: skip
        """A strip of scores, its keys from `begin` on, times as many rows of v: packed, or from `first` on."""
        axis, run = Axis(rows, stride), Run(0, keys)
        return Contraction(
            "float32", "float32", begin, (), axis, (run,), self.width, w_k_stride=step, w_offset=first
        )  # fmt: skip


def whole_lines(count: int) -> int:
    """`count` float32, made whole cache lines."""
    return -(-count // LINE) * LINE


def strip_stride(keys: int) -> int:
    """Elements from one row of scores to the next: whole vectors, and never a multiple of a page, whose lines would
    compete for one set of L1."""
    return whole_lines(keys) + LINE


def scratch_bytes(sizes: Sizes, rows: int, keys: int, ahead: bool = False) -> int:
    """What a block of `rows` queries and `keys` keys takes of the stack; `ahead`: all keys are packed at once."""
    per_row = strip_stride(keys) + sizes.depth_stride() + sizes.width_stride() + 2 * LINE + 1
    packed = whole_lines(sizes.keys if ahead else keys) * sizes.depth + whole_lines(keys) * sizes.width_stride()
    return 4 * (rows * per_row + packed)


def _l2(machine: Machine) -> int:
    return min(machine.l2, MOST_SCRATCH)


def _halves(extent: int, unit: int) -> Iterator[int]:
    """All of an extent, half, a quarter, ... in multiples of `unit`."""
    while True:
        yield extent
        if extent <= unit:
            return
        extent = -(-extent // (2 * unit)) * unit


@lru_cache(maxsize=4096)
def _tiles(problem: Contraction, isa: Isa, machine: Machine) -> tuple[Schedule, float]:
    tiles = contract.choose(problem, isa, machine)
    return tiles, contract.predicted_seconds(problem, tiles, isa, machine)


@dataclass(frozen=True)
class _Cost:
    """The predicted time of every cut of one attention at one place of the batch."""

    region: AttentionRegion
    sizes: Sizes
    machine: Machine

    @property
    def isa(self) -> Isa:
        return self.region.isa

    def cuts(self) -> Iterator[tuple[int, int]]:
        """(queries, keys) of a block, as many as make sense: at least four blocks of all batches, for threads."""
        sizes = self.sizes
        most = -(-sizes.queries // min(-(-4 // sizes.places), sizes.queries))
        least = 1, min(LINE, sizes.keys)
        for rows in _halves(most, 1):
            for keys in _halves(sizes.keys, LINE):
                if scratch_bytes(sizes, rows, keys) <= MOST_SCRATCH or (rows, keys) == least:
                    yield rows, keys

    def choice(self, rows: int, keys: int) -> dict[str, Any]:
        """All that is chosen for one cut, and its time."""
        sizes, lanes = self.sizes, self.region.lanes
        part = self._part(rows, keys)
        blocks, count, visited = -(-sizes.keys // keys), -(-sizes.queries // rows), self._visited(rows, keys)
        core = contract_cost.core_of(self.isa, self.machine)
        # An extent known only when running has no bound, so neither have all keys.
        ahead = isinstance(self.region.sizes.keys, int) and 8 * sizes.keys * sizes.depth <= _l2(self.machine)
        ahead = ahead and scratch_bytes(sizes, rows, keys, True) <= 2 * MOST_SCRATCH
        found: dict[str, Any] = {"rows": rows, "block": keys, "part": part, "ahead": ahead}
        stride = strip_stride(keys)
        pair = self._softmax(rows, keys)
        packing = 0.0
        problems = (sizes.of_scores(rows, keys, self._q_step()), sizes.of_values(rows, part, stride))
        names = (("keys", self.region.k, 1.0), ("values", self.region.v, keys / part))
        for (name, operand, times), problem in zip(names, problems, strict=True):
            tiles, taken = _tiles(problem, self.isa, self.machine)
            pack, direct = self._pack_seconds(problem), self.region.direct(operand)
            if direct is not None:
                step = direct[1].strides[-2]
                if pack > self._conflict_seconds(problem, tiles, step):
                    problem, pack = replace(problem, w_k_stride=step if isinstance(step, int) else sizes.keys), 0.0
                    tiles, taken = _tiles(problem, self.isa, self.machine)
            pair += times * taken
            packing += times * pack * (blocks if name == "keys" and ahead else visited)
            found[name] = {**tiles.to_json(), "packed": problem.w_k_stride is None}
        # What does not stay in L1 from one block of queries to the next comes again.
        lines = 4 * (sizes.depth + sizes.width)
        level = contract_cost.level_of(sizes.keys * lines + 4 * rows * stride, self.machine)
        if level:
            pair += contract_cost.seconds(keys * lines / core.bandwidth[level], self.machine)
        copied = 0 if self.region.direct(self.region.q) is not None else -(-sizes.depth // lanes)
        ends = contract_cost.seconds(
            rows * (copied + 2 * -(-sizes.width // lanes)) * _PACK / core.vectors, self.machine
        )
        seconds = sizes.places * (packing + visited * pair + count * ends)
        return {**found, "predicted_us": round(seconds * 1e6, 3)}

    def _visited(self, rows: int, keys: int) -> int:
        """Pairs of blocks of queries and of keys that are not hidden."""
        sizes, (first, last, _), total = self.sizes, self.region.band, 0
        for begin in range(0, sizes.queries, rows):
            low = 0 if first is None else max(0, begin + first) // keys
            high = sizes.keys if last is None else min(sizes.keys, max(0, begin + rows + last))
            total += max(0, -(-high // keys) - low) if keys < sizes.keys else 1
        return total

    def _softmax(self, rows: int, keys: int) -> float:
        """The time of softmax for one block, and of correcting what there is of the blocks before."""
        core, lanes = contract_cost.core_of(self.isa, self.machine), self.region.lanes
        again = 3 * -(-self.sizes.width // lanes) if keys < self.sizes.keys else 0
        cycles = rows * (-(-keys // lanes) * _SOFTMAX + _ROW + again) / core.vectors
        strip = 4 * rows * strip_stride(keys)
        level = contract_cost.level_of(strip + 4 * keys * self.sizes.depth, replace(self.machine, l2=_l2(self.machine)))
        return contract_cost.seconds(cycles + (_PASSES * strip / core.bandwidth[level] if level else 0), self.machine)

    def _q_step(self) -> int:
        step = self.region.q_step()
        return step if isinstance(step, int) else self.sizes.queries

    def _part(self, rows: int, keys: int) -> int:
        """How many keys a part of v has: what the tiles read again and again is in L1."""
        for part in _halves(keys, LINE):
            tiles, _ = _tiles(self.sizes.of_values(rows, part, strip_stride(keys)), self.isa, self.machine)
            again = 4 * part * (tiles.nr * self.region.lanes + tiles.mr)
            if rows <= tiles.mr or contract_cost.level_of(again, self.machine) == 0:
                break
        return part

    def _pack_seconds(self, problem: Contraction) -> float:
        """The time to pack the right operand of a product."""
        lanes = self.region.lanes
        vectors = -(-int(problem.n) // lanes) * int(problem.runs[0].length)
        core = contract_cost.core_of(self.isa, self.machine)
        return contract_cost.seconds(vectors * (_PACK / core.vectors + lanes * 4 / core.bandwidth[1]), self.machine)

    def _conflict_seconds(self, problem: Contraction, tiles: Schedule, step: Expr) -> float:
        """The time that reading the right operand where it lies takes longer, because its rows compete for L1."""
        depth, core = int(problem.runs[0].length), contract_cost.core_of(self.isa, self.machine)
        lanes = self.region.lanes
        if not isinstance(step, int) or not contract_cost.rows_compete(4 * step, depth, tiles.nr * lanes * 4, core):
            return 0.0
        again = -(-problem.rows.extent // tiles.mr) - 1
        lines = -(-int(problem.n) // lanes) * depth * lanes * 4
        return contract_cost.seconds(again * lines / core.bandwidth[1], self.machine)


def choose(region: AttentionRegion, machine: Machine) -> dict[str, Any]:
    """How many queries and keys a block has, how many keys of v are read at a time, what is packed, and both tiles."""
    cost = _Cost(region, region.sizes.guessed(), machine)
    best = min((cost.choice(*cut) for cut in cost.cuts()), key=lambda found: found["predicted_us"])
    symbolic = ", ".join(f"{var.name}={_LONG}" for var in symbols((region.sizes.queries, region.sizes.keys)))
    microseconds = round(best["predicted_us"] + 1e6 * _beside(region, machine), 3)
    return {**best, "predicted_us": microseconds, "band": list(region.band), "predicted_for": symbolic}


def _beside(region: AttentionRegion, machine: Machine) -> float:
    """The time of what is computed around the products and the softmax, which no cut changes."""
    from dlc.targets.cpu import region_cost

    counted = {region.scores.output.name, region.softmax.output.name, region.mixed.output.name}
    nodes = [n for n in region.body.nodes if n.output.name not in counted and n.op != TRANSPOSE]
    core = contract_cost.core_of(region.isa, machine)
    cycles = region_cost.pointwise_cycles(nodes, region.values, region.isa, core, by_rows=True)
    return contract_cost.seconds(cycles, machine)
