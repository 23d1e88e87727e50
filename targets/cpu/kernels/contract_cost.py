"""One analytic cost of a contraction's schedules: ports, registers, caches. No tables of sizes, no measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from dlc.hardware import Machine, Speeds
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_problem import Contraction, Schedule, groups_of
from dlc.targets.cpu.kernels.dot import Dot, dot_for

GUESS = 64  # extent assumed for a symbolic dimension: large enough for full tiles to count, small enough for caches
_HERTZ = 3e9  # of a machine that was not measured; the choice of tiles does not depend on it
_UNROLLED = 32  # multiply-adds per iteration of the innermost loop that hide its bookkeeping
TILE_OVERHEAD = 24  # cycles to set up a tile's addresses, fill the pipeline and drain it
_WAY = 4096  # bytes of one way of L1
_OURS = 0.75  # part of a cache that is ours: outputs, stacks and what streams through it take the rest
_STRAIGHT = 8  # steps of a run up to which LLVM unrolls its loop
_CROWD = 10  # registers that straight-line code wants besides those of the tile
_FRICTION = 0.05  # cycles that a load costs although there would be a port for it,
_CROWDED_FRICTION = 0.25  # and where products and sums go through ports of their own, all of which are busy
STORE_COST = 4.0  # cycles per accumulator vector for its start value and a short epilogue


@dataclass(frozen=True)
class Core:
    """What one core does per cycle with the vectors of one instruction set.

    Attributes:
        multiplies: vector multiplications or multiply-adds.
        vectors: vector arithmetic of any kind; the multipliers are some of these ports.
        loads: vector loads; a broadcast of a scalar counts as one.
        issue: instructions of any kind.
        latency: cycles from one multiply-add to the next on the same accumulator.
        bandwidth: bytes that arrive from (L1, L2, L3, memory).
        l1_ways: lines of one set of L1.
    """

    multiplies: float
    vectors: float
    loads: float
    issue: float
    latency: float
    bandwidth: tuple[float, float, float, float]
    l1_ways: int


def core_of(isa: Isa, machine: Machine) -> Core:
    """The core of `machine` when it runs `isa`."""
    # AMD before Zen 5 executes 512-bit instructions in two halves.
    halves = isa.vector_bits == 512 and "AMD" in machine.model and "avx512_vp2intersect" not in machine.features
    rate = loads = 1.0 if halves else 2.0
    # Intel closes one of its three vector ports while 512-bit instructions run; AMD has four, of 256 bits.
    vectors = 2.0 if isa.vector_bits == 512 else 4.0 if "AMD" in machine.model else 3.0
    l2 = 48.0 if isa.dot == "amx" else 28.0  # cores with tiles have the wider path that tiles need
    bandwidth = (rate * isa.vector_bits / 8, l2, 12.0, 5.0)
    if machine.speeds is not None:
        _, l2, l3, memory = (b / machine.speeds.hertz for b in machine.speeds.bandwidth)
        bandwidth = (bandwidth[0], l2, l3, memory)
        rate = _multiplies(isa, machine.speeds, rate)
    return Core(rate, vectors, loads, 6.0, 4.0, bandwidth, machine.l1 // _WAY)


def _multiplies(isa: Isa, speeds: Speeds, usual: float) -> float:
    """Vector multiply-adds a cycle as measured; `usual` where they are two instructions, or were not measured."""
    found = speeds.multiply_adds.get(isa.name) if isa.has_fma else None
    return usual if found is None else found / speeds.hertz / isa.lanes()


def guessed(extent: Expr) -> int:
    """An extent as a number."""
    return extent if isinstance(extent, int) else GUESS


def _bytes(dtype: str) -> int:
    return np.dtype(dtype).itemsize


@dataclass(frozen=True)
class _Sizes:
    """The problem in numbers, symbolic extents guessed."""

    rows: int
    row_bytes: int  # between neighbouring rows of A
    overlapping: bool  # rows share activations
    outer: tuple[int, ...]
    vectors: int
    steps: int  # of all runs
    run_steps: int  # of the longest run
    dot: Dot
    lanes: int

    @staticmethod
    def of(problem: Contraction, isa: Isa) -> _Sizes:
        dot = dot_for(isa, problem.a_dtype, problem.w_dtype)
        steps = [guessed(groups_of(run.length, dot)) for run in problem.runs]
        stride = guessed(problem.rows.a_stride)
        return _Sizes(
            rows=guessed(problem.rows.extent),
            row_bytes=stride * _bytes(problem.a_dtype),
            overlapping=len(steps) > 1 or guessed(problem.runs[0].length) > stride,
            outer=tuple(guessed(axis.extent) for axis in problem.outer),
            vectors=-(-guessed(problem.n) // isa.lanes()),
            steps=sum(steps),
            run_steps=max(steps),
            dot=dot,
            lanes=isa.lanes(),
        )


def registers_needed(dot: Dot, rows: int, vectors: int) -> int:
    """Vector registers that a tile keeps alive."""
    phases = len(dot.phases)
    temporary = 0 if dot.fused else 1
    if rows == 1 and dot.widen_cost == 0:
        return vectors + 1 + temporary  # weights are memory operands
    # LLVM loads the next operand before the last one is used up, where that is soon: a row's activation used once, or
    # a product that waits for its sum.
    ahead = 1 if vectors == 1 or temporary else 0
    return rows * vectors + vectors + phases + temporary + ahead


def pieces(extent: int, size: int) -> list[tuple[int, int]]:
    """(how many, size) of the full pieces of an extent, and of what is left."""
    full, rest = divmod(extent, size)
    return [(count, piece) for count, piece in ((full, size), (1 if rest else 0, rest)) if count]


def _tiles(sizes: _Sizes, schedule: Schedule) -> Iterator[tuple[int, int, int]]:
    """(how many, rows, vectors) of every kind of tile, per group."""
    outer = list(sizes.outer)
    if schedule.mo > 1:
        row_pieces = [(count, size * sizes.rows) for count, size in pieces(outer.pop(), schedule.mo)]
    else:
        row_pieces = pieces(sizes.rows, schedule.mr)
    for row_count, rows in row_pieces:
        for count, vectors in pieces(sizes.vectors, schedule.nr):
            yield prod(outer) * row_count * count, rows, vectors


def _step_cycles(sizes: _Sizes, core: Core, isa: Isa, rows: int, vectors: int, unroll: int) -> float:
    """Cycles that one group of k of one tile takes when all operands are in L1."""
    dot = sizes.dot
    multiplies = rows * vectors * dot.multiplies
    others = rows * vectors * dot.additions + rows * dot.spread_cost + vectors * dot.widen_cost
    loads = rows + vectors * len(dot.phases)
    if dot.split is not None:  # pairs come in one load; what is left of an odd number is widened by itself
        others, loads = others + vectors % 2, loads - vectors // 2
    # LLVM unrolls short runs and keeps the activations that overlapping rows share, until it runs out of registers.
    crowd = _CROWD if sizes.overlapping and sizes.run_steps <= _STRAIGHT and rows > 1 else 0
    spilled = max(0, registers_needed(dot, rows, vectors) + crowd - isa.registers)
    instructions = multiplies + others + loads + 3 / unroll + 2 * spilled
    busy = max(
        # Schedulers give the other instructions to all ports alike, those of the multipliers too.
        multiplies / core.multiplies + others / core.vectors,
        (loads + 2 * spilled) / core.loads,
        instructions / core.issue,
        core.latency * len(dot.phases),
    )
    friction = _FRICTION if dot.fused else _CROWDED_FRICTION
    return busy + friction * (loads + 2 * spilled) + _conflicts(sizes, core, rows)


def _conflicts(sizes: _Sizes, core: Core, rows: int) -> float:
    """Cycles lost per step when the rows of a tile compete for the same set of L1: they come from L2 every time.

    Rows whose distance is a multiple of the size of one way (a page: L1 is indexed by untranslated addresses) all lie
    in one set, which has only so many ways.
    """
    distinct = _WAY // gcd(max(64, sizes.row_bytes), _WAY) if sizes.row_bytes else rows
    if -(-rows // distinct) <= core.l1_ways:
        return 0.0
    return 64 * rows / core.bandwidth[1]


def rows_compete(step: int, rows: int, length: int, core: Core) -> bool:
    """Whether `length` bytes of each of `rows` rows, `step` bytes apart, do not fit L1 together: see `_conflicts`."""
    lines = -(-length // 64)
    sets = min(_WAY // 64, lines * (_WAY // gcd(step, _WAY)))
    return rows * lines > _OURS * sets * core.l1_ways


def level_of(size: float, machine: Machine) -> int:
    """Where data of `size` bytes that are used again and again stay: 0 for L1 to 3 for memory."""
    for level, capacity in enumerate((machine.l1, machine.l2, machine.l3)):
        if size <= _OURS * capacity:
            return level
    return 3


def _traffic_cycles(
    problem: Contraction, sizes: _Sizes, schedule: Schedule, core: Core, machine: Machine, beside: float
) -> tuple[float, float]:
    """Cycles to bring the operands into L1, for one group: the weights for the first time, and all else."""
    a_bytes = _bytes(problem.a_dtype)
    w_vector = sizes.steps * sizes.lanes * sizes.dot.group * _bytes(problem.w_dtype)
    rows_total = sizes.rows * prod(sizes.outer)
    row_tiles = max(1, rows_total / schedule.mr)
    channel_tiles = max(1, sizes.vectors / schedule.nr)
    length = sum(guessed(run.length) for run in problem.runs)
    span = (schedule.mr - 1) * guessed(problem.rows.a_stride)
    a_tile = a_bytes * min(length * schedule.mr, length + span * len(problem.runs))
    a_total = (
        a_bytes
        * sum(
            (extent - 1) * guessed(axis.a_stride)
            for axis, extent in zip((*problem.outer, problem.rows), (*sizes.outer, sizes.rows), strict=True)
        )
        + a_bytes * length
    )
    w_panel, w_total = w_vector * schedule.nr, w_vector * sizes.vectors

    def cycles(volume: float, resident: float) -> float:
        level = level_of(resident, machine)
        return 0.0 if level == 0 else volume / core.bandwidth[level]

    # Results have the activations' type. Lines are read to be written, those between two tiles by both: rows begin
    # anywhere unless they hold whole vectors.
    o_total = rows_total * sizes.vectors * sizes.lanes * a_bytes
    border = 1 / schedule.nr if guessed(problem.n) % sizes.lanes else 0.0
    everything = w_total * problem.groups + a_total + beside
    out = cycles(2 * o_total * (1 + border), everything + o_total * problem.groups)
    first = cycles(w_total, everything) + out
    if schedule.hot == "w":
        again = cycles(w_total * (row_tiles - 1), w_panel + 2 * a_tile)
        return first, again + cycles(a_tile * row_tiles * channel_tiles, w_panel + a_total)
    again = cycles(w_total * (row_tiles - 1), w_total + 2 * a_tile)
    streamed = cycles(a_tile * row_tiles, everything)
    return first, again + streamed + cycles(a_tile * row_tiles * (channel_tiles - 1), a_tile + w_panel)


def predicted_seconds(
    problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine, beside: float = 0.0
) -> float:
    """Time of a contraction under `schedule`: the slower of computing and moving, and a part of the other.

    `beside`: bytes that are used between this contraction and the next one of the same operands.
    """
    sizes, core = _Sizes.of(problem, isa), core_of(isa, machine)
    compute = 0.0
    for count, rows, vectors in _tiles(sizes, schedule):
        step = _step_cycles(sizes, core, isa, rows, vectors, schedule.unroll)
        compute += count * (sizes.steps * step + TILE_OVERHEAD + STORE_COST * rows * vectors)
    first, traffic = _traffic_cycles(problem, sizes, schedule, core, machine, beside)
    # While the weights come for the first time, only the first tiles of rows have something to compute.
    begin = compute / max(1.0, sizes.rows * prod(sizes.outer) / schedule.mr)
    return seconds(problem.groups * (together(begin, first) + together(compute - begin, traffic)), machine)


def together(compute: float, traffic: float) -> float:
    """Cycles of both: loads overlap with arithmetic, but never entirely."""
    return max(compute, traffic) + 0.25 * min(compute, traffic)


def seconds(cycles: float, machine: Machine) -> float:
    """Cycles as time."""
    return cycles / hertz(machine)


def hertz(machine: Machine) -> float:
    """The machine's clock; a usual one where it was not measured."""
    return machine.speeds.hertz if machine.speeds is not None else _HERTZ


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """All schedules that make sense: tiles that fit the registers, in both loop orders."""
    sizes = _Sizes.of(problem, isa)
    shapes: list[tuple[int, int, int]] = []
    for nr in range(1, min(sizes.vectors, isa.registers) + 1):
        for mr in range(1, min(sizes.rows, isa.registers) + 1):
            if registers_needed(sizes.dot, mr, nr) <= isa.registers:
                shapes.append((mr, nr, 1))
        joinable = problem.outer and isinstance(problem.rows.extent, int) and problem.outer[-1].w_stride is not None
        if joinable and isinstance(problem.outer[-1].w_stride, int) and problem.outer[-1].w_stride == 0:
            for mo in range(2, min(sizes.outer[-1], isa.registers // sizes.rows) + 1):
                if registers_needed(sizes.dot, mo * sizes.rows, nr) <= isa.registers:
                    shapes.append((mo * sizes.rows, nr, mo))
    result = []
    for mr, nr, mo in shapes:
        unroll = max(1, min(8, _UNROLLED // (mr * nr)))
        unroll = 1 << unroll.bit_length() - 1
        result += [Schedule(mr, nr, mo, hot, unroll) for hot in ("w", "a")]
    return result


def choose(problem: Contraction, isa: Isa, machine: Machine) -> Schedule:
    """The candidate of the least predicted time."""
    return min(
        candidates(problem, isa, machine), key=lambda schedule: predicted_seconds(problem, schedule, isa, machine)
    )
