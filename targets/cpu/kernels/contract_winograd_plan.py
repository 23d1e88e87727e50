"""Winograd's F(2x2, 3x3): which convolutions it takes, where everything lies in scratch, how the weights are packed.

A tile of 2x2 outputs reads 4x4 inputs d and has the 3x3 weights g. With the matrices below

    outputs = A^T (U * V) A,    V = B^T d B,    U = G g G^T        (* element by element, summed over input channels)

so 16 multiplications do the work of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016): a
sum over channels for each of the 16 *points*.

Floats: U is computed when packing, in float64, and rounded once: the package holds 16 numbers in place of 9. With C
input channels, an output is off by at most (C + 9) half-units in the last place of A^T (|G||g||G^T| * |B^T||d||B|) A
(all magnitudes, summed over channels) and one of the start value. What is infinite, NaN or overflows in a tile's inputs
or on the way spreads over the tile.

Integers: G holds halves; with 2 G the result is four times the outputs, a multiple of 4, and a shift gives them
exactly. V needs 11 bits and U 12, which suits multipliers of s16 pairs. Where bytes are multiplied as fast as they are
loaded (VNNI) there is nothing to gain. The package keeps the nine weights, a quarter of the bytes of U, which every
call computes anew in scratch: some percent of one small image's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_problem
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction, Run, Schedule
from dlc.targets.layout import simplify

TAPS, OUT, SIDE = 3, 2, 4
POINTS = SIDE * SIDE
INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
WEIGHT = ((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2))  # 2 G
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T
MOST_SCRATCH = 1280 << 10  # bytes of U, V and M: they lie on the stack
_MOST_WEIGHTS = 768 << 10  # bytes of U among them
_LINE = 64


@dataclass(frozen=True)
class Image:
    """What a contraction is as a convolution: the loop over images, extents of the output, where the input lies."""

    images: tuple[Axis, ...]
    height: int
    width: int
    line: int  # elements from one line of the input to the next
    channels: int

    @property
    def grid(self) -> tuple[int, int]:
        """Lines of tiles and tiles in a line; the last ones may hang over the edge."""
        return -(-self.height // OUT), -(-self.width // OUT)

    @property
    def tiles(self) -> Expr:
        """Tiles of all images."""
        return simplify(prod((axis.extent for axis in self.images), start=prod(self.grid)))


def find_image(problem: Contraction) -> Image | None:
    """The 3x3 convolution of stride 1 that `problem` is; None when it is something else."""
    if len(problem.outer) < 1 or len(problem.runs) != TAPS or problem.groups != 1 or problem.w_k_stride is not None:
        return None
    line, step = problem.outer[-1], problem.rows
    numbers = (line.extent, line.a_stride, step.extent, step.a_stride, problem.n)
    numbers += tuple(value for run in problem.runs for value in run)
    if not all(isinstance(number, int) for number in numbers):
        return None
    channels = step.a_stride
    if any(run != Run(i * line.a_stride, TAPS * channels) for i, run in enumerate(problem.runs)):
        return None
    return Image(problem.outer[:-1], line.extent, step.extent, line.a_stride, channels)


def image_of(problem: Contraction) -> Image:
    """The convolution of a problem that `declines` has nothing against."""
    image = find_image(problem)
    assert image is not None
    return image


def in_integers(problem: Contraction) -> bool:
    """Whether it is the exact form; U is then computed by every call."""
    return problem.a_dtype != "float32"


def declines(problem: Contraction, isa: Isa) -> str | None:
    """Why the convolution cannot be computed this way; None when it can."""
    types = (problem.a_dtype, problem.w_dtype)
    pairs = isa.dot == "pmaddwd" and types == ("uint8", "int8")
    if not pairs and types != ("float32", "float32"):
        return f"Winograd's algorithm is for floats and s16 products, not for {' by '.join(types)} on {isa.name}"
    image = find_image(problem)
    if image is None:
        return "Winograd's algorithm is for 3x3 convolutions of stride 1, extents known"
    if pairs and (image.channels % 8 or image.channels > most_channels()):
        return f"Winograd's algorithm needs a multiple of 8 channels up to {most_channels()}, not {image.channels}"
    if pairs and 2 * packed_points(problem, isa) > _MOST_WEIGHTS:
        return f"the transformed weights of {image.channels} x {problem.n} channels are too large for the stack"
    if most_tiles(problem, isa, 1) < 1:
        return f"a tile of {image.channels} channels is too large for the stack"
    return None


def note(problem: Contraction, isa: Isa) -> str:
    """What `dlc explain` says of a 3x3 float convolution of stride 1 that is not computed this way; else nothing."""
    step = problem.rows.a_stride
    alike = len(problem.outer) > 0 and len(problem.runs) == TAPS and isinstance(step, int)
    if problem.a_dtype != "float32" or not alike or any(run.length != TAPS * step for run in problem.runs):
        return ""
    return declines(problem, isa) or ""


def most_channels() -> int:
    """Channels up to which no sum leaves 32 bits, nor does one on the way to the outputs, whatever the values."""
    inputs, weights, outputs = (np.kron(matrix, matrix) for matrix in (INPUT, WEIGHT, OUTPUT))
    # Activations are not negative, so that a point of V is largest where they are 255 under one sign only.
    v = 255 * np.maximum(inputs.clip(min=0).sum(1), -inputs.clip(max=0).sum(1))
    u = 128 * abs(weights).sum(1)
    assert max(v.max(), u.max()) < 2**15
    return int((2**31 - 1) // (abs(outputs) @ (v * u)).max())


# Scratch: V (tile, point, channel) of a block of tiles, and M, the same for one panel of channels  --


def point_stride(problem: Contraction) -> int:
    """Elements of V from one point to the next: whole vectors."""
    return -(-image_of(problem).channels // 16) * 16


def v_stride(problem: Contraction) -> int:
    """Elements of V from one tile to the next."""
    # A line more than the points: tiles that lie a power of two apart would compete for the same set of L1.
    return POINTS * point_stride(problem) + _LINE // _bytes(problem)


def m_stride(isa: Isa, vectors: int) -> int:
    """Elements of M from one tile to the next, in a panel of `vectors`."""
    return POINTS * vectors * isa.lanes() + _LINE // 4


def _bytes(problem: Contraction) -> int:
    return 2 if in_integers(problem) else 4


def tile_bytes(problem: Contraction, isa: Isa, vectors: int) -> int:
    """Scratch of one tile."""
    return _bytes(problem) * v_stride(problem) + 4 * m_stride(isa, vectors)


def most_tiles(problem: Contraction, isa: Isa, vectors: int) -> int:
    """Tiles of the largest block."""
    weights = 2 * packed_points(problem, isa) if in_integers(problem) else 0
    return (MOST_SCRATCH - weights) // tile_bytes(problem, isa, vectors)


def product_of(problem: Contraction, isa: Isa, tiles: Expr, vectors: int) -> Contraction:
    """The contractions of all points over `tiles` tiles and a panel of `vectors` of channels: one group a point."""
    dtype, image = "int16" if in_integers(problem) else "float32", image_of(problem)
    rows, runs = Axis(tiles, v_stride(problem)), (Run(0, image.channels),)
    return Contraction(
        dtype, dtype, 0, (), rows, runs, vectors * isa.lanes(), POINTS, a_group_stride=point_stride(problem)
    )


def inner(schedule: Schedule) -> Schedule:
    """The schedule of those contractions."""
    return replace(schedule, unit="vector")


# Weights: panel by panel, in each point by point (or tap by tap) ------------------------------------------------------


def packed_points(problem: Contraction, isa: Isa) -> int:
    """Elements of U."""
    return contract_problem.packed_size(product_of(problem, isa, 1, contract_problem.vectors_of(problem, isa)), isa)


def packed_size(problem: Contraction, isa: Isa) -> int:
    """Elements of the packed weights."""
    points = packed_points(problem, isa)
    return points // POINTS * TAPS**2 if in_integers(problem) else points


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """W (1, 9 * channels, n), or U of it, in the order in which `contract_problem.pack` arranges each panel."""
    image, lanes = image_of(problem), isa.lanes()
    assert weight.shape == (1, TAPS**2 * image.channels, problem.n)
    taps = weight.reshape(TAPS**2, image.channels, -1)
    points = taps if in_integers(problem) else _transformed(taps)
    vectors = contract_problem.vectors_of(problem, isa)
    wide = np.zeros((*points.shape[:2], vectors * lanes), "int16" if in_integers(problem) else "float32")
    wide[:, :, : problem.n] = points
    panels = []
    for first in range(0, vectors, schedule.nr):
        size = min(schedule.nr, vectors - first)
        panel = replace(product_of(problem, isa, 1, size), groups=len(wide))
        part = wide[:, :, first * lanes : (first + size) * lanes]
        panels.append(contract_problem.pack(panel, inner(schedule), isa, part))
    return np.concatenate(panels).astype(problem.w_dtype)


def _transformed(taps: np.ndarray) -> np.ndarray:
    """G g G^T in float64: (9, channels, n) to (16, channels, n)."""
    matrix = np.kron(WEIGHT, WEIGHT) / 4
    points, wide = np.empty((POINTS, *taps.shape[1:]), "float32"), taps.astype("float64")
    for line, point in zip(matrix, points, strict=True):  # a product of all would make several copies of a large weight
        point[:] = sum(factor * tap for factor, tap in zip(line, wide, strict=True) if factor)
    return points
