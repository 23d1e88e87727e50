"""Activations of products in bfloat16, on levels that multiply bfloat16 by bfloat16.

Under ``--quantize bf16`` an activation that meets a constant bfloat16 weight is rounded to bfloat16 as well, by a cast
that rides on the store of what makes it: half the bytes, and twice the products an instruction. Sums and results stay
float32. The cast is in the IR: the interpreter computes what the kernels do, up to the order of the sums.
"""

from __future__ import annotations

from math import prod
from typing import Any

from dlc.ir.graph import Node
from dlc.ir.ops.windows import CHANNELS_FIRST
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize.short_weights import SCHEME
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass
from dlc.targets.cpu.contraction_region import unfit_for_pairs
from dlc.targets.cpu.isa import Isa

#: Rows from which on a product is bound by its multiply-adds rather than by reading the weights.
LEAST_ROWS = 2
SHORT = "bfloat16"
_PRODUCTS = ("dlc.conv", "dlc.matmul", "dlc.grouped_matmul")


class _Rounder:
    """The handler's state: what has been rounded, by the name of the old value."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.made: dict[str, Any] = {}

    def __call__(self, rw: Rewriter, node: Node) -> Any:
        """The product of a rounded activation."""
        if node.op not in _PRODUCTS or node.output.dtype != "float32":
            return None
        x, weight, *others = node.inputs
        if rw.value(x).dtype != "float32" or rw.value(weight).dtype != SHORT:
            return None
        reason = self._reason(rw, node)
        if reason is not None:
            self.context.decline(SCHEME, node.origin, f"activations stay float32: {reason}")
            return None
        inputs = [self._short(rw, x), *map(rw.new, (weight, *others))]
        return rw.emit(node.op, inputs, node.attrs, node.origin)

    def _reason(self, rw: Rewriter, node: Node) -> str | None:
        """Why a product stays as it is; None where it does not."""
        x, weight = node.inputs[:2]
        reason = unfit_for_pairs(node, rw.constant(weight))
        if reason is None and not isinstance(rw.value(x).shape[-1], int) and node.op == "dlc.matmul":
            reason = "how many products a sum has is known only when running"
        rows = _rows(rw, node)
        if reason is None and rows is not None and rows < LEAST_ROWS:
            reason = "of one row, reading the weight is what costs"
        return reason

    def _short(self, rw: Rewriter, name: str) -> Any:
        """A value rounded where it is made: what only moves or chooses its elements then reads half the bytes."""
        if name not in self.made:
            node = rw.producer(name)
            if node is not None and _keeps_elements(node) and rw.only_consumer(name) is not None:
                attrs = {**node.attrs, "out_dtype": SHORT} if node.op == "dlc.pool" else node.attrs
                moved = [self._short(rw, node.inputs[0])]
                self.made[name] = rw.emit(node.op, moved, attrs, unnamed(node.origin))
            else:
                origin = None if node is None else unnamed(node.origin)
                self.made[name] = rw.emit("relax.astype", [rw.new(name)], {"dtype": SHORT}, origin)
        return self.made[name]


def _keeps_elements(node: Node) -> bool:
    """Whether every element of the result is one of the input's; rounding keeps the order, so maxima are the same."""
    if node.op == "dlc.pool":
        return bool(node.attrs["mode"] == "max")
    return node.op in ("relax.reshape", "relax.permute_dims")


def _rows(rw: Rewriter, node: Node) -> int | None:
    """How many rows a matrix is multiplied by, of several evenly; None where that is known only when running."""
    shape = node.output.shape
    if node.op == "dlc.conv":
        extents = [shape[0], *(shape[2:] if node.attrs["layout"] == CHANNELS_FIRST else shape[1:-1])]
    else:
        extents = list(rw.value(node.inputs[0]).shape[:-1])
    matrices = rw.value(node.inputs[1]).shape[0] if node.op == "dlc.grouped_matmul" else 1
    return -(-prod(extents) // matrices) if all(isinstance(extent, int) for extent in extents) else None


def short_activations_pass(isa: Isa) -> Pass:
    """The pass for one instruction set; it does nothing where there is no such multiply-add."""

    def run(module: Any, context: Context) -> Any:
        if not isa.bfloat16 or context.options.quantize != SCHEME:
            return module
        return rewrite(module, _Rounder(context))

    return Pass("short-activations", run)
