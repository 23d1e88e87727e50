"""Contractions of short floats in float32, between casts: float32 has the fast kernels, and its sums are as exact.

The cast of a constant happens here, but kernels take bfloat16 weights as they are; that of an activation becomes a
copy, that of the result rides on the store.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

_SHORT = ("float16", "bfloat16")
_CONTRACTIONS = ("dlc.conv", "dlc.matmul")


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
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
        context.decline("widen", node.origin, f"{dtype} is multiplied as float32")
        inputs = [widened(rw, name, node) for name in node.inputs]
        result = rw.emit(node.op, inputs, {**node.attrs, "out_dtype": "float32"}, node.origin)
        return rw.emit("relax.astype", [result], {"dtype": dtype}, node.origin)

    return rewrite(module, handle)


PASS = Pass("widen", run)
