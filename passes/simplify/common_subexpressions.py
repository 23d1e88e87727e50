"""Nodes of the same operator, operands and attributes become one; so do constants of the same bytes.

The first one's name stays.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.pipeline import Context, Pass

#: Larger constants are equal only where they are the same object; hashing gigabytes of weights buys nothing.
LARGEST_COMPARED = 1 << 16


def _hashable(item: Any) -> Hashable:
    if isinstance(item, tuple | list):
        return tuple(_hashable(i) for i in item)
    return item if item is None or isinstance(item, int | float | str | bool) else str(item)


def _constant_key(name: str, array: np.ndarray) -> Hashable:
    if array.nbytes > LARGEST_COMPARED:
        return name
    return (str(array.dtype), array.shape, array.tobytes())


def run(module: Any, context: Context) -> Any:
    """Number every value by what computes it, and keep the first node of each number."""
    numbers: dict[str, Hashable] = {}
    first: dict[Hashable, str] = {}
    dense: dict[Hashable, int] = {}

    def number(state: Rewriter, name: str) -> Hashable:
        if name not in numbers:
            array = state.constant(name)
            key = name if array is None else _constant_key(name, array)
            numbers[name] = dense.setdefault(key, len(dense))
        return numbers[name]

    def handler(state: Rewriter, node: Node) -> Any:
        if node.op == "call" or len(node.outputs) != 1:
            return None
        operands = tuple(number(state, name) for name in node.inputs)
        attrs = tuple(sorted((key, _hashable(value)) for key, value in node.attrs.items()))
        key = (node.op, operands, attrs)
        numbers[node.output.name] = dense.setdefault(key, len(dense))
        if key in first:
            return state.env[first[key]]
        first[key] = node.output.name
        return None

    return rewrite(module, handler)


PASS = Pass("common_subexpressions", run)
