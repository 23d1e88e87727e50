"""Batch normalisation and other scales move into the weights of the convolution or matrix product before them.

``(conv(x, w) [+ b]) * c`` with a constant c that varies along the output channels alone becomes
``conv(x, w * c) [+ b * c]``: the multiplication is gone. The addition that follows in a batch normalisation then merges
with the bias (`identities`). The product is formed in float64, so each weight is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import along_channels, constant_operand, inner, keeps_type, unnamed
from dlc.pipeline import Context, Pass

CONTRACTIONS = ("dlc.conv", "dlc.matmul")


def _scaled_weight(state: Rewriter, anchor: Node, factors: np.ndarray) -> np.ndarray | None:
    """The anchor's weight times one factor an output channel; None where its form does not allow it."""
    weight = state.constant(anchor.inputs[1])
    if weight is None or weight.dtype.kind != "f" or not np.all(np.isfinite(factors)):
        return None
    if anchor.op == "dlc.conv":
        shape: tuple[int, ...] = (-1,) + (1,) * (weight.ndim - 1)
    elif weight.ndim >= 2:
        shape = (-1,)
    else:
        return None
    with np.errstate(over="ignore"):
        scaled = (weight.astype(np.float64) * factors.astype(np.float64).reshape(shape)).astype(weight.dtype)
    return scaled if np.all(np.isfinite(scaled)) else None


def _channel_axis(state: Rewriter, anchor: Node) -> int:
    if anchor.op == "dlc.conv" and anchor.attrs["layout"] == "channels_first":
        return 1
    return len(state.value(anchor.output.name).shape) - 1


def _anchor(state: Rewriter, name: str) -> Node | None:
    node = state.producer(name)
    return node if node is not None and node.op in CONTRACTIONS and state.constant(node.inputs[1]) is not None else None


def _fold(state: Rewriter, node: Node, context: Context) -> Any:
    found = constant_operand(state, node)
    if found is None or found[1].dtype.kind != "f" or not keeps_type(state, node, found[0]):
        return None
    name, constant = found
    if node.op == "relax.divide":
        if name != node.inputs[0] or np.any(constant == 0):
            return None
        constant = 1 / constant.astype(np.float64)
    addition = inner(state, name, "relax.add")
    bias = constant_operand(state, addition) if addition is not None else None
    anchor = _anchor(state, bias[0] if bias is not None else name)
    if anchor is None:
        return None
    if state.only_consumer(anchor.output.name) is None:
        context.decline("fold_scale", node.origin, f"the value of {anchor.origin} has another reader")
        return None
    factors = along_channels(constant, len(anchor.output.shape), _channel_axis(state, anchor))
    weight = _scaled_weight(state, anchor, factors) if factors is not None else None
    if weight is None:
        context.decline("fold_scale", node.origin, "the factor varies along another axis than the output channels")
        return None
    origin = node.origin if bias is None else unnamed(anchor.origin)
    made = state.emit(anchor.op, [state.new(anchor.inputs[0]), state.const(weight)], anchor.attrs, origin)
    if bias is None:
        return made
    moved = (bias[1].astype(np.float64) * constant.astype(np.float64)).astype(bias[1].dtype)
    return state.emit("relax.add", [made, state.const(moved)], {}, node.origin)


def run(module: Any, context: Context) -> Any:
    """Fold every multiplication (and division) that directly follows a contraction and its bias."""

    def handler(state: Rewriter, node: Node) -> Any:
        return _fold(state, node, context) if node.op in ("relax.multiply", "relax.divide") else None

    return rewrite(module, handler)


PASS = Pass("fold_scale", run)
