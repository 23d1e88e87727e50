"""Dequantised constants that are transposed or reshaped: the stored integers are, so that the weight can be seen.

A QDQ model may hold a transposed product as ``matmul(x, permute(dequantize(w)))``; afterwards it is
``matmul(x, dequantize(permute(w)))``, with the constant already permuted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass


def _moved(node: Node, codes: np.ndarray, axis: int, single: bool) -> tuple[np.ndarray, int] | None:
    """The integers after the movement, and the axis of their scales; None where the scales would not follow."""
    if node.op == "relax.permute_dims":
        axes = tuple(node.attrs["axes"])
        return np.ascontiguousarray(codes.transpose(axes)), axes.index(axis) if not single else 0
    shape = tuple(node.attrs["shape"])
    if not all(isinstance(extent, int) for extent in shape):
        return None
    if single:
        return codes.reshape(shape), 0
    # One scale a row stays one a row where the rows themselves stay.
    before = int(np.prod(codes.shape[:axis]))
    for new_axis, extent in enumerate(shape):
        if extent == codes.shape[axis] and int(np.prod(shape[:new_axis])) == before:
            return codes.reshape(shape), new_axis
    return None


def _settle(state: Rewriter, node: Node, moved: dict[str, tuple[np.ndarray, int, Node]]) -> Any:
    source = node.inputs[0]
    if source in moved:
        codes, axis, below = moved[source]
    else:
        made = state.producer(source, "dlc.dequantize")
        constant = state.constant(made.inputs[0]) if made is not None else None
        if made is None or constant is None:
            return None
        codes, axis, below = constant, made.attrs["axis"] % max(constant.ndim, 1), made
    parameters = [state.constant(name) for name in below.inputs[1:]]
    if any(p is None or p.ndim > 1 for p in parameters):
        return None
    single = all(p is not None and p.size == 1 for p in parameters)
    found = _moved(node, codes, axis, single)
    if found is None:
        return None
    moved[node.output.name] = (*found, below)
    inputs = [state.const(found[0]), *(state.new(name) for name in below.inputs[1:])]
    return state.emit("dlc.dequantize", inputs, {**below.attrs, "axis": found[1]}, node.origin)


def run(module: Any, context: Context) -> Any:
    """Move every permutation and reshape of a dequantised constant below its dequantisation."""
    moved: dict[str, tuple[np.ndarray, int, Node]] = {}

    def handler(state: Rewriter, node: Node) -> Any:
        return _settle(state, node, moved) if node.op in ("relax.permute_dims", "relax.reshape") else None

    return rewrite(module, handler)


PASS = Pass("settle_weights", run)
