"""Constant weights in bfloat16 (``--quantize bf16``): half the bytes, activations and sums in float32.

Weights of products, and tables whose rows are gathered, are rounded to the nearest bfloat16, half to even. Kernels read
them as they are and widen them, which is exact, so what a target computes differs from the reference by the float
arithmetic alone. A target without such kernels gets the same numbers as float32.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "bf16"
#: Numbers of a weight below which it stays in the nearest cache also as float32.
LEAST = 1 << 13
_PRODUCTS = ("dlc.conv", "dlc.matmul", "dlc.grouped_matmul")


def rounded(weight: np.ndarray) -> np.ndarray:
    """A float32 array in bfloat16, to the nearest number, half to even."""
    with np.errstate(over="ignore"):
        return weight.astype(ml_dtypes.bfloat16)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    short: dict[str, Any] = {}
    wide = context.target is not None and not context.target.short_weights

    def weight_of(rw: Rewriter, name: str) -> Any:
        if name not in short:
            array = rounded(rw.graph.constants[name])
            short[name] = rw.const(array.astype(np.float32) if wide else array)
        return short[name]

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.output.dtype != "float32":
            return None
        if node.op == "relax.take":
            table = node.inputs[0]
            if _reason(rw.constant(table), node) is not None:
                return None
            index = rw.new(node.inputs[1])
            if wide:
                return rw.emit(node.op, [weight_of(rw, table), index], node.attrs, node.origin)
            rows = rw.emit(node.op, [weight_of(rw, table), index], node.attrs, unnamed(node.origin))
            return rw.emit("relax.astype", [rows], {"dtype": "float32"}, node.origin)
        if node.op not in _PRODUCTS:
            return None
        x, name, *others = node.inputs
        reason = _reason(rw.constant(name), node)
        if reason is None:
            inputs = [rw.new(x), weight_of(rw, name), *map(rw.new, others)]
            return rw.emit(node.op, inputs, node.attrs, node.origin)
        if rw.constant(name) is None and rw.constant(x) is not None:
            reason = "the constant is the left operand"
        context.decline(NAME, node.origin, f"weights stay float32: {reason}")
        return None

    return rewrite(module, handle)


def _reason(weight: np.ndarray | None, node: Node) -> str | None:
    """Why a weight is not rounded; None where it is."""
    if weight is None:
        return "both operands are activations"
    if weight.dtype != np.float32:
        return f"the weight is {weight.dtype}"
    if weight.size < LEAST:
        extents = " x ".join(str(extent) for extent in weight.shape)
        return f"{extents} numbers stay in the nearest cache, half the bytes would be read no faster"
    if not np.all(np.isfinite(rounded(weight).astype(np.float32))):
        return "the weight holds NaN or infinity, or what bfloat16 rounds to it"
    return None


PASS = Pass(NAME, run)
