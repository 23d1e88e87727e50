"""``BackoffScore`` of the domain ``dlc.functions`` as one operator, where its body is the one that dlc writes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.functions import FUNCTION_MATCHERS
from dlc.frontends.onnx.tensor import Tensor
from dlc.functions import BACKOFF_SCORE, DOMAIN, backoff_score
from dlc.ir.ops.backoff_score import ROW

_KINDS = [("int64", 2), ("float32", 1), ("float32", 1), ("int64", 2), ("float32", 1), ("float32", 1)]


def match(c: Context, function: onnx.FunctionProto, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
    """The operator's result; None for another body, other types or extents, or inputs that are left out."""
    operands = [t for t in inputs if t is not None]
    if [(t.dtype, t.rank) for t in operands] != _KINDS:
        return None
    ngram, first, first_backoff, slots, log10, backoff = operands
    order, probes = ngram.shape[1], sum(len(a.ints) for n in function.node[:1] for a in n.attribute)
    if not isinstance(order, int) or order < 1 or probes < 1:
        return None
    known = backoff_score(order, probes)
    same = list(function.input) == list(known.input) and list(function.output) == list(known.output)
    if not same or list(function.node) != list(known.node):
        return None
    extents = [first.shape[0], slots.shape[0], log10.shape[0]]
    if not all(isinstance(extent, int) for extent in extents) or min(extents) < 1 or slots.shape[1] != ROW:
        return None
    if first_backoff.shape != first.shape or backoff.shape != log10.shape or slots.shape[0] < probes:
        return None
    return [c.emit("dlc.backoff_score", *operands, probes=probes)]


FUNCTION_MATCHERS[DOMAIN, BACKOFF_SCORE] = match
