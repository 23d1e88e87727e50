"""Operators that each output element finds for itself, with a loop over what it depends on."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.graph import Node, Value
from dlc.targets.gpu.kernels.elementwise import extreme, wrap
from dlc.targets.gpu.kernels.evaluate import Evaluator, Follow, Index
from dlc.targets.gpu.source import c_type, literal


def declines(node: Node, inputs: Sequence[Value]) -> str | None:
    """Why an operator cannot be written here; None when it can."""
    if node.op == "dlc.scatter_rows" and node.attrs["reduction"] not in ("none", "add", "mul", "max", "min"):
        return f"reduction '{node.attrs['reduction']}'"
    return None


def extents(ev: Evaluator, node: Node, index: Index) -> str:
    """A vector of extents: the one at the index."""
    result = ev.w.fresh("v")
    ev.w.line(f"i64 {result} = 0;")
    for position, dim in enumerate(node.attrs["shape"]):
        ev.w.line(f"if ({index[0]} == {position}) {result} = {ev.w.extent(dim)};")
    return result


def positions(ev: Evaluator, node: Node, index: Index) -> str:
    """0, 1, ...: the index itself."""
    return f"({c_type(node.output.dtype)}){index[0]}"


def _accumulate(dtype: str, mode: str, a: str, b: str) -> str:
    if mode in ("max", "min"):
        return extreme(dtype, ">" if mode == "max" else "<", a, b)
    operator = "*" if mode in ("mul", "prod") else "+"
    if dtype.startswith("float"):
        return f"{a} {operator} {b}"
    return wrap(dtype, lambda x, y: f"{x} {operator} {y}", a, b)


def cumulate(ev: Evaluator, node: Node, index: Index) -> str:
    """A running sum or product: every element adds up its own beginning, in the order that the meaning has."""
    (x,), attrs, axis = node.inputs, node.attrs, node.attrs["axis"]
    dtype, extent = node.output.dtype, ev.w.extent(ev.values[x].shape[axis])
    result, step = ev.w.fresh("acc"), ev.w.fresh("k")
    ev.w.line(f"{c_type(dtype)} {result} = {literal(0 if attrs['mode'] == 'sum' else 1, dtype)};")
    own = index[axis]
    count = f"{extent} - {own}" if attrs["reverse"] else f"{own} + 1"
    with ev.block(f"for (int {step} = 0; {step} < {count}{' - 1' if attrs['exclusive'] else ''}; ++{step})"):
        place = ev.w.let("int", f"{extent} - 1 - {step}" if attrs["reverse"] else step, "i")
        element = ev.at(x, (*index[:axis], place, *index[axis + 1 :]))
        ev.w.line(f"{result} = {_accumulate(dtype, attrs['mode'], result, element)};")
    return result


def scatter_rows(ev: Evaluator, node: Node, index: Index) -> str:
    """Each element looks for the updates of its row, in their order."""
    data, places, updates = node.inputs
    mode, dtype = node.attrs["reduction"], node.output.dtype
    result, step = ev.w.fresh("v"), ev.w.fresh("k")
    ev.w.line(f"{c_type(dtype)} {result} = {ev.at(data, index)};")
    with ev.block(f"for (int {step} = 0; {step} < {ev.w.extent(ev.values[places].shape[0])}; ++{step})"):
        position = ev.at(places, (step,))
        with ev.block(f"if ({position} == {index[0]})"):
            update = ev.at(updates, (step, *index[1:]))
            ev.w.line(f"{result} = {update if mode == 'none' else _accumulate(dtype, mode, result, update)};")
    return result


def before(dtype: str, a: str, i: str, b: str, j: str, comparison: str, nan_first: bool) -> str:
    """Whether element `a` at position `i` ranks before `b` at `j`; of equal ones the lower position does.

    `comparison` is ``>`` where the largest comes first. A NaN counts as first with `nan_first`, else as last.
    """
    if not dtype.startswith("float"):
        return f"({a} {comparison} {b} || ({a} == {b} && {i} < {j}))"
    first, second = (a, b) if nan_first else (b, a)
    ahead = f"({first} != {first} && {second} == {second})"
    equal = f"({a} == {b} || ({a} != {a} && {b} != {b}))"
    return f"({a} {comparison} {b} || {ahead} || ({equal} && {i} < {j}))"


def top_indices(ev: Evaluator, node: Node, index: Index) -> str:
    """The element with as many before it as this output's place says."""
    (x,), axis = node.inputs, node.attrs["axis"]
    value = ev.values[x]
    extent, largest = ev.w.extent(value.shape[axis]), bool(node.attrs["largest"])
    result, i, j, rank = (ev.w.fresh(p) for p in ("v", "i", "j", "rank"))
    ev.w.line(f"i64 {result} = 0;")
    with ev.block(f"for (int {i} = 0; {i} < {extent}; ++{i})"):
        own = ev.at(x, (*index[:axis], i, *index[axis + 1 :]))
        ev.w.line(f"int {rank} = 0;")
        with ev.block(f"for (int {j} = 0; {j} < {extent}; ++{j})"):
            other = ev.at(x, (*index[:axis], j, *index[axis + 1 :]))
            ev.w.line(f"{rank} += {before(value.dtype, other, j, own, i, '>' if largest else '<', largest)};")
        ev.w.line(f"if ({rank} == {index[axis]}) {result} = {i};")
    return result


GATHER: dict[str, Follow] = {
    "dlc.extents": extents,
    "dlc.positions": positions,
    "dlc.cumulate": cumulate,
    "dlc.scatter_rows": scatter_rows,
    "dlc.top_indices": top_indices,
}
