"""Dot products with gathered rows: a product and a sum, into which the gathering is fused, not a matrix product.

``W[index] (..., L, K) @ x (..., K, 1)`` and ``x (..., 1, K) @ W[index]^T`` with a constant ``W (V, K)`` first copy
the rows. As ``sum(W[index] * x)`` over K, each row is read where it lies, once (`passes/partition/regions.py`). The
steps of a path through a binary tree of words are such products.
"""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import unnamed
from dlc.passes.specialize.blocks import everywhere
from dlc.pipeline import Context, Pass


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    return rewrite(module, _handle)


def _handle(rw: Rewriter, node: Node) -> Any:
    if node.op != "dlc.matmul" or node.output.dtype != "float32":
        return None
    for name, x, swapped in ((node.inputs[0], node.inputs[1], False), (node.inputs[1], node.inputs[0], True)):
        taken, shape = rw.producer(name), rw.value(x).shape
        if swapped and (taken := _transposed(rw, name)) is None:
            continue
        if taken is None or taken.op != "relax.take" or taken.attrs["axis"] != 0:
            continue
        table, rows = rw.constant(taken.inputs[0]), taken.output.shape
        of_one_row = len(shape) == len(rows) and same(shape[-2 if swapped else -1], 1)
        if table is None or table.ndim != 2 or len(rows) < 2 or not of_one_row:
            continue
        if not all(map(same, shape[:-2], rows[:-2])):
            continue
        origin = unnamed(node.origin)
        row = rw.new(x)
        if not swapped:
            row = rw.emit("relax.reshape", [row], {"shape": (*shape[:-2], 1, rows[-1])}, origin)
        product = rw.emit("relax.multiply", [rw.new(taken.output.name), row], {}, origin)
        total = rw.emit("relax.sum", [product], {"axes": (len(rows) - 1,), "keepdims": True}, origin)
        return rw.emit("relax.reshape", [total], {"shape": node.output.shape}, node.origin)
    return None


def _transposed(rw: Rewriter, name: str) -> Node | None:
    """What a value is the transpose of, along its last two axes."""
    node = rw.producer(name, "relax.permute_dims")
    rank = len(rw.value(name).shape)
    swapped = node is not None and tuple(node.attrs["axes"]) == (*range(rank - 2), rank - 1, rank - 2)
    return rw.producer(node.inputs[0]) if node is not None and swapped else None


PASS = everywhere(Pass("gathered-rows", run))
