"""The analytic cost of a contraction on tiles: multiplies, loads, stores, caches. No tables of sizes, no measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.amx import GROUP, LANES, ROW_BYTES, ROWS
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_amx import PARTIAL_BLOCKS
from dlc.targets.cpu.kernels.contract_amx_plan import flat_rows, rows_of, step_bytes, steps_of, tile_rows
from dlc.targets.cpu.kernels.contract_cost import GUESS, core_of, hertz, seconds, together
from dlc.targets.cpu.kernels.contract_problem import Contraction, Schedule

_LATENCY = 52  # cycles from one multiply-add to the next on the same accumulator tile
_LOADS = 2  # rows of tiles loaded per cycle
_TURN = 8  # cycles lost when a tile is loaded into a register that the multiply-add before has just read
_BLOCK_OVERHEAD = 60  # cycles for a block's addresses and to fill and drain the tile pipeline
_STORE_COST = 4.0  # cycles per accumulator vector for a short epilogue
_HOT_BYTES = 32 << 10  # of L1 for the operand that stays there
_MAX_PREFETCH = 32  # lines a step
SHAPES = ((2, 2), (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1))  # tiles of rows x of channels


def _int(extent: Expr) -> int:
    return extent if isinstance(extent, int) else GUESS


@dataclass(frozen=True)
class _Sizes:
    """The problem in numbers, symbolic extents guessed."""

    outer: int  # steps of all loops outside the rows
    extent: int  # rows, dropped ones included
    kept: float  # the part of them that is stored
    tiles: int
    height: int
    row_bytes: int
    vectors: int
    steps: int
    width: int
    row_length: int  # bytes of all runs
    run_count: int

    @staticmethod
    def of(problem: Contraction, flat: bool) -> _Sizes:
        rows = rows_of(problem, flat)
        extent = max(1, _int(rows.extent))
        tiles, height = tile_rows(extent)
        return _Sizes(
            outer=prod(_int(axis.extent) for axis in rows.outer),
            extent=extent,
            kept=rows.kept / rows.line if rows.line else 1.0,
            tiles=tiles,
            height=height,
            row_bytes=_int(rows.a_stride),
            vectors=-(-int(problem.n) // LANES),
            steps=len(steps_of(problem)),
            width=step_bytes(problem),
            row_length=sum(int(run.length) for run in problem.runs),
            run_count=len(problem.runs),
        )

    def a_bytes(self, rows: int, part: float = 1.0) -> float:
        """Distinct activations under `rows` neighbouring rows, for that part of k."""
        together = self.row_length + (rows - 1) * self.row_bytes * self.run_count
        return part * min(self.row_length * rows, together)

    @property
    def w_bytes(self) -> int:
        """Packed weights of 16 channels."""
        return self.steps * self.width * LANES


def _pieces(extent: int, size: int) -> list[tuple[int, int]]:
    full, rest = divmod(extent, size)
    return [(count, piece) for count, piece in ((full, size), (1 if rest else 0, rest)) if count]


def _step_cycles(sizes: _Sizes, ti: int, tj: int) -> float:
    """One step of a block with both operands in L1."""
    multiply = max(sizes.height, sizes.width // GROUP)
    # Rows that do not lie on cache lines take two accesses each.
    split = 1 if sizes.row_bytes % ROW_BYTES == 0 and sizes.width == ROW_BYTES else 2
    loads = (ti * sizes.height * split + tj * sizes.width // GROUP) / _LOADS
    # Registers hold two tiles of each operand; more of one of them take turns.
    return max(ti * tj * multiply, loads, _LATENCY) + _TURN * max(0, max(ti, tj) - 2)


def _compute_cycles(sizes: _Sizes, schedule: Schedule) -> float:
    visits = -(-sizes.steps // schedule.k_block) if schedule.k_block else 1
    total = 0.0
    for row_count, ti in _pieces(sizes.tiles, schedule.mr // ROWS):
        for column_count, tj in _pieces(sizes.vectors, schedule.nr):
            # Start values or partial sums are loaded at two rows a cycle and written at one.
            turns = visits * (_BLOCK_OVERHEAD + 1.5 * ti * tj * sizes.height)
            tiles = sizes.steps * _step_cycles(sizes, ti, tj) + turns
            store = _STORE_COST * ti * tj * sizes.height * sizes.kept
            total += row_count * column_count * (max(tiles, store) + 0.25 * min(tiles, store))
    return total * sizes.outer


def _level(size: float, machine: Machine) -> int:
    for level, capacity in enumerate((_HOT_BYTES / 0.75, machine.l2, machine.l3)):
        if size <= 0.75 * capacity:
            return level
    return 3


def _traffic_cycles(problem: Contraction, sizes: _Sizes, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """Cycles to bring the operands into the tiles beyond what L1 delivers, for one group."""
    ti, tj = schedule.mr // ROWS, schedule.nr
    row_blocks, column_blocks = -(-sizes.tiles // ti) * sizes.outer, -(-sizes.vectors // tj)
    part = min(1.0, schedule.k_block / sizes.steps) if schedule.k_block else 1.0
    a_total, w_total = sizes.a_bytes(sizes.extent) * sizes.outer, float(sizes.w_bytes * sizes.vectors)
    a_block, w_block = sizes.a_bytes(min(ti * sizes.height, sizes.extent)), float(sizes.w_bytes * tj)
    bandwidth = core_of(isa, machine).bandwidth
    company = PARTIAL_BLOCKS if schedule.k_block else 1 << 30

    def cycles(volume: float, resident: float) -> float:
        level = _level(resident, machine)
        return 0.0 if level == 0 else volume / bandwidth[level]

    everything = (a_total + w_total) * problem.groups
    total = cycles(w_total, everything) + cycles(a_total, everything)
    if schedule.hot == "w":
        # Weights again for every block of rows, unless the panel stays in L1; activations again for every panel.
        again = w_total * (row_blocks - 1 if part == 1.0 else -(-row_blocks // company) - 1)
        total += cycles(again, w_block * part if part == 1.0 else w_block + a_total)
        total += cycles(a_total * (column_blocks - 1), a_total + w_block)
    else:
        again = row_blocks * a_block * (column_blocks - 1 if part == 1.0 else -(-column_blocks // company) - 1)
        total += cycles(again, a_block)
        total += cycles(w_total * (row_blocks - 1), w_total + a_block)
    if schedule.k_block:  # partial sums come from L2 and go back
        visits = -(-sizes.steps // schedule.k_block)
        total += 2 * row_blocks * column_blocks * visits * ti * tj * ROWS * ROW_BYTES / bandwidth[1]
    return total


def amx_predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """Time of a contraction on tiles: the slower of computing and moving, and a part of the other."""
    sizes = _Sizes.of(problem, schedule.flat)
    compute = _compute_cycles(sizes, schedule)
    traffic = _traffic_cycles(problem, sizes, schedule, isa, machine)
    return seconds(problem.groups * together(compute, traffic), machine)


def amx_utilisation(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The part of the multiplier's peak that the prediction means, counting wanted products only."""
    products = problem.groups * int(problem.n) * sum(int(run.length) for run in problem.runs)
    products *= prod(_int(axis.extent) for axis in (*problem.outer, problem.rows))
    peak = ROWS * LANES * ROW_BYTES / ROWS  # products of one full multiply-add over its 16 cycles
    return products / peak / (amx_predicted_seconds(problem, schedule, isa, machine) * hertz(machine))


def _k_blocks(sizes: _Sizes, ti: int, tj: int, hot: str) -> Iterator[int]:
    """Not cutting k, and the fewest equal cuts with which the hot operand stays in L1."""
    yield 0
    panel = sizes.a_bytes(min(ti * sizes.height, sizes.extent)) if hot == "a" else sizes.w_bytes * tj
    cuts = -(-int(panel) // _HOT_BYTES)
    size = -(-sizes.steps // cuts)
    inner = sizes.vectors // tj if hot == "a" else sizes.tiles // ti
    if cuts > 1 and size > 1 and inner > 1:
        yield size


def _prefetch(sizes: _Sizes, ti: int, tj: int) -> int:
    """Lines a step that bring a panel of weights into L2 while its predecessor is used."""
    row_blocks = sizes.outer * -(-sizes.tiles // ti)
    return min(_MAX_PREFETCH, -(-tj * sizes.width * LANES // (64 * row_blocks)))


def amx_candidates(problem: Contraction) -> list[Schedule]:
    """All schedules that make sense for tiles; the problem must not be declined."""
    result = []
    for flat in (False, True):
        if flat and flat_rows(problem) is None:
            continue
        sizes = _Sizes.of(problem, flat)
        for ti, tj in SHAPES:
            if tj > sizes.vectors or ti > sizes.tiles:
                continue
            for hot in ("w", "a"):
                prefetch = _prefetch(sizes, ti, tj) if hot == "w" else 0
                for size in _k_blocks(sizes, ti, tj, hot):
                    result.append(
                        Schedule(
                            ti * ROWS, tj, hot=hot, prefetch=prefetch, unit="amx", k_block=size, flat=flat
                        )
                    )  # fmt: skip
    return result
