"""What Winograd's algorithm costs: its contractions as `contract_cost` prices them, and both transforms."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost
from dlc.targets.cpu.kernels.contract_problem import Contraction, Schedule
from dlc.targets.cpu.kernels.contract_winograd_plan import FORMS, Matrix, Plan, declines, inner, plan_of

_WEIGHT_COST = 64  # instructions to load, widen, transform and store one vector of weights
_EPILOGUE = 2  # instructions to begin the epilogue of an output


def _tiles(plan: Plan) -> int:
    """Tiles of all images, whose number may be a guess."""
    return prod(plan.grid) * prod(contract_cost.guessed(axis.extent) for axis in plan.image.images)


def _blocks(tiles: int, most: int, rows: int) -> list[int]:
    """Sizes of blocks worth trying: all tiles or as many as there is room for, half, ...; whole register tiles."""
    sizes, size = {tiles} if tiles <= most else set(), min(tiles, most)
    while size:
        sizes.add(size // rows * rows or size)
        size = size // 2 if size >= 2 * rows else 0
    return sorted(sizes)


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """Schedules: `tile`; `mr`, `nr`, `unroll` of the contractions, in panels of `nr` vectors; `block` tiles."""
    result = []
    for form in FORMS.values():
        if declines(problem, isa, form) is not None:
            continue
        plan = Plan(problem, isa, form)
        tiles = _tiles(plan)
        for schedule in contract_cost.candidates(plan.product(tiles, plan.vectors), isa, machine):
            if schedule.hot == "w":
                mine = replace(schedule, unit="winograd", tile=form.out)
                sizes = _blocks(tiles, plan.most_tiles(schedule.nr), schedule.mr)
                result += [replace(mine, block=size) for size in sizes]
    return result


def predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The contractions of all blocks and panels, and the transforms."""
    plan = plan_of(problem, schedule, isa)
    tiles, vectors = _tiles(plan), plan.vectors
    total = 0.0
    for count, size in contract_cost.pieces(tiles, schedule.block):
        for panels, width in contract_cost.pieces(vectors, schedule.nr):
            beside = plan.u_bytes * (1 - width / vectors)  # all other panels come before this one does again
            panel = plan.product(size, width)
            seconds = contract_cost.predicted_seconds(panel, inner(schedule), isa, machine, beside)
            total += count * panels * seconds
    return total + contract_cost.seconds(_transforms(plan, schedule, machine, tiles), machine)


def _sums(factors: tuple[Matrix, ...]) -> int:
    """Additions of one transform of one line."""
    return sum(max(0, sum(1 for f in row if f) - 1) for matrix in factors for row in matrix)


def _transforms(plan: Plan, schedule: Schedule, machine: Machine, tiles: int) -> float:
    """Cycles of both transforms and, for integers, that of the weights."""
    form, isa, core = plan.form, plan.isa, contract_cost.core_of(plan.isa, machine)
    # Both load all points; the first one widens integers and stores, the last one begins the epilogues. What does not
    # fit the registers between columns and lines is stored and loaded once more.
    spilled = 2 * max(0, form.points - isa.registers)
    forward = (2 + plan.integer) * form.points + 2 * form.side * _sums(form.inputs) + spilled
    backward = form.points + (form.side + form.out) * _sums(form.outputs) + spilled + _EPILOGUE * form.out**2
    vectors = plan.point_stride / isa.lanes(16 if plan.integer else 32), plan.vectors
    cycles = (forward * vectors[0] + backward * vectors[1]) / core.vectors
    cycles += form.out**2 * contract_cost.STORE_COST * plan.vectors
    # V is written here and M is read; the contractions do the reverse.
    moved = 4 * form.points * isa.lanes() * plan.vectors + plan.v_bytes * plan.v_stride
    level = contract_cost.level_of(plan.tile_bytes(schedule.nr) * schedule.block, machine)
    traffic = 0.0 if level == 0 else moved / core.bandwidth[level]
    weights = plan.u_size / isa.lanes(16) / form.points * _WEIGHT_COST / core.vectors
    return contract_cost.together(cycles, traffic) * tiles + weights * plan.integer
