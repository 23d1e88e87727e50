"""Mark values with their scales: a `dlc.quantize` and a `dlc.dequantize` behind every value that gets an integer form.

Needs the ranges of `calibrate`. What it leaves means the same in floats, up to the rounding of the marked values; the
integer operators are formed later (`form_integers`), from these marks as from those of a QDQ graph made elsewhere.
Activations are uint8 with one scale and zero point, weights int8 with one scale an output channel, biases stay float.
Where a value's producer stays float, readers that stay float read the value itself.

``context.notes["quantization"]`` gets ``values``: ONNX name -> scale, zero_point, dtype and, where ``exact`` is true
(float readers read the float value), the labels of the ``readers`` of the rounded one; and ``weights``: the ONNX name
of a contraction's value -> axis, scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Node, Origin
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize.calibrate import is_quantized
from dlc.passes.quantize.plan import CONTRACTIONS, REPORTED, Plan, bias_of, channel_scale, origins, shared_parameters
from dlc.passes.quantize.weights import quantize_weight
from dlc.pipeline import Context, Pass

Parameters = tuple[np.float32, int]
#: Values that never leave this range are taken for zeros: products of smaller scales would leave float32.
SMALLEST_RANGE = 1e-20


class _Marker:
    """The handler's state: the plan, the parameters of each mark and the dequantised expressions made so far."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.plan: Plan
        self.started = False
        self.shift = context.options.arithmetic == "shift"
        self.parameters: dict[str, Parameters] = {}
        self.marked: dict[str, Any] = {}
        self.weights: dict[str, dict[str, Any]] = {}
        self.readers: dict[str, list[str]] = {}
        self.names: Mapping[str, str] = {}

    def start(self, state: Rewriter) -> None:
        """Decide everything before the first node is written."""
        self.started = True
        ranges = self.context.notes["calibration"]["ranges"]
        self.plan = Plan(state, frozenset(ranges), contractions_only=bool(self.context.block))
        self.names = origins(state.graph)
        shared = shared_parameters(self.plan, state.graph)
        for name in sorted(self.plan.marks, key=lambda n: self.plan.order.get(n, -1)):
            lo, hi = ranges[shared.get(name, name)]
            if max(-lo, hi) < SMALLEST_RANGE:
                lo = hi = 0.0
            scale, zero_point = arithmetic.activation_parameters(lo, hi)
            if self.shift:
                scale = np.float32(arithmetic.power_of_two(scale))
            self.parameters[name] = (scale, zero_point)
        self._decline(state)

    def __call__(self, state: Rewriter, node: Node) -> Any:
        """Copy the node with marked operands; its own mark is written where it is first read."""
        if not self.started:
            self.start(state)
        if node.op == "call":
            return None
        inputs = [self.operand(state, node, name) for name in node.inputs]
        scale = channel_scale(state, node)
        if self.plan.anchor(node):
            inputs[1] = self.weight(state, node, node.inputs[0], node.inputs[1], 0 if node.op == "dlc.conv" else 1)
        elif scale is not None and node.output.name in self.plan.integer and scale[0] in self.plan.marks:
            inputs[node.inputs.index(scale[1])] = self.weight(state, node, *scale)
        made = state.emit(node.op, inputs, node.attrs, node.origin)
        name = node.output.name
        if name in self.plan.marks:
            dequantized = self.mark(state, name, made, node.origin)
            return dequantized if name in self.plan.integer else made
        return made

    def operand(self, state: Rewriter, node: Node, name: str) -> Any:
        """The new expression that `node` reads for `name`."""
        if name not in self.plan.marks or name in self.plan.integer or not self.plan.requires(node, name):
            return state.new(name)
        self.readers.setdefault(name, []).append(node.origin.node or node.origin.value)
        maker = state.producer(name)
        origin = maker.origin if maker is not None else Origin(value=self.names[name])
        return self.mark(state, name, state.new(name), origin)

    def mark(self, state: Rewriter, name: str, expr: Any, origin: Origin) -> Any:
        """Quantise and dequantise a value, once."""
        if name not in self.marked:
            scale, zero_point = self.parameters[name]
            parameters = [state.const(np.asarray(scale)), state.const(np.asarray(zero_point, np.uint8))]
            codes = state.emit("dlc.quantize", [expr, *parameters], {"axis": 0, "out_dtype": "uint8"}, origin)
            attrs = {"axis": 0, "out_dtype": "float32"}
            self.marked[name] = state.emit("dlc.dequantize", [codes, *parameters], attrs, origin)
        return self.marked[name]

    def weight(self, state: Rewriter, node: Node, activation: str, constant: str, axis: int) -> Any:
        """The weight as a constant of codes and its dequantisation; `axis` of it runs along the output channels."""
        weight, rank = state.graph.constants[constant], len(node.output.shape)
        x_scale = float(self.parameters[activation][0])
        channels = 1 if node.op == "dlc.conv" else rank - weight.ndim + axis
        codes, scales = quantize_weight(weight, axis, x_scale, bias_of(self.plan, node, channels), self.shift)
        self.weights[node.origin.value or node.output.name] = {"axis": axis, "scale": scales.tolist()}
        parameters = [state.const(scales), state.const(np.zeros(scales.shape, np.int8))]
        attrs = {"axis": axis, "out_dtype": "float32"}
        return state.emit("dlc.dequantize", [state.const(codes), *parameters], attrs, Origin(value=""))

    def _decline(self, state: Rewriter) -> None:
        """Say of every node of weight that stays float why it does."""
        for node in state.graph.nodes:
            name, plan = node.output.name, self.plan
            if name in plan.refused:
                self.context.decline("mark", node.origin, f"stays float: {plan.refused[name]}")
            elif node.op in REPORTED:
                self.context.decline("mark", node.origin, "stays float: it has no integer form here")
            elif name not in plan.integer and node.op not in CONTRACTIONS and plan.wanted[name]:
                lacking = [o for o in plan.operands(node) if not plan.available[o]]
                if lacking and len(lacking) < len(plan.operands(node)):
                    self.context.decline("mark", node.origin, f"stays float: operand '{lacking[0]}' is float")

    def notes(self) -> dict[str, Any]:
        """What the manifest, the explanation and the QDQ export say of the marks."""
        values: dict[str, dict[str, Any]] = {}
        for name, (scale, zero) in self.parameters.items():
            if name not in self.names:
                continue
            exact = name not in self.plan.integer
            entry = {"scale": float(scale), "zero_point": int(zero), "dtype": "uint8", "exact": exact}
            values[self.names[name]] = entry | ({"readers": self.readers.get(name, [])} if exact else {})
        return {"values": values, "weights": self.weights}


def run(module: Any, context: Context) -> Any:
    """Write the marks."""
    if is_quantized(view(module)) or "calibration" not in context.notes:
        return module
    marker = _Marker(context)
    result = rewrite(module, marker)
    context.notes["quantization"] = marker.notes()
    return result


PASS = Pass("mark", run)
