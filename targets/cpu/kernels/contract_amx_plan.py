"""What a contraction looks like to tiles: which problems they take, how k is cut into steps, how weights are packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlc.errors import DlcError
from dlc.targets.cpu.kernels.amx import GROUP, LANES, ROW_BYTES, ROWS
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction
from dlc.targets.layout import simplify


def declines(problem: Contraction) -> str | None:
    """Why the tiles cannot compute `problem`; None when they can."""
    if (problem.a_dtype, problem.w_dtype) != ("uint8", "int8"):
        return f"tiles multiply uint8 by int8, not {problem.a_dtype} by {problem.w_dtype}"
    if problem.w_k_stride is not None:
        return "tiles need constant weights: an activation does not lie in groups of four k"
    lengths = [run.length for run in problem.runs]
    if not all(isinstance(length, int) for length in lengths):
        return "the length of the reduction is not known"
    if min(lengths) < GROUP:
        return f"{min(lengths)} neighbouring activations are less than the {GROUP} that tiles multiply at once"
    return None


@dataclass(frozen=True)
class Step:
    """One tile's worth of k: it begins `begin` elements into run number `run`; weights before `fresh` are zero."""

    run: int
    begin: int
    fresh: int


def step_bytes(problem: Contraction) -> int:
    """Bytes of k in one step: as few as give the least number of steps, a multiple of 4, within the shortest run."""
    longest, shortest = (f(int(run.length) for run in problem.runs) for f in (max, min))
    width = min(ROW_BYTES, shortest // GROUP * GROUP)
    even = -(-longest // -(-longest // width))
    return min(width, -(-even // GROUP) * GROUP)


def steps_of(problem: Contraction) -> list[Step]:
    """All steps in order. The last one of a run ends where the run ends: nothing behind it is ever read."""
    width, result = step_bytes(problem), []
    for number, run in enumerate(problem.runs):
        for at in range(0, int(run.length), width):
            begin = min(at, int(run.length) - width)
            result.append(Step(number, begin, at - begin))
    return result


def packed_bytes(problem: Contraction) -> int:
    """Size of the packed weights."""
    vectors = -(-int(problem.n) // LANES)
    return problem.groups * vectors * len(steps_of(problem)) * step_bytes(problem) * LANES


def pack_tiles(problem: Contraction, weight: np.ndarray) -> np.ndarray:
    """Pack W (groups, total k in run order, n) as [group][n / 16][step][k / 4][16 channels][4 k], padded with zeros.

    Each 16 channels are one stream, whatever the schedule.
    """
    lengths = [int(run.length) for run in problem.runs]
    n, vectors, width = int(problem.n), -(-int(problem.n) // LANES), step_bytes(problem)
    if weight.shape != (problem.groups, sum(lengths), n):
        raise DlcError(f"weight is {weight.shape}, the contraction needs {(problem.groups, sum(lengths), n)}")
    steps = steps_of(problem)
    wide = np.zeros((problem.groups, len(steps), width, vectors * LANES), problem.w_dtype)
    for number, step in enumerate(steps):
        first = sum(lengths[: step.run]) + step.begin
        wide[:, number, step.fresh :, :n] = weight[:, first + step.fresh : first + width]
    split = wide.reshape(problem.groups, len(steps), width // GROUP, GROUP, vectors, LANES)
    return np.ascontiguousarray(split.transpose(0, 4, 1, 2, 5, 3)).reshape(-1)


@dataclass(frozen=True)
class Rows:
    """The rows that tiles run over.

    Attributes:
        outer: loops outside them.
        extent, a_stride: the rows, those that are dropped included.
        line, kept: when rows run through the last outer axis: rows from one of its steps to the next, and how many of
            them exist; 0 otherwise.
    """

    outer: tuple[Axis, ...]
    extent: Expr
    a_stride: Expr
    line: int = 0
    kept: int = 0


def flat_rows(problem: Contraction) -> Rows | None:
    """Rows that run through the last outer axis, or None where its steps are no whole number of rows apart.

    With a stride of one this is the flat image, halo included: tiles are full although its lines are short.
    """
    if not problem.outer:
        return None
    last, rows = problem.outer[-1], problem.rows
    if not (isinstance(rows.extent, int) and isinstance(rows.a_stride, int) and isinstance(last.a_stride, int)):
        return None
    if rows.a_stride <= 0 or last.a_stride % rows.a_stride or last.a_stride // rows.a_stride < rows.extent:
        return None
    line = last.a_stride // rows.a_stride
    extent = simplify((last.extent - 1) * line + rows.extent)
    return Rows(problem.outer[:-1], extent, rows.a_stride, line, rows.extent)


def rows_of(problem: Contraction, flat: bool) -> Rows:
    """The rows of a schedule."""
    rows = flat_rows(problem) if flat else None
    return rows or Rows(problem.outer, problem.rows.extent, problem.rows.a_stride)


def tile_rows(extent: int) -> tuple[int, int]:
    """(tiles, rows of each) for a known extent: the fewest tiles, all alike; the last one overlaps backwards."""
    tiles = -(-extent // ROWS)
    return tiles, -(-extent // tiles)
