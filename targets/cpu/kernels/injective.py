"""Operators whose every output element is one input element somewhere else: the evaluator follows the index.

The last dimension stays a vector where the mapping keeps neighbours together; otherwise the elements are gathered lane
by lane, but what is computed on them stays a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Node
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, hold, splat
from dlc.targets.cpu.kernels.evaluate import At, Evaluator, as_int64, dense_strides, to_gather
from dlc.targets.layout import simplify


def _lanes(component: Expr) -> int:
    return 1 if isinstance(component, int) else v.lanes_of(component)


def _lift(component: Expr, other: Expr) -> Expr:
    """An int64 component with the lanes of `other`."""
    return splat(as_int64(component), v.lanes_of(other)) if _lanes(component) == 1 else component


def _add(component: Expr, amount: Expr) -> Expr:
    if isinstance(amount, int) and amount == 0:
        return component
    if _lanes(component) == 1:
        return simplify(component + amount)
    return component + splat(as_int64(amount), v.lanes_of(component))


def _scale(component: Expr, amount: int) -> Expr:
    if amount == 1:
        return component
    if _lanes(component) > 1:
        return component * v.like(amount, component)
    scaled = simplify(component * amount)
    # Where a loop is run through backwards, TVM's analyser divides wrongly (docs/tvm.md).
    return scaled if amount > 0 or isinstance(scaled, int) else hold(as_int64(scaled))


def _between(component: Expr, low: Expr, high: Expr) -> Expr:
    """Mask of low <= component < high."""
    component = as_int64(component)
    low, high = (_lift(bound, component) for bound in (low, high))
    return v.both(component >= low, component < high)


def _clamp(component: Expr, extent: Expr) -> Expr:
    """Into [0, extent): for positions whose value is not used."""
    component = as_int64(component)
    zero, last = (_lift(as_int64(bound), component) for bound in (0, simplify(extent - 1)))
    if _lanes(component) == 1:
        return T.max(T.min(component, last), zero)
    return hold(v.larger(hold(v.smaller(component, last)), zero))


def _with(at: At, axis: int, component: Expr) -> At:
    return replace(at, index=(*at.index[:axis], component, *at.index[axis + 1 :]))


def _spread(mask: Expr, lanes: int) -> Expr:
    return mask if v.lanes_of(mask) == lanes else T.broadcast(mask, lanes)


def _contiguous_axis(at: At, axis: int) -> bool:
    """Whether the lanes run along `axis`."""
    return not at.gather and at.lanes > 1 and axis == len(at.index) - 1


def reshape(ev: Evaluator, node: Node, at: At) -> Expr:
    """Also of a value that is computed here, through its row-major position."""
    own, shape = ev.values[node.inputs[0]].shape, node.output.shape
    if not own or not shape:
        return splat(ev.at(node.inputs[0], At((0,) * len(own), 1)), at.lanes)
    multiple = isinstance(own[-1], int) and isinstance(shape[-1], int) and shape[-1] and own[-1] % shape[-1] == 0
    same = simplify(own[-1] - shape[-1]) == 0
    if not at.gather and at.lanes > 1 and not (multiple or same):
        operand = ev.operands.get(node.inputs[0])
        if operand is not None and operand.layout.is_dense:
            from dlc.targets.cpu.kernels.storage import widen
            from dlc.targets.layout import Layout

            view = replace(operand, layout=Layout.dense(shape))
            return widen(view.load(at.index, at.lanes, at.mask), operand.dtype)
        at = to_gather(at)
    # A vector may begin outside its row, in lanes that a mask excludes: the row is found by its first element.
    several = not at.gather and at.lanes > 1
    components, begin = ((*at.index[:-1], 0), at.index[-1]) if several else (at.index, 0)
    flat: Expr = None
    for component, stride in zip(components, dense_strides(shape), strict=True):
        term = as_int64(component) * (_lift(stride, component) if _lanes(component) > 1 else as_int64(stride))
        flat = term if flat is None else flat + term
    index = []
    for axis, stride in enumerate(dense_strides(own)):
        part = T.floordiv(flat, _lift(stride, flat)) if not (isinstance(stride, int) and stride == 1) else flat
        part = T.floormod(part, _lift(own[axis], flat)) if axis else part
        index.append(simplify(part) if _lanes(part) == 1 else hold(part))
    index[-1] = _add(index[-1], begin)
    return ev.at(node.inputs[0], replace(at, index=tuple(index)))


def permute_dims(ev: Evaluator, node: Node, at: At) -> Expr:
    """A transpose keeps neighbours together when the last dimension stays the last."""
    axes = [int(a) % len(at.index) for a in node.attrs["axes"]]
    if axes and axes[-1] != len(axes) - 1:
        at = to_gather(at)
    index: list[Expr] = [0] * len(axes)
    for position, axis in enumerate(axes):
        index[axis] = at.index[position]
    return ev.at(node.inputs[0], replace(at, index=tuple(index)))


def broadcast_to(ev: Evaluator, node: Node, at: At) -> Expr:
    """numpy's broadcast."""
    return ev.broadcast(node.inputs[0], node.output.shape, at)


def strided_slice(ev: Evaluator, node: Node, at: At) -> Expr:
    """Every axis on its own; a step along the last one means gathering."""
    rank, attrs = len(at.index), node.attrs
    steps = {
        int(axis) % rank: (begin, int(stride))
        for axis, begin, stride in zip(attrs["axes"], attrs["begin"], attrs["strides"], strict=True)
    }
    if steps.get(rank - 1, (0, 1))[1] != 1:
        at = to_gather(at)
    for axis, (begin, stride) in steps.items():
        at = _with(at, axis, _add(_scale(at.index[axis], stride), begin))
    return ev.at(node.inputs[0], at)


def _piece(ev: Evaluator, name: str, at: At, axis: int, begin: Expr, extent: Expr) -> tuple[Expr, Expr]:
    """(value, validity) of a tensor that covers [begin, begin + extent) of an axis, at any place."""
    local = _add(at.index[axis], simplify(0 - begin))
    if _contiguous_axis(at, axis):
        inside = hold(_between(T.ramp(as_int64(local), T.int64(1), at.lanes), 0, extent))
        mask = inside if at.mask is None else hold(v.both(inside, at.mask))
        return ev.at(name, replace(_with(at, axis, local), mask=mask)), inside
    inside = _spread(_between(local, 0, extent), at.lanes)
    return ev.at(name, _with(at, axis, _clamp(local, extent))), hold(inside)


def concat(ev: Evaluator, node: Node, at: At) -> Expr:
    """All pieces are looked up and the right one is kept, unless `ev.pieces` names the only one in range."""
    axis = int(node.attrs["axis"]) % len(at.index)
    begin: Expr = 0
    result: Expr = None
    for number, name in enumerate(node.inputs):
        extent = ev.values[name].shape[axis]
        if ev.pieces.get(node.output.name) == number:
            return ev.at(name, _with(at, axis, _add(at.index[axis], simplify(0 - begin))))
        if not (isinstance(extent, int) and extent == 0) and node.output.name not in ev.pieces:
            value, inside = _piece(ev, name, at, axis, begin, extent)
            result = value if result is None else hold(v.select_any(inside, value, result))
        begin = simplify(begin + extent)
    return result


def pad(ev: Evaluator, node: Node, at: At) -> Expr:
    """Constant padding by masks; the other modes by folding the index back into the tensor."""
    name, rank = node.inputs[0], len(at.index)
    widths, extents = node.attrs["pad_width"], ev.values[node.inputs[0]].shape
    padded = [axis for axis in range(rank) if any(w != 0 for w in widths[2 * axis : 2 * axis + 2])]
    if node.attrs["mode"] != "constant":
        fold = _FOLDS[node.attrs["mode"]]
        if rank - 1 in padded:
            at = to_gather(at)
        for axis in padded:
            at = _with(at, axis, fold(_add(at.index[axis], -int(widths[2 * axis])), extents[axis]))
        return ev.at(name, at)
    valid: Expr = None
    for axis in padded:
        local = _add(at.index[axis], -int(widths[2 * axis]))
        if _contiguous_axis(at, axis):
            inside = hold(_between(T.ramp(as_int64(local), T.int64(1), at.lanes), 0, extents[axis]))
            at = replace(at, mask=inside if at.mask is None else hold(v.both(inside, at.mask)))
        else:
            inside = hold(_spread(_between(local, 0, extents[axis]), at.lanes))
            local = _clamp(local, extents[axis])
        at = _with(at, axis, local)
        valid = inside if valid is None else hold(v.both(valid, inside))
    value = ev.at(name, at)
    return value if valid is None else v.select_any(valid, value, v.like(node.attrs["value"], value))


def _modulo(component: Expr, period: Expr) -> Expr:
    component = as_int64(component)
    rest = T.floormod(component, _lift(period, component))
    return rest if _lanes(rest) == 1 else hold(rest)


def _reflect(component: Expr, extent: Expr) -> Expr:
    rest = _modulo(component, T.max(as_int64(simplify(2 * extent - 2)), T.int64(1)))
    return (
        v.smaller(rest, _lift(simplify(2 * extent - 2), rest) - rest)
        if _lanes(rest) > 1
        else T.min(rest, as_int64(simplify(2 * extent - 2)) - rest)
    )


def _symmetric(component: Expr, extent: Expr) -> Expr:
    rest = _modulo(component, simplify(2 * extent))
    other = _lift(simplify(2 * extent - 1), rest) - rest
    return v.smaller(rest, hold(other)) if _lanes(rest) > 1 else T.min(rest, other)


_FOLDS: dict[str, Callable[[Expr, Expr], Expr]] = {
    "edge": _clamp, "reflect": _reflect, "symmetric": _symmetric, "wrap": _modulo,
}  # fmt: skip
PAD_MODES = frozenset({"constant", *_FOLDS})


def wrapped_position(position: Expr, extent: Expr) -> Expr:
    """A given position: negative ones count from the end; what lies outside is pulled in, not read."""
    position = as_int64(position) if _lanes(position) == 1 else hold(v.convert(position, "int64"))
    size = _lift(as_int64(extent), position)
    wrapped = T.Select(position < v.like(0, position), position + size, position)
    return _clamp(wrapped if _lanes(wrapped) == 1 else hold(wrapped), extent)


def take(ev: Evaluator, node: Node, at: At) -> Expr:
    """Rows stay vectors; along the last dimension the elements are gathered."""
    x, indices = node.inputs
    shape, rank = ev.values[x].shape, len(ev.values[indices].shape)
    axis = int(node.attrs["axis"]) % len(shape)
    before, inner, after = at.index[:axis], at.index[axis : axis + rank], at.index[axis + rank :]
    if not after and at.lanes > 1:
        along = replace(at, index=inner)
        at = to_gather(at)
        before = at.index[:axis]
        position = ev.at(indices, along) if inner else ev.at(indices, At((), 1))
    else:
        varying = at.gather and any(_lanes(i) > 1 for i in inner)
        position = ev.at(indices, At(inner, at.lanes if varying else 1, None, varying))
    return ev.at(x, replace(at, index=(*before, wrapped_position(position, shape[axis]), *after)))


def gather_elements(ev: Evaluator, node: Node, at: At) -> Expr:
    """Always lane by lane: each element has its own position."""
    x, indices = node.inputs
    axis = int(node.attrs["axis"]) % len(at.index)
    position = wrapped_position(ev.at(indices, at), ev.values[x].shape[axis])
    return ev.at(x, _with(to_gather(at), axis, position))


Follow = Callable[[Evaluator, Node, At], Expr]
INJECTIVE: dict[str, Follow] = {
    "relax.reshape": reshape,
    "relax.permute_dims": permute_dims,
    "relax.broadcast_to": broadcast_to,
    "relax.strided_slice": strided_slice,
    "relax.concat": concat,
    "relax.nn.pad": pad,
    "relax.take": take,
    "relax.gather_elements": gather_elements,
}


def refuses(node: Node, shapes: Sequence[Any]) -> str | None:
    """Why an injective node cannot be followed; None when it can."""
    if node.op == "relax.nn.pad" and node.attrs["mode"] not in PAD_MODES:
        return f"padding mode '{node.attrs['mode']}'"
    return None
