"""Tidy up behind `form_integers`: pairs that cancel, weights that stayed float, equal nodes; and count both kinds."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, live_nodes, rewrite
from dlc.passes.simplify import common_subexpressions
from dlc.passes.simplify.fold_constants import evaluate
from dlc.pipeline import Context, Pass

INTEGERS = ("int8", "uint8", "int32")


def _cancel(state: Rewriter, node: Node) -> Any:
    """quantize(dequantize(q)) of equal parameters is q."""
    below = state.producer(node.inputs[0], "dlc.dequantize")
    if below is None or state.value(below.inputs[0]).dtype != node.output.dtype:
        return None
    if below.attrs["axis"] != node.attrs["axis"] and state.value(node.inputs[1]).shape:
        return None
    pairs = [(state.constant(a), state.constant(b)) for a, b in zip(node.inputs[1:], below.inputs[1:], strict=True)]
    equal = all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
    return state.new(below.inputs[0]) if equal else None


def _weight(state: Rewriter, node: Node) -> Any:
    """A dequantised constant that is still read as float is a float constant."""
    inputs = [state.constant(name) for name in node.inputs]
    known = [array for array in inputs if array is not None]
    result = evaluate(node, known) if len(known) == len(inputs) else None
    return state.const(result) if result is not None else None


def _is_integer(node: Node) -> bool:
    return node.op != "dlc.quantize" and all(value.dtype in INTEGERS for value in node.outputs)


def run(module: Any, context: Context) -> Any:
    """Tidy, then count."""

    def handler(state: Rewriter, node: Node) -> Any:
        if node.op == "dlc.quantize":
            return _cancel(state, node)
        return _weight(state, node) if node.op == "dlc.dequantize" else None

    module = common_subexpressions.run(rewrite(module, handler), context)
    nodes = live_nodes(view(module))
    integer = sum(_is_integer(node) for node in nodes)
    notes = context.notes.setdefault("quantization", {"values": {}, "weights": {}})
    notes["integer_nodes"], notes["float_nodes"] = integer, len(nodes) - integer
    return module


PASS = Pass("tidy_integers", run)
