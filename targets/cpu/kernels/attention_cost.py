"""What one attention is in numbers, and how it is cut: blocks of queries, panels of keys, parts of values, tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from dlc.hardware import Machine
from dlc.ir.graph import Graph
from dlc.passes.partition.attention import products
from dlc.targets.cpu.kernels import contract, contract_cost
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule

if TYPE_CHECKING:
    from dlc.targets.cpu.attention_region import AttentionRegion

LINE = 16  # float32 of a cache line
MOST_L2 = 1 << 20  # bytes: scratch lies on the stack
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
        return -(-self.keys // LINE) * LINE + LINE

    def depth_stride(self) -> int:
        """Elements from one row of the copied queries to the next."""
        return -(-self.depth // LINE) * LINE

    def width_stride(self) -> int:
        """Elements from one row of sums to the next, and of a packed row of v."""
        return -(-self.width // LINE) * LINE

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


def _l2(machine: Machine) -> int:
    """What of L2 is made use of: half for packed keys, three quarters for a strip, both of which lie on the stack."""
    return min(machine.l2, MOST_L2)


def _panel(sizes: Sizes, machine: Machine) -> int:
    """How many keys are packed at a time: all if they take half of L2, else a part, for each block again."""
    keys = sizes.keys
    while keys > LINE and 4 * keys * sizes.depth > _l2(machine) // 2:
        keys = -(-keys // (2 * LINE)) * LINE
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


def choose(region: AttentionRegion, machine: Machine) -> dict[str, Any]:
    """How many queries a block has, in how many keys at a time v is read, and the tiles of both products."""
    sizes, isa = region.sizes, region.isa
    rows, panel = _block(sizes, machine), _panel(sizes, machine)
    part = _part(region, rows, machine)
    soft = rows * -(-sizes.keys // region.lanes) * _SOFTMAX / contract_cost.core_of(isa, machine).vectors
    each = contract_cost.seconds(soft)
    count = -(-sizes.queries // rows)
    packing, found = 0.0, {}
    problems = (sizes.of_scores(rows, panel, region.q_step()), sizes.of_values(rows, part))
    for name, operand, problem in zip(("keys", "values"), (region.k, region.v), problems, strict=True):
        tiles = contract.choose(problem, isa, machine)
        pack = _pack_seconds(region, problem, machine)
        direct = region.direct(operand)
        if direct is not None and pack > _conflict_seconds(region, problem, tiles, direct[1].strides[-2], machine):
            problem, pack = replace(problem, w_k_stride=direct[1].strides[-2]), 0.0
            tiles = contract.choose(problem, isa, machine)
        times = sizes.keys / (part if operand == region.v else panel)
        each += times * contract.predicted_seconds(problem, tiles, isa, machine)
        packing += pack * times * (1 if operand == region.k and panel == sizes.keys else count)
        found[name] = {**tiles.to_json(), "packed": problem.w_k_stride is None}
    seconds = sizes.places * (packing + count * each)
    return {"rows": rows, "panel": panel, "part": part, **found, "predicted_us": round(seconds * 1e6, 3)}


def _part(region: AttentionRegion, rows: int, machine: Machine) -> int:
    """How many keys a part of v has: what the tiles read again and again is in L1."""
    part = region.sizes.keys
    while part > LINE:
        tiles = contract.choose(region.sizes.of_values(rows, part), region.isa, machine)
        if rows <= tiles.mr or contract_cost.level_of(4 * part * (tiles.nr * region.lanes + tiles.mr), machine) == 0:
            break
        part = -(-part // 2)
    return part


def _pack_seconds(region: AttentionRegion, problem: Contraction, machine: Machine) -> float:
    """The time to pack the right operand of a product."""
    vectors = -(-int(problem.n) // region.lanes) * int(problem.runs[0].length)
    core = contract_cost.core_of(region.isa, machine)
    return contract_cost.seconds(vectors * (_PACK / core.vectors + region.lanes * 4 / core.bandwidth[1]))


def _conflict_seconds(
    region: AttentionRegion, problem: Contraction, tiles: Schedule, step: int, machine: Machine
) -> float:
    """The time that reading the right operand where it lies takes longer, because its rows compete for L1."""
    depth, core = int(problem.runs[0].length), contract_cost.core_of(region.isa, machine)
    if not contract_cost.rows_compete(4 * step, depth, tiles.nr * region.lanes * 4, core):
        return 0.0
    again = -(-problem.rows.extent // tiles.mr) - 1
    lines = -(-int(problem.n) // region.lanes) * depth * region.lanes * 4
    return contract_cost.seconds(again * lines / core.bandwidth[1])
