"""Grouped products (`dlc.grouped_matmul`) as integers, with a scale a row at run time, whatever the rest has.

Which rows an expert sees is decided by the data, so that its ranges are not those of all rows, and a scale for each row
needs no calibration: ``--quantize int8`` and ``int8-dynamic`` do the same here (see `dynamic.py` for the arithmetic).
Weights have one scale an output channel of each group, or under ``int4`` 4 bits (`blocks.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize import blocks
from dlc.passes.quantize.rows import scaled_product
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "groups"


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op != "dlc.grouped_matmul" or rw.value(node.inputs[0]).dtype != "float32":
            return None
        weight = rw.constant(node.inputs[1])
        if weight is None or not np.all(np.isfinite(weight)):
            reason = "the weight holds NaN or infinity" if weight is not None else "the weight is an activation"
            context.decline(NAME, node.origin, f"stays float: {reason}")
            return None
        return _product(rw, node, weight, context)

    return rewrite(module, handle)


def _product(rw: Rewriter, node: Node, weight: np.ndarray, context: Context) -> Any:
    x, _, groups = node.inputs
    origin, count = unnamed(node.origin), node.output.shape[0]
    if blocks.wanted(weight, node.origin, context):
        return blocks.product(rw, rw.new(x), weight, count, origin, node.origin, rw.new(groups))
    parts = [arithmetic.quantize_weight(matrix, 1) for matrix in weight]
    codes, scales = (rw.const(np.stack([part[i] for part in parts])) for i in range(2))
    inputs = [rw.new(x), codes, rw.new(groups)]
    scaled = scaled_product(rw, node.op, inputs, count, origin)
    of_row = rw.emit("relax.take", [scales, rw.new(groups)], {"axis": 0}, origin)
    return rw.emit("relax.multiply", [scaled, of_row], {}, node.origin)


PASS = Pass(NAME, run)
