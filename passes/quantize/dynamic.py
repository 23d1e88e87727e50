"""int8 with a scale a row at run time: needs no calibration, and follows activations whose range changes.

Every matrix product with a constant weight becomes, for its input as rows of K numbers::

    scale = max(max |row|, tiny) / 127        codes = rint(row / scale) + 128, uint8
    result = int32(codes - 128, weight codes) * scale * weight scale

Weights are int8 with one scale an output channel. Convolutions and products of two activations stay float.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Node, Origin
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize.calibrate import is_quantized
from dlc.passes.quantize.plan import CONTRACTIONS, reason_against
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

_ZERO_POINT = 128
#: Rows of smaller numbers are rows of zeros: the scale stays a normal number.
_SMALLEST = 1e-30


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
        return _product(rw, node)

    return rewrite(module, handle)


def _product(rw: Rewriter, node: Node) -> Any:
    origin = unnamed(node.origin)
    x, weight = node.inputs
    shape = rw.value(x).shape
    codes, w_scale = arithmetic.quantize_weight(rw.graph.constants[weight], 1)
    count, flat = prod(shape[:-1], start=1), len(shape) == 2
    rows = rw.new(x) if flat else rw.emit("relax.reshape", [rw.new(x)], {"shape": (count, shape[-1])}, origin)
    scaled = scaled_product(rw, "dlc.matmul", [rows, rw.const(codes)], count, origin)
    result = rw.emit("relax.multiply", [scaled, rw.const(w_scale)], {}, node.origin if flat else origin)
    return result if flat else rw.emit("relax.reshape", [result], {"shape": node.output.shape}, node.origin)


def scaled_product(rw: Rewriter, op: str, inputs: list[Any], count: Any, origin: Origin) -> Any:
    """The product of float rows (count, K) with integer weights, times the scale of each row.

    Args:
        op: of the product; `inputs` are its rows, its weights and whatever else it takes.
    """

    def emit(op: str, inputs: list[Any], attrs: dict[str, Any] | None = None) -> Any:
        return rw.emit(op, inputs, attrs, origin)

    rows, *others = inputs
    largest = emit("relax.max", [emit("relax.abs", [rows])], {"axes": (1,), "keepdims": False})
    largest = emit("relax.maximum", [largest, rw.const(np.array(_SMALLEST, np.float32))])
    scale = emit("relax.multiply", [largest, rw.const(np.array(1 / 127, np.float32))])
    zero = rw.const(np.asarray(_ZERO_POINT, np.uint8))
    quantized = emit("dlc.quantize", [rows, scale, zero], {"axis": 0, "out_dtype": "uint8"})
    attrs = {"out_dtype": "int32", "a_zero_point": _ZERO_POINT}
    wide = emit("relax.astype", [emit(op, [quantized, *others], attrs)], {"dtype": "float32"})
    return emit("relax.multiply", [wide, emit("relax.reshape", [scale], {"shape": (count, 1)})])


PASS = Pass("dynamic", run)
