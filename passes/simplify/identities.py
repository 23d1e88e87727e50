"""Nodes that do nothing go, and small groups become one node of the same value.

Only rewrites that are right for every input are here: ``x * 0`` is not 0 for an infinity, so it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import constant_operand, filled_with, inner, keeps_type
from dlc.pipeline import Context, Pass

Rule = Callable[[Rewriter, Node], Any]


def _neutral(number: float) -> Rule:
    """An operator for which `number`, on either side, changes nothing."""

    def rule(state: Rewriter, node: Node) -> Any:
        found = constant_operand(state, node)
        if found is None or not filled_with(found[1], number) or not keeps_type(state, node, found[0]):
            return None
        return state.new(found[0])

    return rule


def _merge_constants(state: Rewriter, node: Node) -> Any:
    """(x + a) + b and (x * a) * b of floats: one constant, where nothing else reads the inner value."""
    outer = constant_operand(state, node)
    first = inner(state, outer[0], node.op) if outer is not None else None
    found = constant_operand(state, first) if first is not None else None
    if outer is None or found is None or outer[1].dtype.kind != "f":
        return None
    combine = np.add if node.op == "relax.add" else np.multiply
    with np.errstate(all="ignore"):
        constant = combine(found[1].astype(np.float64), outer[1].astype(np.float64)).astype(outer[1].dtype)
    return state.emit(node.op, [state.new(found[0]), state.const(constant)], node.attrs, node.origin)


def _subtract(state: Rewriter, node: Node) -> Any:
    """x - 0 is x, and x - c of floats is x + (-c), so that other rules see additions alone."""
    constant = state.constant(node.inputs[1])
    if constant is None:
        return None
    if filled_with(constant, 0) and keeps_type(state, node, node.inputs[0]):
        return state.new(node.inputs[0])
    if constant.dtype.kind != "f" or state.constant(node.inputs[0]) is not None:
        return None
    return state.emit("relax.add", [state.new(node.inputs[0]), state.const(-constant)], {}, node.origin)


def _divide(state: Rewriter, node: Node) -> Any:
    """x / 1 is x; a division of floats by a power of two is a multiplication, and exactly that."""
    constant = state.constant(node.inputs[1])
    if constant is None:
        return None
    if filled_with(constant, 1) and keeps_type(state, node, node.inputs[0]):
        return state.new(node.inputs[0])
    if constant.dtype.kind != "f" or constant.size == 0 or not np.all(np.isfinite(constant) & (constant != 0)):
        return None
    mantissa, exponent = np.frexp(constant.astype(np.float64))
    if np.any(np.abs(mantissa) != 0.5) or np.any(np.abs(exponent) > 14):
        return None
    reciprocal = (1 / constant.astype(np.float64)).astype(constant.dtype)
    return state.emit("relax.multiply", [state.new(node.inputs[0]), state.const(reciprocal)], {}, node.origin)


def _power(state: Rewriter, node: Node) -> Any:
    exponent = state.scalar(node.inputs[1])
    if exponent == 1 and keeps_type(state, node, node.inputs[0]):
        return state.new(node.inputs[0])
    if exponent == 2 and keeps_type(state, node, node.inputs[0]):
        base = state.new(node.inputs[0])
        return state.emit("relax.multiply", [base, base], {}, node.origin)
    return None


def _maximum(state: Rewriter, node: Node) -> Any:
    """maximum(x, 0) of floats is relu."""
    found = constant_operand(state, node)
    if found is None or not filled_with(found[1], 0) or found[1].dtype.kind != "f":
        return None
    if not keeps_type(state, node, found[0]):
        return None
    return state.emit("relax.nn.relu", [state.new(found[0])], {}, node.origin)


def _same_type(state: Rewriter, node: Node) -> Any:
    """Reshape, broadcast, cast, slice and pad whose result is their input."""
    return state.new(node.inputs[0]) if keeps_type(state, node, node.inputs[0]) else None


def _reshape(state: Rewriter, node: Node) -> Any:
    first = state.producer(node.inputs[0], "relax.reshape")
    if keeps_type(state, node, node.inputs[0]) or first is None:
        return _same_type(state, node)
    return state.emit(node.op, [state.new(first.inputs[0])], node.attrs, node.origin)


def _permute(state: Rewriter, node: Node) -> Any:
    axes = tuple(node.attrs["axes"])
    if axes == tuple(range(len(axes))):
        return state.new(node.inputs[0])
    first = state.producer(node.inputs[0], "relax.permute_dims")
    if first is None:
        return None
    merged = tuple(first.attrs["axes"][axis] for axis in axes)
    source = state.new(first.inputs[0])
    if merged == tuple(range(len(merged))):
        return source
    return state.emit(node.op, [source], {"axes": merged}, node.origin)


def _slice(state: Rewriter, node: Node) -> Any:
    if any(stride != 1 for stride in node.attrs["strides"]):
        return None  # a reversal has the shape of the whole and is not
    whole = _same_type(state, node)
    return whole if whole is not None else _slice_of_concat(state, node)


def _slice_of_concat(state: Rewriter, node: Node) -> Any:
    """A range of a concatenation is the ranges of its pieces, if nothing needs the concatenation as a whole."""
    first = state.producer(node.inputs[0], "relax.concat")
    if first is None or len(node.attrs["axes"]) != 1:
        return None
    (axis,), (begin,), (end,) = (node.attrs[key] for key in ("axes", "begin", "end"))
    extents = [state.value(name).shape[axis] for name in first.inputs]
    if first.attrs["axis"] != axis or not all(isinstance(e, int) for e in (begin, end, *extents)):
        return None
    pieces, start = [], 0
    for name, extent in zip(first.inputs, extents, strict=True):
        low, high = max(begin - start, 0), min(end - start, extent)
        if low < high:
            pieces.append((name, low, high, extent))
        start += extent
    if len(pieces) > 1 and any(r.op != node.op for r in state.consumers[first.output.name]):
        return None

    def cut(name: str, low: int, high: int, extent: int) -> Any:
        attrs = {**node.attrs, "begin": (low,), "end": (high,)}
        return state.emit(node.op, [state.new(name)], attrs) if high - low < extent else state.new(name)

    if len(pieces) > 1:
        return state.emit("relax.concat", [cut(*piece) for piece in pieces], first.attrs, node.origin)
    return cut(*pieces[0]) if pieces else None


def _pad(state: Rewriter, node: Node) -> Any:
    # Widths may be negative, so equal extents alone would not do.
    return None if any(node.attrs["pad_width"]) else state.new(node.inputs[0])


def _concat(state: Rewriter, node: Node) -> Any:
    """One input; or inputs that are concatenations along the same axis, which need not be made first."""
    if len(node.inputs) == 1:
        return state.new(node.inputs[0])
    names: list[str] = []
    for name in node.inputs:
        first = inner(state, name, "relax.concat")
        nested = first is not None and first.attrs["axis"] == node.attrs["axis"]
        names += first.inputs if nested and first is not None else [name]
    if len(names) == len(node.inputs):
        return None
    return state.emit(node.op, [state.new(n) for n in names], node.attrs, node.origin)


def _involution(state: Rewriter, node: Node) -> Any:
    first = state.producer(node.inputs[0], node.op)
    return state.new(first.inputs[0]) if first is not None else None


def _idempotent(state: Rewriter, node: Node) -> Any:
    return state.new(node.inputs[0]) if state.producer(node.inputs[0], node.op) is not None else None


def _first(*rules: Rule) -> Rule:
    def rule(state: Rewriter, node: Node) -> Any:
        for one in rules:
            expr = one(state, node)
            if expr is not None:
                return expr
        return None

    return rule


RULES: dict[str, Rule] = {
    # -0.0 + 0 is 0.0: the sign of a zero is the one thing that dropping an addition of 0 may change.
    "relax.add": _first(_neutral(0), _merge_constants),
    "relax.multiply": _first(_neutral(1), _merge_constants),
    "relax.subtract": _subtract,
    "relax.divide": _divide,
    "relax.power": _power,
    "relax.maximum": _maximum,
    "relax.reshape": _reshape,
    "relax.broadcast_to": _same_type,
    "relax.astype": _same_type,
    "relax.permute_dims": _permute,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
    "relax.concat": _concat,
    "relax.negative": _involution,
    "relax.logical_not": _involution,
    "relax.nn.relu": _idempotent,
    "relax.abs": _idempotent,
    "relax.floor": _idempotent,
    "relax.ceil": _idempotent,
    "relax.round": _idempotent,
}


def run(module: Any, context: Context) -> Any:
    """Apply the rule of each node's operator."""

    def handler(state: Rewriter, node: Node) -> Any:
        rule = RULES.get(node.op)
        return rule(state, node) if rule is not None else None

    return rewrite(module, handler)


PASS = Pass("identities", run)
