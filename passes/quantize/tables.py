"""Elementwise expressions of one uint8 value: tables of 256 entries."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node, Origin
from dlc.ir.interpret import apply
from dlc.ir.ops import OPS
from dlc.passes.quantize.integer_forms import Leaf, Reader
from dlc.passes.quantize.plan import is_clip
from dlc.passes.quantize.requantization import Target
from dlc.passes.simplify.match import same_shape

#: Expressions larger than this are no activation function any more.
LARGEST = 64


def expression(reader: Reader, name: str) -> tuple[str, Leaf, list[Node]] | None:
    """The elementwise expression that ends in `name`: its one operand, the codes behind that, its nodes in order."""
    state, found, nodes = reader.state, {}, {}  # type: ignore[var-annotated]
    pending = [name]
    while pending:
        current = pending.pop()
        if current in nodes or current in found or state.constant(current) is not None:
            continue
        leaf = reader.leaf(current)
        if leaf is not None:
            found[current] = leaf
            continue
        node = state.producer(current)
        if node is None or not _tabulated(reader, node) or len(nodes) == LARGEST:
            return None
        nodes[current] = node
        pending += node.inputs
    if len(found) != 1 or not nodes:
        return None
    ((operand, leaf),) = found.items()
    ordered = [node for node in state.graph.nodes if node.output.name in nodes]
    if not same_shape(state.value(operand).shape, state.value(name).shape):
        return None
    return operand, leaf, ordered


def _tabulated(reader: Reader, node: Node) -> bool:
    if node.op == "call" or not node.op.startswith("relax.") or node.op == "relax.astype":
        return False
    constants = [reader.state.constant(name) for name in node.inputs]
    return OPS[node.op].kind == "elementwise" and all(c is None or c.size == 1 for c in constants)


def table(reader: Reader, name: str, target: Target, origin: Origin) -> Any:
    """Write the value as a table over its operand's codes; None where it is no expression of one value.

    A bare clip is left to the requantisation, which does it for nothing.
    """
    found = expression(reader, name)
    if found is None or all(is_clip(reader.state, node) for node in found[2]):
        return None
    operand, leaf, nodes = found
    constants = reader.state.graph.constants

    def function(x: np.ndarray) -> np.ndarray:
        values = {operand: x}
        for node in nodes:
            inputs = [values[i] if i in values else _wide(constants[i]) for i in node.inputs]
            values[node.output.name] = apply(node, inputs, {})
        return np.broadcast_to(values[name], (256,))

    entries = arithmetic.unary_table(
        function, leaf.scale, leaf.zero_point, np.uint8, target.scale, target.zero_point, np.uint8
    )
    codes = reader.codes(leaf)
    if np.array_equal(entries, np.arange(256)):
        return codes
    return reader.state.emit("dlc.table", [codes, reader.state.const(entries)], {}, origin)


def _wide(constant: np.ndarray) -> np.ndarray:
    scalar = constant.reshape(())
    return scalar.astype(np.float64) if scalar.dtype.kind == "f" else scalar
