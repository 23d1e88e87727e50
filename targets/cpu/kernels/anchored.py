"""What kernels with one anchor among elementwise nodes share: the region's parts, loops over vectors, folds of lanes.

The anchor (a window or a reduction) reads values that the Evaluator computes, and its result is bound in the Evaluator,
which computes what follows; every output has the shape of the anchor's result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.ir.ops.shapes import same
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import (
    Expr,
    Operand,
    Share,
    is_long,
    kernel,
    let,
    positions,
    splat,
    stack,
    tail_mask,
)
from dlc.targets.cpu.kernels.contract_loops import loop, whole_index
from dlc.targets.cpu.kernels.evaluate import Evaluator
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.kernels.vector import element, intrinsic, lanes_of, select
from dlc.targets.layout import Layout, simplify

Index = tuple[Expr, ...]


def anchor_of(body: Graph) -> Node | None:
    """The only node that is not computed element by element; None where there are none or several."""
    found = [n for n in body.nodes if OPS[n.op].kind not in ("elementwise", "injective")]
    return found[0] if len(found) == 1 else None


def why_not(body: Graph, operators: Collection[str]) -> str | None:
    """Why `body` is not one of `operators` among elementwise nodes; None when it is."""
    anchor = anchor_of(body)
    if anchor is None or anchor.op not in operators:
        return f"a region of {', '.join(n.op for n in body.nodes)}"
    values = body.values()
    for name in body.outputs:
        shape = values[name].shape
        if len(shape) != len(anchor.output.shape) or not all(map(same, shape, anchor.output.shape)):
            return f"{anchor.op} of shape {list(anchor.output.shape)} followed by a value of shape {list(shape)}"
    return None


@dataclass(frozen=True)
class Region:
    """An anchored region inside its open kernel."""

    body: Graph
    anchor: Node
    inputs: Mapping[str, Operand]
    outputs: Mapping[str, Operand]
    isa: Isa
    share: Share | None = None

    @property
    def shape(self) -> tuple[Expr, ...]:
        """Extents of the anchor's first input."""
        return tuple(self.body.values()[self.anchor.inputs[0]].shape)

    @property
    def dtype(self) -> str:
        """Type of the anchor's first input."""
        return self.body.values()[self.anchor.inputs[0]].dtype

    def value(self, name: str, index: Sequence[Expr], lanes: int, mask: Expr = None) -> Expr:
        """A value that does not depend on the anchor; `index` may have more dimensions than the value."""
        rank = len(self.body.values()[name].shape)
        place = [whole_index(i) for i in index][len(index) - rank :]
        return let(Evaluator(self.body, self.inputs, self.isa).value(name, place, lanes, mask))

    def x(self, index: Sequence[Expr], lanes: int, mask: Expr = None) -> Expr:
        """What the anchor reads."""
        return self.value(self.anchor.inputs[0], index, lanes, mask)

    def finish(self, index: Sequence[Expr], result: Expr, lanes: int, mask: Expr = None) -> None:
        """Compute what follows the anchor's `result` and store the outputs."""
        place = [whole_index(i) for i in index]
        evaluator = Evaluator(self.body, self.inputs, self.isa)
        evaluator.bind(self.anchor.output.name, let(result))
        for name, output in self.outputs.items():
            output.store(place, evaluator.value(name, place, lanes, mask), lanes, mask)


@contextmanager
def region_kernel(
    name: str, body: Graph, layouts: Mapping[str, Layout], isa: Isa, dims: Sequence[Any],
    halo_fill: Mapping[str, float], shared: bool = False,
) -> Iterator[tuple[Any, Region]]:  # fmt: skip
    """Open the kernel of `body`, halos of its outputs filled; yields (kernel, region)."""
    values = body.values()
    names = [*(v.name for v in body.inputs), *body.outputs]
    with kernel(name, [(n, values[n].dtype, layouts[n]) for n in names], dims, shared=shared) as opened:
        anchor, count = anchor_of(body), len(body.inputs)
        assert anchor is not None
        inputs = dict(zip(names[:count], opened.operands, strict=False))
        outputs = dict(zip(names[count:], opened.operands[count:], strict=True))
        for output, value in halo_fill.items():
            fill_halo(outputs[output], value)
        yield opened, Region(body, anchor, inputs, outputs, isa, opened.share)


Emit = Callable[[str, Graph, Mapping[str, Layout], Isa, Sequence[Any], Mapping[str, float]], Any]


def emitter(write: Callable[[Region], None], rows: Callable[[Graph], Sequence[Expr]] = lambda _: ()) -> Emit:
    """A family's ``emit``, from what writes the code of a region into its open kernel.

    `rows` are the extents of the loops around all else, of which `write` shares out one (see `loops`) where the region
    is long; without any, the kernel is never shared out.

    The kernel's parameters are the body's inputs in order, then its outputs, then `dims`.
    """

    def emit(
        name: str, body: Graph, layouts: Mapping[str, Layout], isa: Isa, dims: Sequence[Any], halo: Mapping[str, float]
    ) -> Any:
        anchor = anchor_of(body)
        assert anchor is not None
        several = any(not isinstance(extent, int) or extent > 1 for extent in rows(body))
        long = several and is_long(body.values()[anchor.inputs[0]].shape)
        with region_kernel(name, body, layouts, isa, dims, halo, long) as (kernel, region):
            write(region)
        return kernel.func

    return emit


# --- loops -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """One vector of a sweep: where it begins, and which of its lanes exist (None: all)."""

    base: Expr
    mask: Expr = None


def vector_lanes(isa: Isa, bits: int, extent: Expr) -> int:
    """Lanes of one vector along an axis of `extent`: no more than its next power of two."""
    lanes = isa.lanes(bits)
    return min(lanes, 1 << (extent - 1).bit_length()) if isinstance(extent, int) and extent > 0 else lanes


def sweep(extent: Expr, lanes: int, most: int, visit: Callable[[list[Piece]], None], overlap: bool = False) -> None:
    """Visit an axis in groups of up to `most` vectors; the last one is masked where the extent leaves a rest.

    With `overlap` the last vector begins earlier instead, where there is room: some elements are visited twice.
    """
    if not isinstance(extent, int):
        _sweep_symbolic(extent, lanes, most, visit)
        return
    full, tail = divmod(extent, lanes)
    groups, rest = divmod(full, most)
    if groups:
        with loop(groups) as group:
            visit([Piece(simplify(group * (most * lanes) + v * lanes)) for v in range(most)])
    done = groups * most
    pieces = [Piece((done + v) * lanes) for v in range(rest)]
    if tail and overlap and full:
        pieces.append(Piece(extent - lanes))
    elif tail:
        pieces.append(Piece(full * lanes, let(tail_mask(T.int32(tail), lanes))))
    if pieces:
        visit(pieces)


def _sweep_symbolic(extent: Expr, lanes: int, most: int, visit: Callable[[list[Piece]], None]) -> None:
    groups = let(T.truncdiv(extent, T.int64(most * lanes)))
    with loop(groups) as group:
        visit([Piece(simplify(group * (most * lanes) + v * lanes)) for v in range(most)])
    done = let(groups * (most * lanes))
    if most > 1:
        singles = let(T.truncdiv(extent - done, T.int64(lanes)))
        with loop(singles) as single:
            visit([Piece(simplify(done + single * lanes))])
        done = let(done + singles * lanes)
    if lanes > 1:
        rest = let(extent - done)
        with T.If(rest > T.int64(0)), T.Then():
            visit([Piece(done, let(tail_mask(rest, lanes)))])


# --- accumulators ----------------------------------------------------------------------------------------------------


class Accumulator:
    """A vector (or scalar) variable: a stack slot that LLVM keeps in a register."""

    def __init__(self, dtype: str, lanes: int, start: Expr) -> None:
        self.slot, self.place = stack(dtype, lanes), positions(0, lanes)
        self.set(start)

    def get(self) -> Expr:
        """The present value."""
        return self.slot[self.place]

    def set(self, value: Expr) -> None:
        """Assign."""
        T.buffer_store(self.slot, value, [self.place])


Combine = Callable[[Expr, Expr], Expr]


def tree(values: Sequence[Expr], combine: Combine) -> Expr:
    """Combine neighbours pairwise until one value is left."""
    found = list(values)
    while len(found) > 1:
        pairs = [let(combine(a, b)) for a, b in zip(found[::2], found[1::2], strict=False)]
        found = pairs + found[len(found) // 2 * 2 :]
    return found[0]


def across(value: Expr, dtype: str, lanes: int, combine: Combine) -> Expr:
    """Combine the lanes of a vector into a scalar: the upper half with the lower one, again and again."""
    while lanes > 1:
        slot = stack(dtype, lanes)
        T.buffer_store(slot, value, [positions(0, lanes)])
        lanes //= 2
        value = let(combine(slot[positions(0, lanes)], slot[positions(lanes, lanes)]))
    return value


def wrapping(operation: str, a: Expr, b: Expr) -> Expr:
    """``add`` or ``mul`` of integers modulo 2**bits.

    TVM declares the overflow of 32-bit and wider arithmetic impossible, of signed integers and of unsigned ones, and
    LLVM draws conclusions from it (it drops a relu after an unsigned difference). The vector-predicated intrinsics
    carry no such claim and become the plain instruction.
    """
    dtype, lanes = element(a), lanes_of(a)
    if lanes == 1:  # the intrinsics are for vectors; LLVM takes the one lane out again
        pair = stack(dtype, 2)
        T.buffer_store(pair, wrapping(operation, splat(a, 2), splat(b, 2)), [positions(0, 2)])
        return let(pair[0])
    every = T.broadcast(T.bool(True), lanes)
    return intrinsic(f"llvm.vp.{operation}", a, b, every, T.uint32(lanes))


def masked(piece: Piece, value: Expr, neutral: Expr) -> Expr:
    """`value` with `neutral` in the lanes that do not exist."""
    return value if piece.mask is None else select(piece.mask, value, neutral)
