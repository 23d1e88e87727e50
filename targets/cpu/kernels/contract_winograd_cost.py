"""What Winograd's algorithm costs: its contractions as `contract_cost` prices them, and both transforms."""

from __future__ import annotations

from dataclasses import replace

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost, contract_problem
from dlc.targets.cpu.kernels import contract_winograd_plan as plan
from dlc.targets.cpu.kernels.contract_problem import Contraction, Schedule

_WEIGHT_COST = 64  # instructions to load, widen, transform and store one vector of weights
_FORWARD = 4 * plan.POINTS  # to load 16 vectors of inputs, transform and store them,
_WIDEN = plan.POINTS  # to widen them,
_BACKWARD = plan.POINTS + 24 + 8  # to load 16 vectors of sums, transform them and begin the epilogue of four


def _blocks(tiles: int, most: int, rows: int) -> list[int]:
    """Sizes of blocks worth trying: all tiles or as many as there is room for, half, ...; whole register tiles."""
    sizes, size = [], min(tiles, most)
    while size:
        sizes.append(size if size in (tiles, most) and size < rows else size // rows * rows or size)
        size //= 2
        if size < rows:
            break
    return [tiles, *sizes] if tiles <= most else sizes


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """Schedules: `mr`, `nr`, `unroll` of the contractions; panels of `nr` vectors; `block` tiles."""
    tiles, vectors = contract_cost.guessed(plan.image_of(problem).tiles), contract_problem.vectors_of(problem, isa)
    result = []
    for schedule in contract_cost.candidates(plan.product_of(problem, isa, tiles, vectors), isa, machine):
        if schedule.hot == "w":
            most = plan.most_tiles(problem, isa, schedule.nr)
            sizes = sorted(set(_blocks(tiles, most, schedule.mr)))
            result += [replace(schedule, unit="winograd", block=size) for size in sizes]
    return result


def predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The slower of computing and moving, and a part of the other."""
    tiles, vectors = contract_cost.guessed(plan.image_of(problem).tiles), contract_problem.vectors_of(problem, isa)
    u_bytes = plan.packed_points(problem, isa) * (2 if plan.in_integers(problem) else 4)
    total = 0.0
    for count, size in contract_cost.pieces(tiles, schedule.block):
        for panels, width in contract_cost.pieces(vectors, schedule.nr):
            panel = plan.product_of(problem, isa, size, width)
            beside = u_bytes * (1 - width / vectors)  # all other panels come before this one does again
            seconds = contract_cost.predicted_seconds(panel, plan.inner(schedule), isa, machine, beside)
            total += count * panels * seconds
    return total + contract_cost.seconds(_transforms(problem, schedule, isa, machine, tiles), machine)


def _transforms(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine, tiles: int) -> float:
    """Cycles of both transforms and, for integers, that of the weights."""
    core, integer, channels = contract_cost.core_of(isa, machine), plan.in_integers(problem), plan.point_stride(problem)
    vectors = contract_problem.vectors_of(problem, isa)
    forward = (_FORWARD + _WIDEN * integer) * channels / isa.lanes(16 if integer else 32)
    backward = _BACKWARD * vectors
    cycles = (forward + backward) / core.vectors + 4 * contract_cost.STORE_COST * vectors
    # What a block writes to scratch and reads again.
    moved = 4 * plan.POINTS * isa.lanes() * vectors + (2 if integer else 4) * plan.v_stride(problem)
    level = contract_cost.level_of(plan.tile_bytes(problem, isa, schedule.nr) * schedule.block, machine)
    cycles += 0.0 if level == 0 else 2 * moved / core.bandwidth[level]
    weights = plan.packed_points(problem, isa) / isa.lanes(16) / plan.POINTS * _WEIGHT_COST / core.vectors
    return cycles * tiles + weights * integer
