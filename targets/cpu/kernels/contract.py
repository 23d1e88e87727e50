"""Dense contractions: matmul, GEMV, batched matmul and convolution, on vector units and on tiles.

The problem is described in `contract_problem`. Vectors: priced in `contract_cost`, emitted by `contract_emit`. Tiles:
`contract_amx_plan`, `contract_amx_cost`, `contract_amx`. s16 pairs: `contract_wide`, `contract_winograd`.
A schedule says which of them it is for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import (
    contract_amx,
    contract_amx_cost,
    contract_amx_plan,
    contract_cost,
    contract_emit,
    contract_problem,
    contract_wide,
    contract_winograd,
)
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share
from dlc.targets.cpu.kernels.contract_emit import Store, Task
from dlc.targets.cpu.kernels.contract_problem import (
    Axis,
    Contraction,
    Run,
    Schedule,
    conv_contraction,
    conv_weight,
    matmul_contraction,
)

__all__ = [
    "Axis",
    "Contraction",
    "Run",
    "Schedule",
    "Store",
    "candidates",
    "choose",
    "conv_contraction",
    "conv_weight",
    "emit",
    "matmul_contraction",
    "pack",
    "packed_size",
    "predicted_seconds",
]


# Units that prepare activations in scratch before they multiply.
_IN_SCRATCH: dict[str, Any] = {"wide": contract_wide, "winograd": contract_winograd}


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """All schedules that make sense, on every unit that takes the problem."""
    note = contract_winograd.note(problem, isa)
    vectors = [replace(schedule, note=note) for schedule in contract_cost.candidates(problem, isa, machine)]
    for unit in _IN_SCRATCH.values():
        if unit.declines(problem, isa) is None:
            vectors += unit.candidates(problem, isa, machine)
    if isa.dot != "amx":
        return vectors
    reason = contract_amx_plan.declines(problem)
    if reason is not None:
        return [replace(schedule, note=reason) for schedule in vectors]
    note = "vectors are predicted to be faster than tiles"
    return [*contract_amx_cost.amx_candidates(problem), *(replace(schedule, note=note) for schedule in vectors)]


def predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The time that the cost model of the schedule's unit expects."""
    if schedule.unit == "amx":
        return contract_amx_cost.amx_predicted_seconds(problem, schedule, isa, machine)
    if schedule.unit in _IN_SCRATCH:
        return _IN_SCRATCH[schedule.unit].predicted_seconds(problem, schedule, isa, machine)
    return contract_cost.predicted_seconds(problem, schedule, isa, machine)


def choose(problem: Contraction, isa: Isa, machine: Machine) -> Schedule:
    """The candidate of the least predicted time."""
    every = candidates(problem, isa, machine)
    return min(every, key=lambda schedule: predicted_seconds(problem, schedule, isa, machine))


def packed_size(problem: Contraction, schedule: Schedule, isa: Isa) -> int:
    """Elements of the packed weights."""
    if schedule.unit == "amx":
        return contract_amx_plan.packed_bytes(problem)
    if schedule.unit in _IN_SCRATCH:
        return _IN_SCRATCH[schedule.unit].packed_size(problem, schedule, isa)
    return contract_problem.packed_size(problem, isa)


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """W (groups, total k in run order, n) as the schedule's kernel reads it."""
    if schedule.unit == "amx":
        return contract_amx_plan.pack_tiles(problem, weight)
    if schedule.unit in _IN_SCRATCH:
        return _IN_SCRATCH[schedule.unit].pack(problem, schedule, isa, weight)
    return contract_problem.pack(problem, schedule, isa, weight)


def emit(
    problem: Contraction,
    schedule: Schedule,
    isa: Isa,
    a: Operand,
    w: Operand,
    init: Operand | None,
    store: Store,
    share: Share | None = None,
    turn: Expr = None,
) -> None:
    """Emit the contraction inside an open `kernel(...)`; see `contract_emit.Task`. Tiles take no `share`, no `turn`."""
    emitters = {"amx": contract_amx.emit_tiles, "vector": contract_emit.emit}
    emitters |= {name: unit.emit for name, unit in _IN_SCRATCH.items()}
    emitters[schedule.unit](Task(problem, schedule, isa, a, w, init, store, share, turn))
