"""One-dimensional operands of a matmul as matrices with one row or one column, between reshapes, which move nothing."""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op != "dlc.matmul" or all(len(rw.value(name).shape) > 1 for name in node.inputs):
            return None
        a, b = (rw.value(name).shape for name in node.inputs)
        left, right = rw.new(node.inputs[0]), rw.new(node.inputs[1])
        if len(a) == 1:
            left = rw.emit("relax.reshape", [left], {"shape": (1, *a)}, node.origin)
        if len(b) == 1:
            right = rw.emit("relax.reshape", [right], {"shape": (*b, 1)}, node.origin)
        result = rw.emit("dlc.matmul", [left, right], node.attrs, node.origin)
        return rw.emit("relax.reshape", [result], {"shape": node.output.shape}, node.origin)

    return rewrite(module, handle)


PASS = Pass("matrices", run)
