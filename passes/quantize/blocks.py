"""4-bit weights with a scale for each 32 k, times rows whose scale is chosen at run time (``--quantize int4``).

For rows of K numbers::

    scale = max(max |row|, tiny) / 127        codes = rint(row / scale), int8
    result = scale * sum over blocks of block scale * int32(codes, weight codes)

What `dynamic.py` and `groups.py` make of products at 8 bits, with this instead where it fits. See
`dlc.ir.ops.block_matmul` for the order of the sums.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Origin
from dlc.ir.ops import block_matmul
from dlc.ir.rewrite import Rewriter
from dlc.passes.quantize.rows import row_scale
from dlc.pipeline import Context

BLOCK = 32
_MOST = 1 << 16
#: Numbers of a matrix below which bits cost accuracy and gain nothing. What chooses experts is as small as a rule, and
#: a wrong choice is a wrong result.
_LEAST = 1 << 14


def wanted(weight: np.ndarray, origin: Origin, context: Context) -> bool:
    """Whether a product with a weight (..., K, N) gets 4 bits for it; notes why not where they were asked for."""
    depth, width = weight.shape[-2:]
    if context.options.quantize != "int4":
        return False
    reason = None
    if context.target is not None and not context.target.block_weights:
        reason = f"target {context.target.name} has no kernel for 4-bit weights"
    elif depth % BLOCK:
        reason = f"K = {depth} is no multiple of {BLOCK}"
    elif depth > _MOST:
        reason = f"K = {depth} is more than {_MOST}"
    elif depth * width < _LEAST:
        reason = f"{depth} x {width} bytes stay in the nearest cache, half of them would be read no faster"
    if reason is not None:
        context.decline("int4", origin, f"8-bit weights: {reason}")
    return reason is None


def product(
    rw: Rewriter, rows: Any, weight: np.ndarray, count: Any, origin: Origin, last: Origin, groups: Any = None
) -> Any:
    """float rows (count, K) times a weight (K, N); or (G, K, N), and each row times the matrix of its group.

    The nodes have `origin`, the one that gives the result has `last`.
    """
    codes, scales = arithmetic.quantize_blocks(weight, BLOCK)
    scale = row_scale(rw, rows, origin)
    zero = rw.const(np.asarray(0, np.int8))
    quantized = rw.emit("dlc.quantize", [rows, scale, zero], {"axis": 0, "out_dtype": "int8"}, origin)
    packed = rw.const(block_matmul.pack(codes)), rw.const(scales.astype(ml_dtypes.bfloat16))
    inputs = [quantized, *packed, *([] if groups is None else [groups])]
    result = rw.emit(block_matmul.NAME, inputs, {}, origin)
    factor = rw.emit("relax.reshape", [scale], {"shape": (count, 1)}, origin)
    return rw.emit("relax.multiply", [result, factor], {}, last)
