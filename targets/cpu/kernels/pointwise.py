"""Kernels of regions without an anchor: elementwise chains and data movement, one or several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, Operand, Share, is_long, kernel, let
from dlc.targets.cpu.kernels.collapse import collapse
from dlc.targets.cpu.kernels.contract_loops import loops
from dlc.targets.cpu.kernels.evaluate import ELEMENTWISE, Evaluator, compute_width
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.kernels.injective import INJECTIVE, refuses
from dlc.targets.cpu.kernels.loops import Body, has_masks, int64, vectors
from dlc.targets.cpu.kernels.transpose import fill, join, rides_on, turned
from dlc.targets.cpu.kernels.vector import width
from dlc.targets.layout import Layout, simplify

UNROLL = 4


def unsupported(body: Graph, anchors: Sequence[str] = ()) -> str | None:
    """The first node that the evaluator cannot compute, as a reason; `anchors` are computed by somebody else."""
    shapes = body.values()
    for node in body.nodes:
        if node.op in anchors:
            continue
        if node.op in INJECTIVE:
            reason = refuses(node, [shapes[n].shape for n in node.inputs])
            if reason is not None:
                return reason
        elif node.op not in ELEMENTWISE and node.op != "dlc.table":
            return f"operator {node.op} is not elementwise"
    return None


def declines(body: Graph) -> str | None:
    """Why the region cannot be generated here; None when it can."""
    large = [name for name, array in body.constants.items() if array.size != 1]
    if large:
        return f"constant '{large[0]}' has more than one element"
    return unsupported(body)


def memory_bits(operands: Sequence[Operand]) -> int:
    """Bits of the narrowest element in memory: what decides whether masks are cheap."""
    return min(width(o.storage) for o in operands)


def emit(
    name: str,
    body: Graph,
    layouts: Mapping[str, Layout],
    isa: Isa,
    dims: Sequence[Any],
    halo_fill: Mapping[str, float] | None = None,
) -> Any:
    """The kernel of a region without an anchor; parameters: the body's inputs, its outputs, `dims`.

    `halo_fill` says what surrounds an output in its buffer, by name.
    """
    values = body.values()
    names = [v.name for v in body.inputs] + list(body.outputs)
    params = [(f"a{i}", values[n].dtype, layouts[n]) for i, n in enumerate(names)]
    small, small_layouts = join(*collapse(body, layouts))
    shared = turned(small) is None and len({str(small.values()[n].shape) for n in small.outputs}) == 1
    shared = shared and is_long(small.values()[small.outputs[0]].shape)
    with kernel(name, params, dims, shared=shared) as k:
        count = len(body.inputs)
        outputs = dict(zip(body.outputs, k.operands[count:], strict=True))
        for output, number in (halo_fill or {}).items():
            fill_halo(outputs[output], number)
        inputs = {
            v.name: _relaid(operand, small_layouts[v.name])
            for v, operand in zip(body.inputs, k.operands[:count], strict=True)
        }
        outs = {n: _relaid(o, small_layouts[n]) for n, o in outputs.items()}
        _fill(small, inputs, outs, isa, k.share)
    return k.func


def _relaid(operand: Operand, layout: Layout) -> Operand:
    return Operand(operand.name, operand.dtype, layout, operand.buffer)


def _fill(
    body: Graph, inputs: Mapping[str, Operand], outputs: Mapping[str, Operand], isa: Isa, share: Share | None
) -> None:
    masked = has_masks(isa, memory_bits([*inputs.values(), *outputs.values()]))
    transpose = turned(body)
    if transpose is not None:
        fill(body, inputs, outputs, isa, transpose, masked)
        return
    evaluator = Evaluator(body, inputs, isa)
    lanes = isa.lanes(compute_width(body))
    values = body.values()
    by_shape: dict[str, list[str]] = {}
    for name in body.outputs:
        by_shape.setdefault(str(values[name].shape), []).append(name)
    joined = joined_pieces(body)
    for names in by_shape.values():
        shape = values[names[0]].shape
        if not shape:
            for name in names:
                outputs[name].store((), evaluator.value(name, ()), 1)
            continue

        def store(place: Sequence[Expr], width: int, mask: Expr, names: Sequence[str] = names) -> None:
            found = [evaluator.value(name, place, width, mask) for name in names]
            for name, value in zip(names, found, strict=True):
                outputs[name].store(place, value, width, mask)

        if joined is None or (share is not None and len(shape) == 1):
            _cover(shape, store, lanes, masked, share)
            continue
        axis, begin = int(joined.attrs["axis"]) % len(shape), 0
        for number, piece in enumerate(joined.inputs):
            evaluator.pieces = {joined.output.name: number}
            extent = values[piece].shape[axis]
            _cover(_put(shape, axis, extent), _moved(store, axis, begin), lanes, masked, share)
            begin = simplify(begin + extent)


Store = Callable[[Sequence[Expr], int, Expr], None]  # index, lanes, mask


def joined_pieces(body: Graph) -> Node | None:
    """The only concatenation, if all outputs follow it element by element: each piece then has loops of its own."""
    found = [n for n in body.nodes if n.op == "relax.concat"]
    return found[0] if len(found) == 1 and rides_on(body, found[0]) else None


def _put(shape: Sequence[Expr], axis: int, extent: Expr) -> tuple[Expr, ...]:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _moved(store: Store, axis: int, begin: Expr) -> Store:
    """Stores `begin` further along an axis."""
    return lambda place, width, mask: store(_put(place, axis, simplify(place[axis] + begin)), width, mask)


def _cover(shape: Sequence[Expr], store: Store, lanes: int, masked: bool, share: Share | None) -> None:
    """Store every element of a tensor of `shape`."""
    with loops(shape[:-1], share if len(shape) > 1 else None) as index:

        def step(position: Expr, width: int, mask: Expr) -> None:
            store((*index, position), width, mask)

        if share is None or len(shape) > 1:
            vectors(shape[-1], lanes, step, masked, UNROLL)
        else:
            _part(shape[-1], lanes, step, masked, share)


def _part(extent: Expr, lanes: int, step: Body, masked: bool, share: Share) -> None:
    """One part of a vector. Parts begin at whole groups of vectors."""
    group = lanes * UNROLL
    low, high = share.bounds(simplify((extent + group - 1) // group))
    low, high = let(low * group), let(T.min(high * group, int64(extent)))
    count = let(T.max(high - low, T.int64(0)))
    vectors(count, lanes, lambda at, width, mask: step(low + at, width, mask), masked, UNROLL)
