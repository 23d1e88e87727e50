"""Nodes whose inputs are all constant become constants, by the operators' numpy meaning.

Two kinds stay: what would store much more than it reads (a broadcast of a scalar to megabytes), and `dlc.dequantize`
of stored integers, because the integer weights below it are what the quantise passes want to see.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dlc.ir.convert import PACKED
from dlc.ir.graph import Node
from dlc.ir.interpret import apply
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

#: A result above this size stays a node where it is also much larger than its inputs.
LARGEST_GROWTH = 4 << 20


def _symbolic(item: Any) -> bool:
    if isinstance(item, tuple | list):
        return any(_symbolic(i) for i in item)
    return not (item is None or isinstance(item, int | float | str | bool))


def _bytes(node: Node) -> int:
    """The size of a node's result, as far as its extents are numbers."""
    return prod(d for d in node.output.shape if isinstance(d, int)) * np.dtype(node.output.dtype).itemsize


def evaluate(node: Node, inputs: list[np.ndarray]) -> np.ndarray | None:
    """The node's constant result; None where an extent is symbolic or the meaning cannot be computed."""
    if any(_symbolic(value) for value in node.attrs.values()):
        return None
    try:
        with np.errstate(all="ignore"):
            result = apply(node, inputs, {})
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None  # the node fails at run time as well, with its name; a pass is no place to raise that
    return np.asarray(result).astype(node.output.dtype, copy=False)


def run(module: Any, context: Context) -> Any:
    """Fold; later nodes see the constants that earlier ones became."""
    folded: dict[str, np.ndarray] = {}

    def handler(state: Rewriter, node: Node) -> Any:
        if node.op in ("call", "dlc.dequantize") or not node.inputs or len(node.outputs) != 1:
            return None
        found = [folded.get(name, state.constant(name)) for name in node.inputs]
        inputs = [array for array in found if array is not None]
        if len(inputs) != len(found):
            return None
        read, made = sum(array.nbytes for array in inputs), _bytes(node)
        if made > LARGEST_GROWTH and made > 2 * read:
            context.decline("fold_constants", node.origin, f"the result has {made} bytes, its inputs {read}")
            return None
        result = evaluate(node, inputs)
        if result is None:
            return None
        folded[node.output.name] = result
        return None if node.output.dtype in PACKED else state.const(result)

    return rewrite(module, handler)


PASS = Pass("fold_constants", run)
