"""The slow, obvious interpreter: a graph, operator by operator, in numpy. It is the oracle for every target.

Needs no TVM: symbolic extents are strings by the time a graph is run here (see `dlc.ir.serial`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Dim, Graph, Node
from dlc.ir.ops import OPS

Observer = Callable[[Node, "tuple[np.ndarray, ...]"], None]
_SAFE = re.compile(r"[\w\s+\-*/%(),]*")


def evaluate_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """An extent as an int, given the symbols' sizes."""
    if isinstance(dim, int | np.integer):
        return int(dim)
    text = str(dim).replace("T.int64", "int").replace("T.", "")
    if not _SAFE.fullmatch(text):
        raise DlcError(f"extent '{text}' is not arithmetic")
    try:
        return int(eval(text, {"__builtins__": {}}, {**sizes, "int": int, "max": max, "min": min}))
    except NameError as error:
        raise DlcError(f"extent '{text}' has a symbol without a size: {error}") from None


def bind_sizes(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The size of each symbol, read from the inputs' shapes; DlcError where a shape does not fit."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        actual = inputs[value.name].shape
        if len(actual) != len(value.shape):
            raise DlcError(f"input '{value.name}' has shape {list(actual)}, expected {[str(d) for d in value.shape]}")
        for extent, dim in zip(actual, value.shape, strict=True):
            if not isinstance(dim, int) and str(dim).isidentifier():
                sizes.setdefault(str(dim), extent)
        for extent, dim in zip(actual, value.shape, strict=True):
            if (isinstance(dim, int) or str(dim).isidentifier()) and evaluate_dim(dim, sizes) != extent:
                raise DlcError(
                    f"input '{value.name}' has shape {list(actual)}, expected {[str(d) for d in value.shape]}"
                )
    return sizes


def _concrete(attrs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    def one(item: Any) -> Any:
        if isinstance(item, tuple | list):
            return tuple(one(i) for i in item)
        if isinstance(item, int | float | bool | str) or item is None:
            return item
        return evaluate_dim(item, sizes)

    result = {key: one(value) for key, value in attrs.items()}
    for key in ("shape", "begin", "end"):  # the attributes that may be symbolic; serialised, they are strings
        if isinstance(result.get(key), tuple):
            result[key] = tuple(evaluate_dim(d, sizes) for d in result[key])
    return result


def apply(node: Node, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    """Run one operator."""
    result = OPS[node.op].meaning(inputs, _concrete(node.attrs, sizes))
    return result if isinstance(result, tuple) else (np.asarray(result),)


def interpret(
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    observe: Observer | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[np.ndarray]:
    """Run `graph` on arrays by input name and return its outputs in order.

    `observe` sees every node with its outputs, inside regions too. Values are freed after their last reader.
    """
    sizes = dict(sizes) if sizes is not None else bind_sizes(graph, inputs)
    values: dict[str, np.ndarray] = {**graph.constants, **inputs}
    remaining: dict[str, int] = {}
    for name in [n for node in graph.nodes for n in node.inputs] + list(graph.outputs):
        remaining[name] = remaining.get(name, 0) + 1
    for node in graph.nodes:
        arguments = [values[name] for name in node.inputs]
        if node.body is not None:
            names = [v.name for v in node.body.inputs]
            results = tuple(interpret(node.body, dict(zip(names, arguments, strict=True)), observe, sizes))
        else:
            results = apply(node, arguments, sizes)
            if observe is not None:
                observe(node, results)
        for value, array in zip(node.outputs, results, strict=True):
            values[value.name] = array
        for name in node.inputs:
            remaining[name] -= 1
            if not remaining[name] and name not in graph.constants:
                values.pop(name, None)
    return [values[name] for name in graph.outputs]
