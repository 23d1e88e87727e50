"""Make every activation uint8: int8 ones become their canonical form, the bits xor 0x80 and the zero point plus 128.

The reals, the accumulators and the outputs are the same (docs/arithmetic.md). A conversion remains where int8 enters or
leaves the graph, and around operators that read int8 as numbers. Constant int8 weights stay: they are signed by design.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.ops import OPS
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

#: Operators that only move or compare codes, and so work on either form.
MOVEMENTS = (
    "relax.reshape", "relax.permute_dims", "relax.strided_slice", "relax.broadcast_to", "relax.concat", "relax.take",
    "relax.gather_elements",
)  # fmt: skip


class _Converter:
    """The handler.

    Attributes:
        unsigned: the uint8 form of old int8 values.
        made: the values whose producer now gives that form, so that the rewriter's table holds it too.
        signed: the int8 form of those, where something reads it.
    """

    def __init__(self, state: Rewriter) -> None:
        self.state = state
        self.unsigned: dict[str, Any] = {}
        self.signed: dict[str, Any] = {}
        self.made: set[str] = set()

    def is_signed(self, name: str) -> bool:
        """Whether the value is an int8 activation."""
        return self.state.value(name).dtype == "int8" and self.state.constant(name) is None

    def to_unsigned(self, name: str, node: Node) -> Any:
        """The uint8 form of a value, converted where its producer gives int8."""
        if name not in self.unsigned:
            origin = unnamed(node.origin)
            bits = self.state.emit("relax.astype", [self.state.new(name)], {"dtype": "uint8"}, origin)
            flip = self.state.const(np.asarray(0x80, np.uint8))
            self.unsigned[name] = self.state.emit("relax.bitwise_xor", [bits, flip], {}, origin)
        return self.unsigned[name]

    def to_signed(self, name: str, node: Node) -> Any:
        """The int8 form of a value."""
        if name not in self.made:
            return self.state.new(name)
        if name not in self.signed:
            flip = self.state.const(np.asarray(0x80, np.uint8))
            bits = self.state.emit("relax.bitwise_xor", [self.unsigned[name], flip], {}, unnamed(node.origin))
            self.signed[name] = self.state.emit("relax.astype", [bits], {"dtype": "int8"}, unnamed(node.origin))
        return self.signed[name]

    def __call__(self, node: Node) -> Any:
        """Rewrite one node that reads or makes int8 activations."""
        touched = [name for name in (*node.inputs, node.output.name) if self.is_signed(name)]
        if not touched or node.op == "call":
            return None
        rule = RULES.get(node.op, _move if node.op in MOVEMENTS else None)
        written = rule(self, node) if rule is not None else None
        if written is None:
            inputs = [self.to_signed(n, node) if self.is_signed(n) else self.state.new(n) for n in node.inputs]
            return self.state.emit(node.op, inputs, node.attrs, node.origin)
        name = node.output.name
        if not self.is_signed(name):
            return written
        self.unsigned[name] = written
        self.made.add(name)
        # An output of the graph must be int8, and the host reads it so; elsewhere that form is made where it is read.
        on_host = any(r.op in OPS and OPS[r.op].kind == "host" for r in self.state.consumers.get(name, []))
        return self.to_signed(name, node) if name in self.state.graph.outputs or on_host else written

    def inputs(self, node: Node) -> list[Any]:
        """All operands, int8 activations in uint8 form."""
        return [self.to_unsigned(n, node) if self.is_signed(n) else self.state.new(n) for n in node.inputs]

    def emit(self, node: Node, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
        """Write the node with other operands and attributes."""
        return self.state.emit(node.op, inputs, {**node.attrs, **attrs}, node.origin)


def _zero(converter: _Converter, name: str) -> Any:
    """A constant zero point plus 128, as uint8; None where it is not constant."""
    zero = converter.state.constant(name)
    return None if zero is None else converter.state.const((zero.astype(np.int16) + 128).astype(np.uint8))


def _quantize(converter: _Converter, node: Node) -> Any:
    zero = _zero(converter, node.inputs[2])
    if zero is None:
        return None
    inputs = [converter.state.new(name) for name in node.inputs[:2]]
    return converter.emit(node, [*inputs, zero], {"out_dtype": "uint8"})


def _dequantize(converter: _Converter, node: Node) -> Any:
    zero = _zero(converter, node.inputs[2])
    if zero is None:
        return None
    codes = converter.to_unsigned(node.inputs[0], node)
    return converter.emit(node, [codes, converter.state.new(node.inputs[1]), zero], {})


def _requantize(converter: _Converter, node: Node) -> Any:
    attrs = node.attrs
    zeros = tuple(
        zero + 128 * converter.is_signed(name)
        for name, zero in zip(node.inputs[: attrs["terms"]], attrs["term_zero_points"], strict=True)
    )
    changed: dict[str, Any] = {"term_zero_points": zeros}
    if attrs["out_dtype"] == "int8":
        changed |= {key: attrs[key] + 128 for key in ("zero_point", "lo", "hi")} | {"out_dtype": "uint8"}
    return converter.emit(node, converter.inputs(node), changed)


def _contraction(zero: str) -> Callable[[_Converter, Node], Any]:
    def rule(converter: _Converter, node: Node) -> Any:
        first = node.inputs[0]
        if not converter.is_signed(first) or converter.is_signed(node.inputs[1]):
            return None
        inputs = [converter.to_unsigned(first, node), converter.state.new(node.inputs[1])]
        return converter.emit(node, inputs, {zero: node.attrs.get(zero, 0) + 128})

    return rule


def _pool(converter: _Converter, node: Node) -> Any:
    if node.attrs["mode"] == "max":
        return converter.emit(node, converter.inputs(node), {"out_dtype": "uint8"})
    if node.attrs["mode"] != "sum" or node.output.dtype == "int8":
        return None
    return converter.emit(node, converter.inputs(node), {"x_zero_point": node.attrs.get("x_zero_point", 0) + 128})


def _pad(converter: _Converter, node: Node) -> Any:
    value = node.attrs["value"] + 128 if node.attrs["mode"] == "constant" else 0
    return converter.emit(node, converter.inputs(node), {"value": value})


def _table(converter: _Converter, node: Node) -> Any:
    entries = converter.state.constant(node.inputs[1])
    if entries is None:
        return None
    if entries.dtype == np.int8:
        entries = entries.view(np.uint8) ^ np.uint8(0x80)
    codes = converter.inputs(node)[0]
    # `dlc.table` is indexed by the uint8 form in either case.
    return converter.emit(node, [codes, converter.state.const(entries)], {})


def _move(converter: _Converter, node: Node) -> Any:
    inputs = []
    for name in node.inputs:
        constant = converter.state.constant(name)
        if constant is not None and constant.dtype == np.int8:
            inputs.append(converter.state.const(constant.view(np.uint8) ^ np.uint8(0x80)))
        else:
            inputs.append(converter.to_unsigned(name, node) if converter.is_signed(name) else converter.state.new(name))
    return converter.emit(node, inputs, {})


RULES: dict[str, Callable[[_Converter, Node], Any]] = {
    "dlc.quantize": _quantize,
    "dlc.dequantize": _dequantize,
    "dlc.requantize": _requantize,
    "dlc.conv": _contraction("x_zero_point"),
    "dlc.matmul": _contraction("a_zero_point"),
    "dlc.pool": _pool,
    "dlc.table": _table,
    "relax.nn.pad": _pad,
}


def run(module: Any, context: Context) -> Any:
    """Convert every int8 activation."""
    converters: list[_Converter] = []

    def handler(state: Rewriter, node: Node) -> Any:
        if not converters:
            converters.append(_Converter(state))
        return converters[0](node)

    return rewrite(module, handler)


PASS = Pass("to_unsigned", run)
