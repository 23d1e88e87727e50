"""Where to cut a graph into stages: dynamic programming over the cut points in execution order.

Among all ways to cut the nodes into that many runs, each of which fits its device, the one whose slowest stage is
fastest; among equals, the one that sends least. In a pipeline the slowest stage sets the pace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlc.errors import DlcError
from dlc.ir.graph import Origin
from dlc.targets.multi.cost import Costs, Stage

Objective = Callable[[Stage], tuple[float, int] | None]


def best_cut(costs: Costs, count: int, objective: Objective) -> list[Stage] | None:
    """The stages with the least maximum of `objective`'s first number, then the least sum of the second.

    Args:
        costs: of the graph's nodes.
        count: how many stages.
        objective: of one stage; None where the stage is not possible.

    Returns:
        The stages in order; None where there is no way.
    """
    size = len(costs.nodes)
    # best[k][j]: (slowest, sum, last stage) of the first j nodes in k stages.
    best: list[list[tuple[float, int, Stage | None] | None]] = [[None] * (size + 1) for _ in range(count + 1)]
    best[0][0] = (0.0, 0, None)
    for begin in range(size):
        if all(row[begin] is None for row in best):
            continue
        for stage in costs.stages_from(begin):
            value = objective(stage)
            if value is None:
                continue
            for number in range(count):
                before = best[number][begin]
                if before is None:
                    continue
                reached = (max(before[0], value[0]), before[1] + value[1])
                known = best[number + 1][stage.end]
                if known is None or reached < known[:2]:
                    best[number + 1][stage.end] = (*reached, stage)
    stages: list[Stage] = []
    position = size
    for number in range(count, 0, -1):
        entry = best[number][position]
        if entry is None or entry[2] is None:
            return None
        stages.insert(0, entry[2])
        position = entry[2].begin
    return stages


def cut(costs: Costs, count: int, label: str) -> list[Stage]:
    """The balanced stages that fit the device's memory.

    Raises:
        DlcError: the graph has fewer nodes than stages, or no cut fits; says what is there and what is missing.
    """
    size, memory = len(costs.nodes), costs.device.memory
    if size < count:
        raise DlcError(f"{label}: the model has {size} operators, too few for {count} stages")

    def fitting(stage: Stage) -> tuple[float, int] | None:
        return (stage.seconds, stage.received) if stage.possible and stage.memory <= memory else None

    stages = best_cut(costs, count, fitting)
    if stages is not None:
        return stages
    least = best_cut(costs, count, lambda stage: (stage.memory, stage.received) if stage.possible else None)
    if least is None:
        text = "where the size of all that crosses it is known, and tells every symbolic extent"
        raise DlcError(f"{label}: there is no cut into {count} stages {text}")
    worst = max(least, key=lambda stage: stage.memory)
    raise DlcError(
        f"{label}: no cut into {count} stages fits: at best, stage {least.index(worst)} needs "
        f"{megabytes(worst.memory)} (weights {megabytes(worst.weights)}, activations {megabytes(worst.activations)}) "
        f"and a device has {megabytes(memory)}; take more stages or larger devices"
    )


def megabytes(count: int) -> str:
    """A number of bytes for messages."""
    return f"{count / 1e6:.3g} MB"


def reasons(costs: Costs, stages: Sequence[Stage]) -> list[tuple[Origin, str]]:
    """For each cut: the node behind it, and why it is not one node earlier or later, where balance would gain by it."""
    return [_reason(costs, stages, number) for number in range(1, len(stages))]


def _reason(costs: Costs, stages: Sequence[Stage], number: int) -> tuple[Origin, str]:
    left, right = stages[number - 1], stages[number]
    origin = costs.nodes[right.begin].origin
    text = f"stage {number - 1} is predicted at {_us(left.seconds)}, stage {number} at {_us(right.seconds)}"
    # The neighbouring cut that takes work from the slower side.
    step = 1 if right.seconds > left.seconds else -1
    end = left.end + step
    if not left.begin < end < right.end:
        return origin, f"{text}: the slower one is a single operator"
    moved = [_stage(costs, left.begin, end), _stage(costs, end, right.end)]
    side = "later" if step == 1 else "earlier"
    text += f"; cut one operator {side}, {_us(moved[0].seconds)} and {_us(moved[1].seconds)}"
    heavy = next((s for s in moved if s.memory > costs.device.memory), None)
    if heavy is not None:
        text += f", which would need {megabytes(heavy.memory)} of a device's {megabytes(costs.device.memory)}"
    elif costs.broken[end] > costs.broken[left.end]:
        text += ", and it would part an operator from what is computed in its registers"
    return origin, text


def _stage(costs: Costs, begin: int, end: int) -> Stage:
    return next(s for s in costs.stages_from(begin) if s.end == end)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us"
