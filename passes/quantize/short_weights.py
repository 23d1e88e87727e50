"""Constant weights in bfloat16: half the bytes; activations and sums stay float32, as far as this pass goes.

Weights of products, and tables whose rows are gathered. Under ``--quantize bf16`` they are rounded to the nearest
bfloat16, half to even. Under every scheme those that hold nothing else already (a model saved in bfloat16, whose
weights are cast in front of their products) are kept so. Kernels read them as they are and widen them, which is exact:
what a target computes differs from the reference by the float arithmetic alone. A target without such kernels gets the
same numbers as float32.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "short_weights"
SCHEME = "bf16"
#: Numbers of a weight below which it stays in the nearest cache also as float32.
LEAST = 1 << 13
_PRODUCTS = ("dlc.conv", "dlc.matmul", "dlc.grouped_matmul")


class _Rounder:
    """The handler's state: the constants made so far, by the name of the old one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.rounds = context.options.quantize == SCHEME
        self.takes_short = context.target is None or context.target.short_weights
        self.made: dict[str, Any] = {}

    def __call__(self, rw: Rewriter, node: Node) -> Any:
        """The node with a shorter weight."""
        if node.output.dtype != "float32" or not (self.rounds or self.takes_short):
            return None
        if node.op == "relax.take":
            return self._gather(rw, node)
        return self._product(rw, node) if node.op in _PRODUCTS else None

    def _gather(self, rw: Rewriter, node: Node) -> Any:
        table, index = node.inputs
        if self._reason(rw.constant(table)) is not None:
            return None
        inputs = [self._short(rw, table), rw.new(index)]
        if not self.takes_short:
            return rw.emit(node.op, inputs, node.attrs, node.origin)
        rows = rw.emit(node.op, inputs, node.attrs, unnamed(node.origin))
        return rw.emit("relax.astype", [rows], {"dtype": "float32"}, node.origin)

    def _product(self, rw: Rewriter, node: Node) -> Any:
        x, weight, *others = node.inputs
        reason = self._reason(rw.constant(weight))
        if reason is None:
            inputs = [rw.new(x), self._short(rw, weight), *map(rw.new, others)]
            return rw.emit(node.op, inputs, node.attrs, node.origin)
        if rw.constant(weight) is None and rw.constant(x) is not None:
            reason = "the constant is the left operand"
        if self.rounds:
            self.context.decline(SCHEME, node.origin, f"weights stay float32: {reason}")
        return None

    def _short(self, rw: Rewriter, name: str) -> Any:
        if name not in self.made:
            array = arithmetic.as_bfloat16(rw.graph.constants[name])
            self.made[name] = rw.const(array.astype(ml_dtypes.bfloat16) if self.takes_short else array)
        return self.made[name]

    def _reason(self, weight: np.ndarray | None) -> str | None:
        """Why a weight stays as it is; None where it does not."""
        if weight is None:
            return "both operands are activations"
        if weight.dtype != np.float32:
            return f"the weight is {weight.dtype}"
        if weight.size < LEAST:
            extents = " x ".join(str(extent) for extent in weight.shape)
            return f"{extents} numbers stay in the nearest cache, half the bytes would be read no faster"
        if not self.rounds and np.any(weight.view(np.uint32) & 0xFFFF):
            return "bfloat16 would round the weight"
        if not np.all(np.isfinite(arithmetic.as_bfloat16(weight))):
            return "the weight holds NaN or infinity, or what bfloat16 rounds to it"
        return None


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    return rewrite(module, _Rounder(context))


PASS = Pass(NAME, run)
