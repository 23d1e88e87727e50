"""A scale a row, chosen at run time: the arithmetic that the dynamic schemes share."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.graph import Origin
from dlc.ir.rewrite import Rewriter

_ZERO_POINT = 128
#: Rows of smaller numbers are rows of zeros: the scale stays a normal number.
_SMALLEST = 1e-30


def row_scale(rw: Rewriter, rows: Any, origin: Origin) -> Any:
    """The scale of each of float rows (count, K), float32 (count,): the largest magnitude becomes 127."""

    def emit(op: str, inputs: list[Any], attrs: dict[str, Any] | None = None) -> Any:
        return rw.emit(op, inputs, attrs, origin)

    largest = emit("relax.max", [emit("relax.abs", [rows])], {"axes": (1,), "keepdims": False})
    largest = emit("relax.maximum", [largest, rw.const(np.array(_SMALLEST, np.float32))])
    return emit("relax.multiply", [largest, rw.const(np.array(1 / 127, np.float32))])


def scaled_product(rw: Rewriter, op: str, inputs: list[Any], count: Any, origin: Origin) -> Any:
    """The product of float rows (count, K) with int8 weights, times the scale of each row.

    Args:
        op: of the product; `inputs` are its rows, its weights and whatever else it takes.
    """

    def emit(op: str, inputs: list[Any], attrs: dict[str, Any] | None = None) -> Any:
        return rw.emit(op, inputs, attrs, origin)

    rows, *others = inputs
    scale = row_scale(rw, rows, origin)
    zero = rw.const(np.asarray(_ZERO_POINT, np.uint8))
    quantized = emit("dlc.quantize", [rows, scale, zero], {"axis": 0, "out_dtype": "uint8"})
    attrs = {"out_dtype": "int32", "a_zero_point": _ZERO_POINT}
    wide = emit("relax.astype", [emit(op, [quantized, *others], attrs)], {"dtype": "float32"})
    return emit("relax.multiply", [wide, emit("relax.reshape", [scale], {"shape": (count, 1)})])
