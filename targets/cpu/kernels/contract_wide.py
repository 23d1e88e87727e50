"""Integer contractions whose activations are widened to s16 once, in scratch, instead of at every multiplication.

Where the multiplier takes s16 pairs, spreading a group of bytes costs a mask and a shift beside the load, for every
vector of channels and every tap again. A block of lines (or of rows, without outer axes) is copied instead, with its
strides; the contraction then reads s16 activations, and one instruction spreads a pair of them over a vector.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_cost, contract_emit, contract_problem
from dlc.targets.cpu.kernels.amx import aligned_stack
from dlc.targets.cpu.kernels.builder import Expr, Operand, let, vector_type
from dlc.targets.cpu.kernels.contract_emit import Task
from dlc.targets.cpu.kernels.contract_loops import cut, each, loop, loops, shared, shared_loop, whole_index
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction, Schedule
from dlc.targets.layout import Layout, simplify

MOST_SCRATCH = 512 << 10  # bytes: it lies on the stack
_COPY = 3  # instructions to load, widen and store one vector
_FEW_BLOCKS = 4


def block_sizes(extent: Expr, each_bytes: int, machine: Machine) -> list[int]:
    """Sizes of blocks worth trying along an axis whose steps need `each_bytes` of scratch: all, half, a quarter, ..."""
    whole = extent if isinstance(extent, int) else contract_cost.GUESS
    most = min(machine.l2 // 2, MOST_SCRATCH) // max(1, each_bytes)
    sizes, size = [], max(1, min(whole, most))
    if each_bytes <= MOST_SCRATCH:
        sizes.append(size)
        while size > 1:
            size = -(-size // 2)
            sizes.append(size)
    return sizes


def scratch(name: str, dtype: str, count: int) -> Operand:
    """An operand on the stack that begins on a cache line."""
    return Operand(name, dtype, Layout.dense((count,)), aligned_stack(dtype, count))


def _axis(problem: Contraction) -> Axis:
    """The axis that is cut into blocks."""
    return problem.outer[-1] if problem.outer else problem.rows


def _inner(problem: Contraction, size: Expr) -> Contraction:
    """The contraction of `size` steps of that axis over widened activations."""
    outer = (replace_extent(problem.outer[-1], size),) if problem.outer else ()
    rows = problem.rows if problem.outer else replace_extent(problem.rows, size)
    return replace(problem, a_dtype="int16", a_offset=0, outer=outer, rows=rows)


def replace_extent(axis: Axis, extent: Expr) -> Axis:
    """`axis` with another extent."""
    return Axis(extent, axis.a_stride, axis.w_stride)


def _span(problem: Contraction, size: Expr) -> Expr:
    """Elements from the first to the last activation of a block."""
    inside = max(run.offset + run.length for run in problem.runs) + (problem.groups - 1) * problem.a_group_stride
    if problem.outer:
        inside += (problem.rows.extent - 1) * problem.rows.a_stride
    return simplify((size - 1) * _axis(problem).a_stride + inside)


def declines(problem: Contraction, isa: Isa) -> str | None:
    """Why the contraction cannot be computed this way; None when it can."""
    if isa.dot != "pmaddwd" or (problem.a_dtype, problem.w_dtype) != ("uint8", "int8"):
        return f"activations are widened for s16 products, not for {problem.a_dtype} on {isa.name}"
    numbers = [_axis(problem).a_stride, problem.n, *(value for run in problem.runs for value in run)]
    numbers += [problem.rows.extent, problem.rows.a_stride] if problem.outer else []
    if problem.w_k_stride is not None or not all(isinstance(number, int) for number in numbers):
        return "activations are widened where weights are constant and strides are known"
    if min(int(run.length) for run in problem.runs) < 2 or _span(problem, 1) < isa.lanes(16):
        return "too few neighbouring activations to widen"
    return None


def candidates(problem: Contraction, isa: Isa, machine: Machine) -> list[Schedule]:
    """Schedules of the inner contraction, with the steps of a block as `block`."""
    result = []
    for size in block_sizes(_axis(problem).extent, 2 * _span(problem, 1), machine):
        inner = contract_cost.candidates(_inner(problem, size), isa, machine)
        result += [replace(schedule, unit="wide", block=size) for schedule in inner]
    return result


def predicted_seconds(problem: Contraction, schedule: Schedule, isa: Isa, machine: Machine) -> float:
    """The contraction as `contract_cost` prices it, and the copies."""
    core, axis, vector = contract_cost.core_of(isa, machine), _axis(problem), replace(schedule, unit="vector")
    extent = axis.extent if isinstance(axis.extent, int) else contract_cost.GUESS
    full, rest = divmod(extent, schedule.block)
    total = 0.0
    for count, size in ((full, schedule.block), (1, rest)):
        if count and size:
            copies = _COPY * _span(problem, size) / isa.lanes(16) / core.vectors
            inner = contract_cost.predicted_seconds(_inner(problem, size), vector, isa, machine)
            total += count * (inner + contract_cost.seconds(copies, machine))
    images = prod(axis.extent if isinstance(axis.extent, int) else contract_cost.GUESS for axis in problem.outer[:-1])
    return images * total


def packed_size(problem: Contraction, schedule: Schedule, isa: Isa) -> int:
    """Elements of the packed weights."""
    return contract_problem.packed_size(_inner(problem, 1), isa)


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """W as `contract_problem.pack` arranges it for pairs."""
    return contract_problem.pack(_inner(problem, 1), schedule, isa, weight)


def emit(task: Task) -> None:
    """Emit the contraction."""
    problem, schedule, isa, a, store = task.problem, task.schedule, task.isa, task.a, task.store
    axis, lanes, vector = _axis(problem), isa.lanes(16), replace(schedule, unit="vector")
    wide = scratch("wide", "int16", int(_span(problem, schedule.block)))

    def copy(base: Expr, span: Expr) -> None:
        def one(at: Expr) -> None:
            value = T.cast(a.buffer[T.ramp(simplify(base + at), 1, lanes)], vector_type("int16", lanes))
            T.buffer_store(wide.buffer, value, [T.ramp(at, 1, lanes)])

        with loop(span // lanes if isinstance(span, int) else T.truncdiv(span, T.int64(lanes))) as i:
            one(i * lanes)
        one(whole_index(span - lanes))  # the last vector overlaps its predecessor

    def block(index: tuple[Expr, ...], first: Expr, size: Expr) -> None:
        base = problem.a_offset + first * axis.a_stride
        base = base + sum(i * outer.a_stride for i, outer in zip(index, problem.outer[:-1], strict=False))
        copy(let(whole_index(simplify(base))), _span(problem, size))

        def move(outer: tuple[Expr, ...], row: Expr, channel: Expr, value: Expr, lanes: int, mask: Expr) -> None:
            if problem.outer:
                store((*index, whole_index(simplify(first + outer[0]))), row, channel, value, lanes, mask)
            else:
                store((), whole_index(simplify(first + row)), channel, value, lanes, mask)

        inner = replace(task, problem=_inner(problem, size), schedule=vector, a=wide, store=move, share=inside)
        contract_emit.emit(inner)

    parts = cut(axis.extent, schedule.block) if isinstance(axis.extent, int) else []
    # Blocks are shared out; where there are few, each part copies them all and multiplies by its own channels.
    few = parts and sum(part.count for part in parts) < _FEW_BLOCKS
    inside, share = (task.share, None) if few else (None, task.share)
    with loops([outer.extent for outer in problem.outer[:-1]]) as index:
        if parts:
            for part in shared(parts, share):
                with each(part) as first:
                    block(index, first, part.size)
            return
        # One code for blocks of any size: their rows are symbolic.
        count = let(T.truncdiv(axis.extent + (schedule.block - 1), T.int64(schedule.block)))
        with shared_loop(count, share) as number:
            first = let(number * schedule.block)
            block(index, first, let(T.min(T.int64(schedule.block), axis.extent - first)))
