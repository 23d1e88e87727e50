"""Form the integer operators: the last quantise pass, and the first that a QDQ graph made elsewhere meets.

Expects uint8 activations (`to_unsigned`). At every `dlc.quantize` the expression before it is read: codes of the same
parameters pass through; data movement, maximum pooling and concatenation work on codes; sums of integer terms become
one `dlc.requantize`; elementwise expressions of one value become a `dlc.table`. A contraction without a quantisation
after it gives float: the accumulator, bias included, times its scale. What stays float is declined with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Node, Origin
from dlc.ir.rewrite import Rewriter, live_nodes, rewrite
from dlc.passes.quantize.calibrate import is_quantized
from dlc.passes.quantize.integer_forms import Reader
from dlc.passes.quantize.plan import CONTRACTIONS, is_movement
from dlc.passes.quantize.requantization import Target, carrier, dequantize, requantize
from dlc.passes.quantize.tables import table
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass


class _Former:
    """The handler."""

    def __init__(self, context: Context) -> None:
        self.mode = context.options.arithmetic
        self.reader: Reader
        self.values: dict[str, dict[str, Any]] = {}

    def __call__(self, state: Rewriter, node: Node) -> Any:
        if not hasattr(self, "reader"):
            self.reader = Reader(state)
        if node.op == "dlc.quantize":
            return self.quantize(node)
        if node.op in (*CONTRACTIONS, "relax.add") and node.output.dtype == "float32":
            return self.real(node)
        return None

    def quantize(self, node: Node) -> Any:
        """The codes of a `dlc.quantize`; None where it stays a quantisation of a float value."""
        found = self.reader.scalar_parameters(node)
        if node.output.dtype != "uint8" or found is None:
            what = node.output.dtype if found is not None else "more than one scale"
            self.reader.fail(node, f"a quantisation to {what}; only uint8 with one scale has integer forms")
            return None
        name = node.origin.value or node.output.name
        self.values[name] = {"scale": float(found[0]), "zero_point": found[1], "dtype": "uint8", "exact": False}
        return self.codes(node.inputs[0], Target(*found), node.origin)

    def codes(self, name: str, target: Target, origin: Origin) -> Any:
        """The value as codes of the target's parameters; None where it is a float value."""
        reader, node = self.reader, self.reader.state.producer(name)
        if node is None:
            return None
        leaf = reader.leaf(name)
        if leaf is not None and leaf.same_parameters(target.scale, target.zero_point):
            return reader.codes(leaf)
        if leaf is None and is_movement(node):
            below = self.codes(node.inputs[0], target, _origin(reader.state, node.inputs[0]))
            return reader.move(node, below, target.zero_point) if below is not None else None
        if node.op == "relax.concat":
            return self.concat(node, target, origin)
        expr = table(reader, name, target, origin)
        if expr is not None:
            return expr
        linear = reader.linear(name)
        return requantize(reader, linear, target, self.mode, node, origin) if linear is not None else None

    def concat(self, node: Node, target: Target, origin: Origin) -> Any:
        """Join codes; inputs of other parameters are requantised, float ones quantised, constants too."""
        state = self.reader.state
        parts: list[Any] = []
        found = [
            None if state.constant(n) is not None else self.codes(n, target, _origin(state, n)) for n in node.inputs
        ]
        if all(expr is None for expr in found):
            return None
        for name, expr in zip(node.inputs, found, strict=True):
            constant = state.constant(name)
            if constant is not None:
                expr = state.const(arithmetic.quantize(constant, target.scale, target.zero_point, np.uint8))
            elif expr is None:
                parameters = [
                    state.const(np.asarray(target.scale)),
                    state.const(np.asarray(target.zero_point, np.uint8)),
                ]
                attrs = {"axis": 0, "out_dtype": "uint8"}
                expr = state.emit("dlc.quantize", [state.new(name), *parameters], attrs, _origin(state, name))
            parts.append(expr)
        return state.emit("relax.concat", parts, node.attrs, origin)

    def real(self, node: Node) -> Any:
        """A contraction, or one with its bias, as float; what nothing reads in the end is dropped as dead."""
        linear = self.reader.linear(node.output.name)
        if linear is None or len(linear.terms) != 1 or linear.clipped:
            return None
        taker = carrier(linear)
        if taker is None or taker.node.op not in CONTRACTIONS:
            return None
        return dequantize(self.reader, linear, node.origin)


def _origin(state: Rewriter, name: str) -> Origin:
    """Of a value's codes in the parameters of its reader: the value's own name belongs to codes in its own."""
    node = state.producer(name)
    return unnamed(node.origin) if node is not None else Origin()


def run(module: Any, context: Context) -> Any:
    """Form the integers, then report every node that has a reason and is still there."""
    if not is_quantized(view(module)):
        return module  # floats alone: there is nothing to form, and nothing to explain
    former = _Former(context)
    result = rewrite(module, former)
    if not hasattr(former, "reader"):
        return result
    left = {(node.op, node.origin) for node in live_nodes(view(result))}
    left -= {(op, origin) for op, origin in left if any(d.origin == origin for d in context.declined)}
    for name, reason in former.reader.reasons.items():
        node = former.reader.state.producers[name]
        if (node.op, node.origin) in left:
            context.decline("form_integers", node.origin, f"stays float: {reason}")
    notes = context.notes.setdefault("quantization", {"values": {}, "weights": {}})
    for name, parameters in former.values.items():
        notes["values"].setdefault(name, parameters)
    return result


PASS = Pass("form_integers", run)
