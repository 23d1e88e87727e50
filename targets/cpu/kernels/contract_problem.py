"""Dense contractions as one kind of problem, and how their constant weights are packed.

Every matmul, GEMV, batched matmul and convolution is the same sum over *runs*: stretches of contiguous activations in
channels-last memory whose halo already holds the padding (implicit GEMM; no im2col copy exists anywhere).

    out[outer..., row, g*n + j] = init[g*n + j] + sum over runs r, k < r.length of
        A[a_offset + sum(outer_i * a_stride_i) + row * rows.a_stride + g * a_group_stride + r.offset + k] * W[g,r,k,j]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dlc.errors import DlcError
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.dot import Dot, dot_for
from dlc.targets.layout import Layout, simplify


class Axis(NamedTuple):
    """A loop over outputs: its extent and how far the operands move from one step to the next."""

    extent: Expr
    a_stride: Expr
    w_stride: Expr = 0


class Run(NamedTuple):
    """A stretch of `length` contiguous activations, `offset` elements after the row's own position."""

    offset: Expr
    length: Expr


@dataclass(frozen=True)
class Contraction:
    """One contraction; extents, strides and offsets are ints or symbolic int64 expressions, in elements.

    Attributes:
        a_dtype, w_dtype: ``float32`` x ``float32``, ``float32`` x ``bfloat16``, ``bfloat16`` x ``bfloat16`` or
            ``uint8`` x ``int8``.
        a_offset: flat position of the first element of row 0.
        outer: loops outside the rows, outermost first.
        rows: the loop whose steps share the registers' weights.
        runs: the contracted dimension; their order is the order of W's k.
        groups, a_group_stride: independent contractions side by side, and the step of A between them.
        n: outputs per group; symbolic only where W is an activation, perhaps packed by a kernel.
        w_k_stride: None for packed constant weights; else W is an activation W[w_offset + ... + k * w_k_stride + j].
        w_offset: flat position of W's first element; 0 for constant weights.
    """

    a_dtype: str
    w_dtype: str
    a_offset: Expr
    outer: tuple[Axis, ...]
    rows: Axis
    runs: tuple[Run, ...]
    n: Expr
    groups: int = 1
    a_group_stride: Expr = 0
    w_k_stride: Expr | None = None
    w_offset: Expr = 0

    @property
    def acc_dtype(self) -> str:
        """Type of the sums and of `init`."""
        return "float32" if self.a_dtype in ("float32", "bfloat16") else "int32"


@dataclass(frozen=True)
class Schedule:
    """How a contraction is cut into register tiles.

    Attributes:
        mr: rows of a tile.
        nr: vectors of output channels of a tile.
        mo: steps of the last outer axis in a tile, each with all its rows; 1 unless the rows are few.
        hot: the operand that stays in the nearest cache while the other streams: ``w`` (channels are the outer loop)
            or ``a`` (rows are the outer loop).
        unroll: groups of k per iteration of the innermost loop.
        prefetch: how many groups ahead the weights are prefetched; 0 for never.
        unit: what multiplies: ``vector``; ``wide`` (vectors, over activations that were widened in scratch);
            ``winograd`` (the same over points of Winograd's algorithm); or ``amx`` (tiles; `mr` is then 16 a tile,
            whatever rows the last ones have).
        block: wide: lines of outputs (rows without outer axes) that are in scratch at a time; winograd: tiles.
        tile: winograd: outputs a side of a tile, 2 or 4.
        k_block: amx: steps of k after which the partial sums are put aside; 0 for never.
        flat: amx: rows run through the last outer axis without a break; those between its lines are not stored.
        note: why a better unit of the machine is not used.
    """

    mr: int
    nr: int
    mo: int = 1
    hot: str = "w"
    unroll: int = 1
    prefetch: int = 0
    unit: str = "vector"
    k_block: int = 0
    flat: bool = False
    block: int = 0
    tile: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Schedule:
        """What `to_json` made."""
        return Schedule(**values)


def groups_of(length: Expr, dot: Dot) -> Expr:
    """Steps of the multiply-add that a run takes, the last one perhaps padded."""
    return length if dot.group == 1 else -(-length // dot.group)


def vectors_of(problem: Contraction, isa: Isa) -> int:
    """Vectors of output channels per group, the last one perhaps padded."""
    return -(-int(problem.n) // isa.lanes())


def conv_contraction(
    x: Layout,
    weight: Sequence[int],
    out: Sequence[Expr],
    *,
    strides: Sequence[int],
    pads_begin: Sequence[int],
    dilations: Sequence[int],
    groups: int = 1,
    dtypes: tuple[str, str] = ("float32", "float32"),
    flat_rows: bool = False,
) -> Contraction:
    """A convolution of `x` (N, spatial..., C) with halo >= padding by a weight of shape (O, I/groups, k...).

    `out` are the spatial extents of the output. With `flat_rows` the caller can address its output by one flat row
    number (n, spatial... collapsed): rows and outer loops are then joined as far as `x` allows, which only ever gives
    fewer outer axes. W's k order is (k..., I/groups), see `conv_weight`.
    """
    rank = len(out)
    spatial = range(rank)
    per_group = int(weight[1])
    if not x.strides[-1] == 1 or len(weight) != rank + 2:
        raise DlcError(f"convolution needs channels-last input and rank {rank + 2} weights, got {tuple(weight)}")
    for axis in spatial:
        if x.halo[1 + axis][0] < pads_begin[axis]:
            raise DlcError(f"halo {x.halo[1 + axis]} of spatial axis {axis} is smaller than padding {pads_begin[axis]}")
    x_strides = x.strides[1:-1]
    offset = simplify(x.offset - sum(p * s for p, s in zip(pads_begin, x_strides, strict=True)))
    kernel = [int(k) for k in weight[2:]]
    # One run may span the innermost kernel axis when its taps are neighbours in memory.
    joined = groups == 1 and (kernel[-1] == 1 or (dilations[-1] == 1 and simplify(x_strides[-1] - per_group) == 0))
    taps = [range(k) for k in kernel[:-1]] + [range(1 if joined else kernel[-1])]
    runs = tuple(
        Run(simplify(sum(t * d * s for t, d, s in zip(tap, dilations, x_strides, strict=True))), length)
        for length in [per_group * (kernel[-1] if joined else 1)]
        for tap in product(*taps)
    )
    axes = [Axis(x.shape[0], x.strides[0])]
    axes += [Axis(out[axis], simplify(x_strides[axis] * strides[axis])) for axis in spatial]
    if flat_rows:
        axes = _join(axes)
    return Contraction(
        dtypes[0], dtypes[1], offset, tuple(axes[:-1]), axes[-1], runs, int(weight[0]) // groups, groups, per_group
    )


def _join(axes: list[Axis]) -> list[Axis]:
    """Collapse neighbouring loops whose steps continue one another, from the innermost one outwards."""
    inner = axes[-1]
    outer = list(axes[:-1])
    while outer and outer[-1].w_stride == 0:
        axis = outer[-1]
        one = isinstance(axis.extent, int) and axis.extent == 1
        if not one and simplify(axis.a_stride - inner.extent * inner.a_stride) != 0:
            break
        inner = Axis(simplify(inner.extent * axis.extent), inner.a_stride)
        outer.pop()
    return [*outer, inner]


def conv_weight(weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """Weights (O, I/groups, k...) as W (groups, prod(k) * I/groups, O/groups), in the k order of `conv_contraction`."""
    out = weight.shape[0]
    moved = np.moveaxis(weight, 1, -1).reshape(groups, out // groups, -1)
    return np.ascontiguousarray(np.swapaxes(moved, 1, 2))


def matmul_contraction(
    a: Layout,
    n: Expr,
    *,
    w: Layout | None = None,
    dtypes: tuple[str, str] = ("float32", "float32"),
    flat_rows: bool = True,
) -> Contraction:
    """A (..., M, K) row-major times W: constant (K, n) without `w`, else the activation `w` (..., K, n), broadcast.

    Batch dimensions of `w` are aligned with A's from the right; an extent of 1 is broadcast. With `flat_rows` batch
    dimensions that A and W allow are joined with the rows: the caller addresses its output by a flat row number.
    """
    if simplify(a.strides[-1]) != 1 or (w is not None and simplify(w.strides[-1]) != 1):
        raise DlcError("matmul needs row-major operands")
    batch = len(a.shape) - 2
    steps: list[Expr] = [0] * batch
    if w is not None:
        for back in range(1, len(w.shape) - 1):
            extent = w.shape[-2 - back]
            if not (isinstance(extent, int) and extent == 1):
                steps[batch - back] = w.strides[-2 - back]
    axes = [Axis(a.shape[i], a.strides[i], steps[i]) for i in range(batch)] + [Axis(a.shape[-2], a.strides[-2])]
    if flat_rows:
        axes = _join(axes)
    return Contraction(
        dtypes[0],
        dtypes[1],
        a.offset,
        tuple(axes[:-1]),
        axes[-1],
        (Run(0, a.shape[-1]),),
        n,
        w_k_stride=None if w is None else w.strides[-2],
        w_offset=0 if w is None else w.offset,
    )


def packed_size(problem: Contraction, isa: Isa) -> int:
    """Elements of the packed weights."""
    dot = dot_for(isa, problem.a_dtype, problem.w_dtype)
    steps = sum(groups_of(int(run.length), dot) for run in problem.runs)
    return problem.groups * vectors_of(problem, isa) * steps * dot.group * isa.lanes()


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """Pack W (groups, total k in run order, n) as [group][tile of nr vectors][steps of runs][vector][lanes x group].

    Where the multiply-add splits pairs, each two vectors of a tile lie lane by lane (`Dot.pair`).
    The last tile is as narrow as the vectors that are left. Padding is zero: channels behind n, and the k that a run's
    last step reads a second time (a run of length >= group ends with its last `group` elements, so that nothing behind
    it is ever read; of floats the last step reads what is left alone, and zeros).
    """
    dot, lanes = dot_for(isa, problem.a_dtype, problem.w_dtype), isa.lanes()
    total = sum(int(run.length) for run in problem.runs)
    if weight.shape != (problem.groups, total, problem.n):
        raise DlcError(f"weight is {weight.shape}, the contraction needs {(problem.groups, total, problem.n)}")
    vectors = vectors_of(problem, isa)
    wide = np.zeros((problem.groups, total, vectors * lanes), problem.w_dtype)
    wide[:, :, : problem.n] = weight
    pieces, begin = [], 0
    for run in problem.runs:
        length = int(run.length)
        steps, left = groups_of(length, dot), length % dot.group
        piece = np.zeros((problem.groups, steps * dot.group, vectors * lanes), problem.w_dtype)
        piece[:, : length - left] = wide[:, begin : begin + length - left]
        if left:
            shift = dot.group - left if length > dot.group and dot.rereads else 0
            piece[:, length - left + shift : length + shift] = wide[:, begin + length - left : begin + length]
        pieces.append(piece)
        begin += length
    steps_first = np.concatenate(pieces, axis=1).reshape(problem.groups, -1, dot.group, vectors, lanes)
    arranged = dot.arrange(np.moveaxis(steps_first, 3, 2))  # (groups, steps, vectors, group * lanes)
    tiles = [
        dot.pair(arranged[:, :, first : first + schedule.nr]).reshape(problem.groups, -1)
        for first in range(0, vectors, schedule.nr)
    ]
    packed = np.concatenate(tiles, axis=1).reshape(-1)
    assert packed.size == packed_size(problem, isa) == prod(packed.shape)
    return np.ascontiguousarray(packed)
