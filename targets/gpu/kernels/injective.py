"""Operators whose every output element is one input element somewhere else: the evaluator follows the index."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np

from dlc.ir.graph import Node
from dlc.targets.gpu.kernels.evaluate import Evaluator, Follow, Index, add, multiply
from dlc.targets.gpu.source import c_type, literal


def _with(index: Index, axis: int, component: str) -> Index:
    return (*index[:axis], component, *index[axis + 1 :])


def _minus(a: str, b: str) -> str:
    if b == "0":
        return a
    return str(int(a) - int(b)) if a.lstrip("-").isdigit() and b.isdigit() else f"({a} - {b})"


def permute_dims(ev: Evaluator, node: Node, index: Index) -> str:
    """Output dimension i is input dimension axes[i]."""
    source = [""] * len(index)
    for position, axis in enumerate(node.attrs["axes"]):
        source[int(axis) % len(index)] = index[position]
    return ev.at(node.inputs[0], tuple(source))


def broadcast_to(ev: Evaluator, node: Node, index: Index) -> str:
    """numpy's broadcast."""
    return ev.at(node.inputs[0], ev.broadcast(ev.values[node.inputs[0]].shape, index))


def strided_slice(ev: Evaluator, node: Node, index: Index) -> str:
    """Every axis on its own: begin + i * stride."""
    attrs = node.attrs
    for axis, begin, stride in zip(attrs["axes"], attrs["begin"], attrs["strides"], strict=True):
        axis, stride = int(axis) % len(index), int(stride)
        moved = multiply(index[axis], str(stride)) if stride >= 0 else f"{index[axis]} * ({stride})"
        index = _with(index, axis, ev.w.let("int", add(moved, ev.w.extent(begin)), "i"))
    return ev.at(node.inputs[0], index)


def concat(ev: Evaluator, node: Node, index: Index) -> str:
    """A chain of comparisons finds the piece; only that piece is read."""
    axis = int(node.attrs["axis"]) % len(index)
    position = ev.w.let("int", index[axis], "i")
    result = ev.w.fresh("v")
    ev.w.line(f"{c_type(node.output.dtype)} {result};")
    begin = "0"
    for number, name in enumerate(node.inputs):
        end = ev.w.let("int", add(begin, ev.w.extent(ev.values[name].shape[axis])), "i")
        last = number == len(node.inputs) - 1
        # `end` was named at this level: conditions stay outside of the scopes that they choose.
        header = f"if ({position} >= {begin})" if last else f"if ({position} >= {begin} && {position} < {end})"
        with ev.block(header):
            local = ev.w.let("int", _minus(position, begin), "i")
            ev.w.line(f"{result} = {ev.at(name, _with(index, axis, local))};")
        begin = end
    return result


def pad(ev: Evaluator, node: Node, index: Index) -> str:
    """Constant padding by a condition; the other modes by folding the index back into the tensor."""
    name, widths, mode = node.inputs[0], node.attrs["pad_width"], node.attrs["mode"]
    extents = ev.extents(ev.values[name].shape)
    source, conditions = list(index), []
    for axis in range(len(index)):
        before, after = (int(w) for w in widths[2 * axis : 2 * axis + 2])
        if not before and not after:
            continue
        local = ev.w.let("int", f"{index[axis]} - ({before})", "i")
        if mode == "constant":
            conditions.append(f"(u32){local} < (u32){extents[axis]}")
        else:
            local = ev.w.let("int", _FOLDS[mode](ev, local, extents[axis]), "i")
        source[axis] = local
    if not conditions:
        return ev.at(name, tuple(source))
    value = float(np.asarray(node.attrs["value"]))
    kind = node.output.dtype
    fill = literal(value if kind.startswith("float") or abs(value) == inf else int(value), kind)
    result = ev.w.fresh("v")
    ev.w.line(f"{c_type(kind)} {result} = {fill};")
    with ev.block(f"if ({' && '.join(conditions)})"):
        ev.w.line(f"{result} = {ev.at(name, tuple(source))};")
    return result


def _clamp(ev: Evaluator, i: str, n: str) -> str:
    return f"{i} < 0 ? 0 : {i} < {n} ? {i} : {n} - 1"


def _modulo(ev: Evaluator, i: str, period: str) -> str:
    return ev.w.let("int", f"(({i}) % ({period}) + ({period})) % ({period})", "i")


def _reflect(ev: Evaluator, i: str, n: str) -> str:
    period = ev.w.let("int", f"{n} > 1 ? 2 * {n} - 2 : 1", "i")
    rest = _modulo(ev, i, period)
    return f"{rest} < {n} ? {rest} : {period} - {rest}"


def _symmetric(ev: Evaluator, i: str, n: str) -> str:
    rest = _modulo(ev, i, f"2 * {n}")
    return f"{rest} < {n} ? {rest} : 2 * {n} - 1 - {rest}"


_FOLDS: dict[str, Callable[[Evaluator, str, str], str]] = {
    "edge": _clamp,
    "reflect": _reflect,
    "symmetric": _symmetric,
    "wrap": _modulo,
}
PAD_MODES = frozenset({"constant", *_FOLDS})


def _wrapped(ev: Evaluator, position: str, extent: str) -> str:
    """A given position: negative ones count from the end; what lies outside is pulled in, not read."""
    wide = ev.w.let("i64", f"(i64){position}")
    wide = ev.w.let("i64", f"{wide} < 0 ? {wide} + {extent} : {wide}")
    return ev.w.let("int", f"(int)({wide} < 0 ? 0 : {wide} < {extent} ? {wide} : (i64){extent} - 1)", "i")


def take(ev: Evaluator, node: Node, index: Index) -> str:
    """The indices' dimensions stand where the axis was."""
    x, indices = node.inputs
    shape, rank = ev.values[x].shape, len(ev.values[indices].shape)
    axis = int(node.attrs["axis"]) % len(shape)
    position = _wrapped(ev, ev.at(indices, index[axis : axis + rank]), ev.w.extent(shape[axis]))
    return ev.at(x, (*index[:axis], position, *index[axis + rank :]))


def gather_elements(ev: Evaluator, node: Node, index: Index) -> str:
    """Each element has its own position along the axis."""
    x, indices = node.inputs
    axis = int(node.attrs["axis"]) % len(index)
    position = _wrapped(ev, ev.at(indices, index), ev.w.extent(ev.values[x].shape[axis]))
    return ev.at(x, _with(index, axis, position))


INJECTIVE: dict[str, Follow] = {
    "relax.permute_dims": permute_dims,
    "relax.broadcast_to": broadcast_to,
    "relax.strided_slice": strided_slice,
    "relax.concat": concat,
    "relax.nn.pad": pad,
    "relax.take": take,
    "relax.gather_elements": gather_elements,
}
