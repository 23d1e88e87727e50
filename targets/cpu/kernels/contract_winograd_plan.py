"""Winograd's F(m x m, 3x3): which convolutions it takes, where everything lies in scratch, how the weights are packed.

A tile of m x m outputs reads (m + 2)^2 inputs d and has the 3x3 weights g. With the matrices of a `Form`

    outputs = A^T (U * V) A,    V = B^T d B,    U = G g G^T        (* element by element, summed over input channels)

so for m = 2 16 multiplications do the work of 36, and for m = 4 36 that of 144 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016): a sum over channels for each of the *points*. For m = 4 polynomials are evaluated
at 0, 1, -1, 1/2 and -2, which loses less than 0, 1, -1, 2, -2 do (Barabasz, Anderson, Soodhalter and Gregg, "Error
Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020).

Floats: U is computed when packing, in float64, and rounded once. With C input channels, an output is off by at most
(C + `Form.roundings`) half-units in the last place of A^T (|G||g||G^T| * |B^T||d||B|) A (all magnitudes, summed over
channels) and one of the start value. What is infinite, NaN or overflows in a tile's inputs or on the way spreads over
the tile.

Integers, m = 2: G holds halves; with 2 G the result is four times the outputs, a multiple of 4, and a shift gives them
exactly. V needs 11 bits and U 12, which suits multipliers of s16 pairs. Where bytes are multiplied as fast as they are
loaded (VNNI) there is nothing to gain. The package keeps the nine weights, a quarter of the bytes of U, which every
call computes anew in scratch: some percent of one small image's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import numpy as np

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_problem
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_problem import Axis, Contraction, Run, Schedule
from dlc.targets.layout import simplify

Matrix = tuple[tuple[float, ...], ...]

TAPS = 3
MOST_SCRATCH = 1280 << 10  # bytes of U, V and M: they lie on the stack
_MOST_WEIGHTS = 768 << 10  # bytes of U among them
_LINE = 64


@dataclass(frozen=True)
class Form:
    """One F(out x out, 3x3).

    Attributes:
        out: outputs a side of a tile.
        weight: G.
        inputs, outputs: matrices whose product is B^T (A^T), the one that is applied first first.
        roundings: on the way of a number through both transforms, U and one product.
    """

    out: int
    weight: Matrix
    inputs: tuple[Matrix, ...]
    outputs: tuple[Matrix, ...]
    roundings: int

    @property
    def side(self) -> int:
        """Inputs a side of a tile."""
        return self.out + TAPS - 1

    @property
    def points(self) -> int:
        """Multiplications a tile."""
        return self.side**2


F2 = Form(
    2,
    ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    (((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),),
    (((1, 1, 1, 0), (0, 1, -1, -1)),),
    9,
)
F4 = Form(
    4,
    (
        (1, 0, 0),
        (1 / 3, 1 / 3, 1 / 3),
        (-1 / 3, 1 / 3, -1 / 3),
        (-16 / 15, -8 / 15, -4 / 15),
        (1 / 15, -2 / 15, 4 / 15),
        (0, 0, 1),
    ),
    (
        ((-1, 0, 1, 0, 0, 0), (0, -1, 0, 1, 0, 0), (0, 0, -1, 0, 1, 0), (0, 0, 0, -1, 0, 1), (0, 0, 1, 0, 0, 0),
         (0, 0, 0, 1, 0, 0)),
        ((-1, 1.5, 1, 0, 0, 0), (0, 1, 0, 0, 1.5, 0), (0, 0, 1, 0, 0, 1.5), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0),
         (0, -1, 1.5, 1, 0, 0)),
        ((1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, -1, 1, 0, 0, 0), (0, 0, 0, 2, 1, 0), (0, 0, 0, -0.5, 1, 0),
         (0, 0, 0, 0, 0, 1)),
    ),
    (
        ((1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 1, -1, 0, 0, 0), (0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, 0),
         (0, 0, 0, 0, 0, 1)),
        ((1, 1, 0, 1, 1, 0), (0, 0, 1, 0.5, -2, 0), (0, 1, 0, 0.25, 4, 0), (0, 0, 1, 0.125, -8, 1)),
    ),
    28,
)  # fmt: skip
FORMS = {form.out: form for form in (F2, F4)}


def product_of(factors: tuple[Matrix, ...], magnitudes: bool = False) -> np.ndarray:
    """B^T or A^T from its factors; with `magnitudes` of theirs."""
    matrices = [np.array(factor) for factor in factors]
    return reduce(lambda done, factor: factor @ done, [abs(m) for m in matrices] if magnitudes else matrices)


@dataclass(frozen=True)
class Image:
    """What a contraction is as a convolution: the loop over images, extents of the output, where the input lies."""

    images: tuple[Axis, ...]
    height: int
    width: int
    line: int  # elements from one line of the input to the next
    channels: int


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


@dataclass(frozen=True)
class Plan:
    """A convolution in one form: V (tile, point, channel) of a block of tiles; M, the same for a panel of channels."""

    problem: Contraction
    isa: Isa
    form: Form

    @property
    def image(self) -> Image:
        """The convolution; `declines` has nothing against it."""
        image = find_image(self.problem)
        assert image is not None
        return image

    @property
    def integer(self) -> bool:
        """Whether it is the exact form; U is then computed by every call."""
        return self.problem.a_dtype != "float32"

    @property
    def grid(self) -> tuple[int, int]:
        """Lines of tiles and tiles in a line; the last ones may hang over the edge."""
        return -(-self.image.height // self.form.out), -(-self.image.width // self.form.out)

    @property
    def tiles(self) -> Expr:
        """Tiles of all images."""
        return simplify(prod((axis.extent for axis in self.image.images), start=prod(self.grid)))

    @property
    def vectors(self) -> int:
        """Vectors of output channels."""
        return contract_problem.vectors_of(self.problem, self.isa)

    @property
    def v_dtype(self) -> str:
        """Type of U and V."""
        return "int16" if self.integer else "float32"

    @property
    def v_bytes(self) -> int:
        """Bytes of one of them."""
        return np.dtype(self.v_dtype).itemsize

    @property
    def point_stride(self) -> int:
        """Elements of V from one point to the next: whole vectors."""
        return -(-self.image.channels // 16) * 16

    @property
    def v_stride(self) -> int:
        """Elements of V from one tile to the next."""
        # A line more than the points: tiles that lie a power of two apart would compete for the same set of L1.
        return self.form.points * self.point_stride + _LINE // self.v_bytes

    def m_stride(self, vectors: int) -> int:
        """Elements of M from one tile to the next, in a panel of `vectors`."""
        return self.form.points * vectors * self.isa.lanes() + _LINE // 4

    def tile_bytes(self, vectors: int) -> int:
        """Scratch of one tile."""
        return self.v_bytes * self.v_stride + 4 * self.m_stride(vectors)

    def most_tiles(self, vectors: int) -> int:
        """Tiles of the largest block."""
        return (MOST_SCRATCH - self.u_bytes * self.integer) // self.tile_bytes(vectors)

    def product(self, tiles: Expr, vectors: int) -> Contraction:
        """The contractions of all points over `tiles` tiles and a panel of `vectors` of channels: one group a point."""
        rows, runs = Axis(tiles, self.v_stride), (Run(0, self.image.channels),)
        return Contraction(
            self.v_dtype, self.v_dtype, 0, (), rows, runs, vectors * self.isa.lanes(), self.form.points,
            a_group_stride=self.point_stride,
        )  # fmt: skip

    @property
    def u_size(self) -> int:
        """Elements of U."""
        return contract_problem.packed_size(self.product(1, self.vectors), self.isa)

    @property
    def u_bytes(self) -> int:
        """Bytes of U."""
        return self.v_bytes * self.u_size

    def pack(self, schedule: Schedule, weight: np.ndarray) -> np.ndarray:
        """W (1, 9 * channels, n) or U of it, panel by panel, in each point by point or tap by tap."""
        lanes, problem = self.isa.lanes(), self.problem
        assert weight.shape == (1, TAPS**2 * self.image.channels, problem.n)
        taps = weight.reshape(TAPS**2, self.image.channels, -1)
        points = taps if self.integer else _transformed(taps, self.form)
        wide = np.zeros((*points.shape[:2], self.vectors * lanes), self.v_dtype)
        wide[:, :, : problem.n] = points
        panels = []
        for first in range(0, self.vectors, schedule.nr):
            size = min(schedule.nr, self.vectors - first)
            panel = replace(self.product(1, size), groups=len(wide))
            part = wide[:, :, first * lanes : (first + size) * lanes]
            panels.append(contract_problem.pack(panel, inner(schedule), self.isa, part))
        return np.concatenate(panels).astype(problem.w_dtype)


def plan_of(problem: Contraction, schedule: Schedule, isa: Isa) -> Plan:
    """The plan of a schedule."""
    return Plan(problem, isa, FORMS[schedule.tile])


def inner(schedule: Schedule) -> Schedule:
    """The schedule of the contractions of all points."""
    return replace(schedule, unit="vector")


def _transformed(taps: np.ndarray, form: Form) -> np.ndarray:
    """G g G^T in float64: (9, channels, n) to (points, channels, n)."""
    points, wide = np.empty((form.points, *taps.shape[1:]), "float32"), taps.astype("float64")
    # A product of all would make several copies of a large weight.
    for line, point in zip(np.kron(form.weight, form.weight), points, strict=True):
        point[:] = sum(factor * tap for factor, tap in zip(line, wide, strict=True) if factor)
    return points


def packed_size(problem: Contraction, schedule: Schedule, isa: Isa) -> int:
    """Elements of the packed weights."""
    plan = plan_of(problem, schedule, isa)
    return plan.u_size // plan.form.points * TAPS**2 if plan.integer else plan.u_size


def pack(problem: Contraction, schedule: Schedule, isa: Isa, weight: np.ndarray) -> np.ndarray:
    """The weights as the kernel reads them."""
    return plan_of(problem, schedule, isa).pack(schedule, weight)


def declines(problem: Contraction, isa: Isa, form: Form = F2) -> str | None:
    """Why the convolution cannot be computed this way; None when it can."""
    types = (problem.a_dtype, problem.w_dtype)
    pairs = isa.dot == "pmaddwd" and types == ("uint8", "int8")
    if not pairs and types != ("float32", "float32"):
        return f"Winograd's algorithm is for floats and s16 products, not for {' by '.join(types)} on {isa.name}"
    image, plan = find_image(problem), Plan(problem, isa, form)
    if image is None:
        return "Winograd's algorithm is for 3x3 convolutions of stride 1, extents known"
    if pairs and form != F2:
        return "the points of 4x4 outputs do not fit 16 bits"
    if pairs and (image.channels % 8 or image.channels > most_channels()):
        return f"Winograd's algorithm needs a multiple of 8 channels up to {most_channels()}, not {image.channels}"
    if pairs and plan.u_bytes > _MOST_WEIGHTS:
        return f"the transformed weights of {image.channels} x {problem.n} channels are too large for the stack"
    if plan.most_tiles(1) < 1:
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
    matrices = product_of(F2.inputs), 2 * np.array(F2.weight), product_of(F2.outputs)
    inputs, weights, outputs = (np.kron(matrix, matrix) for matrix in matrices)
    # Activations are not negative, so that a point of V is largest where they are 255 under one sign only.
    v = 255 * np.maximum(inputs.clip(min=0).sum(1), -inputs.clip(max=0).sum(1))
    u = 128 * abs(weights).sum(1)
    assert max(v.max(), u.max()) < 2**15
    return int((2**31 - 1) // (abs(outputs) @ (v * u)).max())
