"""Contractions of short floats in float32, between casts: float32 has the fast kernels, and its sums are as exact.

The cast of a constant happens here, but kernels take bfloat16 weights as they are; that of an activation becomes a
copy, that of the result rides on the store. Where a target multiplies bfloat16 by bfloat16 with sums in float32, both
operands stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

_SHORT = ("float16", "bfloat16")
_CONTRACTIONS = ("dlc.conv", "dlc.matmul")
Unfit = Callable[
    [Node, Any], str | None
]  # a product, its weight where that is constant -> why bfloat16 must be widened


def _run(module: Any, context: Context, unfit: Unfit | None) -> Any:
    wide: dict[str, Any] = {}

    def widened(rw: Rewriter, name: str, node: Node) -> Any:
        array = rw.constant(name)
        if array is not None and array.dtype == "bfloat16" and name == node.inputs[1] != node.inputs[0]:
            return rw.new(name)
        if name not in wide:
            if array is not None:
                wide[name] = rw.const(array.astype(np.float32))
            else:
                wide[name] = rw.emit("relax.astype", [rw.new(name)], {"dtype": "float32"}, node.origin)
        return wide[name]

    def handle(rw: Rewriter, node: Node) -> Any:
        dtype = node.output.dtype
        if node.op not in _CONTRACTIONS or dtype not in _SHORT:
            return None
        short = unfit is not None and all(rw.value(name).dtype == "bfloat16" for name in node.inputs)
        reason = unfit(node, rw.constant(node.inputs[1])) if unfit is not None and short else ""
        if reason is not None:
            because = f": {reason}" if reason else ""
            context.decline("widen", node.origin, f"{dtype} is multiplied as float32{because}")
        inputs = [rw.new(name) if reason is None else widened(rw, name, node) for name in node.inputs]
        result = rw.emit(node.op, inputs, {**node.attrs, "out_dtype": "float32"}, node.origin)
        return rw.emit("relax.astype", [result], {"dtype": dtype}, node.origin)

    return rewrite(module, handle)


def widen_pass(unfit: Unfit | None) -> Pass:
    """The pass; `unfit` says why the target cannot multiply bfloat16 by bfloat16, None that it never can."""
    return Pass("widen", lambda module, context: _run(module, context, unfit))
