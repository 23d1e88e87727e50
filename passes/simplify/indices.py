"""Positions lose what they do not need: counting from the end where they cannot be negative, sums of one element."""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import keeps_type
from dlc.pipeline import Context, Pass

_REDUCTIONS = frozenset(f"relax.{name}" for name in ("sum", "mean", "max", "min", "prod"))
_PICKS = ("relax.reshape", "relax.broadcast_to", "relax.strided_slice", "relax.permute_dims", "relax.take")


def _never_negative(rw: Rewriter, name: str) -> bool:
    """Whether an integer is known to be zero or more."""
    array = rw.constant(name)
    if array is not None:
        return bool((array >= 0).all())
    node = rw.producer(name)
    if node is None or not node.output.dtype.startswith(("int", "uint")):
        return False
    if node.op == "relax.floor_mod":
        divisor = rw.constant(node.inputs[1])
        return divisor is not None and bool((divisor > 0).all())
    if node.op in _PICKS:
        return _never_negative(rw, node.inputs[0])
    if node.op == "relax.astype":
        # A narrower type may wrap.
        wide = rw.value(node.inputs[0]).dtype.startswith(("int", "uint")) and node.output.dtype == "int64"
        return wide and rw.value(node.inputs[0]).dtype != "uint64" and _never_negative(rw, node.inputs[0])
    return node.op == "dlc.positions"


def _from_front(rw: Rewriter, node: Node) -> Any:
    """where(p < 0, p + n, p) is p."""
    test = rw.producer(node.inputs[0], "relax.less")
    if test is None or rw.scalar(test.inputs[1]) != 0 or test.inputs[0] != node.inputs[2]:
        return None
    kept = keeps_type(rw, node, node.inputs[2]) and _never_negative(rw, node.inputs[2])
    return rw.new(node.inputs[2]) if kept else None


def _reduced(rw: Rewriter, node: Node) -> Any:
    """A reduction over extents of one moves nothing."""
    value = rw.value(node.inputs[0])
    if any(value.shape[axis] != 1 for axis in node.attrs["axes"]) or value.dtype != node.output.dtype:
        return None
    return rw.emit("relax.reshape", [rw.new(value.name)], {"shape": node.output.shape}, node.origin)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op == "relax.where":
            return _from_front(rw, node)
        return _reduced(rw, node) if node.op in _REDUCTIONS else None

    return rewrite(module, handle)


PASS = Pass("indices", run)
