"""A carried state of which an iteration replaces some rows is written as what it is, so that only those are stored.

Two other spellings of `dlc.scatter_rows` whose data are a carried state and whose result is its new value:

- concat(s[:p], x, s[q:]) along any axis, where every piece of s stays where it is;
- where(positions == p, x, s) for positions 0, 1, ... along the first axis that is not one, and a p that is known to be
  one of them: a remainder.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.ops.host import LOOP
from dlc.ir.rewrite import Rewriter, map_blocks, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "row_updates"
VIEW = "relax.reshape"


def _scattered(rw: Rewriter, node: Node, state: str, axis: int, rows: Any, positions: Any, update: Any) -> Any:
    """`state` with `rows` rows of `axis` (extents before them joined with it) replaced; `update` has them in order."""
    shape = rw.value(state).shape
    before, inner, origin = prod(shape[:axis]), shape[axis + 1 :], unnamed(node.origin)
    data = rw.emit(VIEW, [rw.new(state)], {"shape": (before * shape[axis], *inner)}, origin)
    update = rw.emit(VIEW, [update], {"shape": (before * rows, *inner)}, origin)
    result = rw.emit("dlc.scatter_rows", [data, positions, update], {"reduction": "none"}, origin)
    return rw.emit(VIEW, [result], {"shape": shape}, node.origin)


def _kept(rw: Rewriter, name: str, state: str, axis: int) -> tuple[int, int] | None:
    """The rows (begin, end) of the state that a piece of a concatenation is; None where it is something else."""
    cut = rw.producer(name, "relax.strided_slice")
    if cut is None or cut.inputs[0] != state or cut.attrs["axes"] != (axis,) or cut.attrs["strides"] != (1,):
        return None
    return cut.attrs["begin"][0], cut.attrs["end"][0]


def _concat(rw: Rewriter, node: Node, state: str) -> Any:
    axis, start = node.attrs["axis"], 0
    if not all(isinstance(d, int) for d in rw.value(state).shape):
        return None
    rows: list[int] = []
    updates = []
    for name in node.inputs:
        extent, kept = rw.value(name).shape[axis], _kept(rw, name, state, axis)
        if kept is None:
            rows += range(start, start + extent)
            updates.append(rw.new(name))
        elif kept != (start, start + extent):
            return None  # it is moved
        start += extent
    if len(updates) == len(node.inputs):
        return None
    shape = rw.value(state).shape
    positions = (np.arange(prod(shape[:axis]))[:, None] * shape[axis] + np.array(rows)).reshape(-1)
    update = rw.emit("relax.concat", updates, {"axis": axis}, unnamed(node.origin)) if len(updates) > 1 else updates[0]
    return _scattered(rw, node, state, axis, len(rows), rw.const(positions.astype(np.int64)), update)


def _bound(rw: Rewriter, name: str) -> int | None:
    """A number that an integer, zero or more, is known to be less than."""
    while (node := rw.producer(name)) is not None and node.op in (VIEW, "relax.astype", "relax.broadcast_to"):
        name = node.inputs[0]
    divisor = rw.scalar(node.inputs[1]) if node is not None and node.op == "relax.floor_mod" else None
    return int(divisor) if divisor is not None and divisor > 0 else None


def _where(rw: Rewriter, node: Node, state: str, context: Context) -> Any:
    shape = rw.value(state).shape
    test = rw.producer(node.inputs[0], "relax.equal")
    axis = next((i for i, extent in enumerate(shape) if extent != 1), None)
    if test is None or axis is None or node.inputs[2] != state or not all(isinstance(d, int) for d in shape):
        return None
    line = (shape[axis], *[1] * (len(shape) - axis - 1))
    for counted, at in (test.inputs, test.inputs[::-1]):
        array = rw.constant(counted)
        if array is None or prod(rw.value(at).shape) != 1 or array.size != shape[axis]:
            continue
        if array.shape[-len(line) :] != line or not np.array_equal(array.reshape(-1), np.arange(shape[axis])):
            continue
        bound = _bound(rw, at)
        if bound is None or bound > shape[axis]:
            context.decline(NAME, node.origin, "where it writes may lie outside: a position that is no remainder")
            return None
        origin = unnamed(node.origin)
        own = rw.value(node.inputs[1]).shape
        if len(own) >= len(line) and own[len(own) - len(line)] != 1:
            return None  # every row has a value of its own
        row_shape = tuple(1 if i == axis else extent for i, extent in enumerate(shape))
        row = rw.emit("relax.broadcast_to", [rw.new(node.inputs[1])], {"shape": row_shape}, origin)
        place = rw.emit(VIEW, [rw.new(at)], {"shape": (1,)}, origin)
        return _scattered(rw, node, state, axis, 1, place, row)
    return None


def _rewritten(block: Any, carried: int, context: Context) -> Any:
    graph = view(block)
    states: Mapping[str, str] = {graph.outputs[1 + i]: graph.inputs[2 + i].name for i in range(carried)}

    def handle(rw: Rewriter, node: Node) -> Any:
        state = states.get(node.output.name)
        if state is None:
            return None
        if node.op == "relax.concat":
            return _concat(rw, node, state)
        return _where(rw, node, state, context) if node.op == "relax.where" else None

    return rewrite(block, handle)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    carried = {b.name: n.attrs["carried"] for n in view(module).nodes if n.op == LOOP for b in n.blocks}
    if not carried:
        return module
    return map_blocks(module, lambda name, block: _rewritten(block, carried.get(name, 0), context))


PASS = Pass(NAME, run)
