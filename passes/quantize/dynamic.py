"""Integers with a scale a row at run time: needs no calibration, and follows activations whose range changes.

Every matrix product with a constant weight becomes, for its input as rows of K numbers::

    scale = max(max |row|, tiny) / 127        codes = rint(row / scale) + 128, uint8
    result = int32(codes - 128, weight codes) * scale * weight scale

Weights are int8 with one scale an output channel, or have 4 bits (`blocks.py`). Convolutions and products of two
activations stay float.
"""

from __future__ import annotations

from math import prod
from typing import Any

from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize import blocks
from dlc.passes.quantize.calibrate import is_quantized
from dlc.passes.quantize.plan import CONTRACTIONS, reason_against
from dlc.passes.quantize.rows import scaled_product
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    if is_quantized(view(module)):
        return module

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op not in CONTRACTIONS:
            return None
        reason = reason_against(rw, node)
        if reason is None and node.op == "dlc.conv":
            reason = "a convolution has no rows that one scale could be chosen for"
        if reason is not None:
            context.decline("dynamic", node.origin, f"stays float: {reason}")
            return None
        return _product(rw, node, context)

    return rewrite(module, handle)


def _product(rw: Rewriter, node: Node, context: Context) -> Any:
    origin = unnamed(node.origin)
    x, name = node.inputs
    shape, weight = rw.value(x).shape, rw.graph.constants[name]
    count, flat = prod(shape[:-1], start=1), len(shape) == 2
    rows = rw.new(x) if flat else rw.emit("relax.reshape", [rw.new(x)], {"shape": (count, shape[-1])}, origin)
    last = node.origin if flat else origin
    if blocks.wanted(weight, node.origin, context):
        result = blocks.product(rw, rows, weight, count, origin, last)
    else:
        codes, w_scale = arithmetic.quantize_weight(weight, 1)
        scaled = scaled_product(rw, "dlc.matmul", [rows, rw.const(codes)], count, origin)
        result = rw.emit("relax.multiply", [scaled, rw.const(w_scale)], {}, last)
    return result if flat else rw.emit("relax.reshape", [result], {"shape": node.output.shape}, node.origin)


PASS = Pass("dynamic", run)
