"""``TrieStep`` of the domain ``dlc.functions`` as one operator, where its body is the one that dlc writes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.functions import FUNCTION_MATCHERS
from dlc.frontends.onnx.tensor import Tensor
from dlc.functions import DOMAIN, TRIE_STEP, trie_step


def match(c: Context, function: onnx.FunctionProto, inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
    """The operator's result; None for another body, other types, or inputs that are left out."""
    halvings = sum(node.op_type == "Div" for node in function.node)
    known = trie_step(halvings)
    same = list(function.input) == list(known.input) and list(function.output) == list(known.output)
    if not same or list(function.node) != list(known.node):
        return None
    operands = [t for t in inputs if t is not None]
    kinds = [(t.dtype, t.rank) for t in operands]
    if kinds[:3] != [("int32", 1)] * 3 or kinds[3:] not in ([("int16", 1)], [("int32", 1)]):
        return None
    return [c.emit("dlc.trie_step", *operands, halvings=halvings)]


FUNCTION_MATCHERS[DOMAIN, TRIE_STEP] = match
