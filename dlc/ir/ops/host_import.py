"""ONNX nodes that the host runs by the importer's definitions: imported when they run, since then all is known.

What kept a node from being imported when compiling, an extent or a parameter that only running tells, is told then.
The node is imported for the shapes that came, once for each, and where that does not suffice for the content of small
tensors too. What stays (strings, sequences, optional values) is left to onnx's reference implementation.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph

# Elements of a tensor that may be a parameter: shapes, axes, paddings; scales and bounds are floats.
_MOST_INTEGERS, _MOST_FLOATS = 1024, 16
_Key = tuple[tuple[int, ...], str, bytes | None]  # shape, dtype, content


def run_imported(model: str, inputs: Sequence[Any]) -> list[Any] | None:
    """The outputs of a model of one node; None where the importer leaves the node to the host even so.

    Args:
        model: the node as a model with typed inputs, base64.
        inputs: what came for them, in order.

    Raises:
        DlcError: what came does not fit the node.
    """
    if not all(isinstance(x, np.ndarray | np.generic) and x.dtype != object for x in inputs):
        return None
    from dlc.ir.interpret import interpret  # runs the host's operators by this module

    arrays = [np.asarray(x) for x in inputs]
    for parameters in (False, True):
        keys = tuple(_key(x, parameters) for x in arrays)
        graph = _imported(model, keys)
        if graph is not None:  # its inputs have names of its own, in the model's order
            kept = [x for x, (_, _, content) in zip(arrays, keys, strict=True) if content is None]
            return interpret(graph, {v.name: x for v, x in zip(graph.inputs, kept, strict=True)})
    return None


def _key(x: np.ndarray, parameters: bool) -> _Key:
    known = parameters and x.size <= (_MOST_INTEGERS if x.dtype.kind in "iub" else _MOST_FLOATS)
    return x.shape, x.dtype.name, x.tobytes() if known else None


@functools.lru_cache(maxsize=256)
def _names(model: str) -> list[str]:
    return [value.name for value in parsed(model).graph.input]


@functools.lru_cache(maxsize=256)
def _imported(model: str, inputs: tuple[_Key, ...]) -> Graph | None:
    from dlc.frontends.onnx import import_node
    from dlc.ir.reader import view

    named = dict(zip(_names(model), inputs, strict=True))
    shapes = {name: shape for name, (shape, _, content) in named.items() if content is None}
    known = {
        name: np.frombuffer(content, dtype).reshape(shape)
        for name, (shape, dtype, content) in named.items()
        if content is not None
    }
    graph = view(import_node(parsed(model), shapes, known))
    return None if any(node.op == "dlc.onnx" for node in graph.walk()) else graph


def parsed(model: str) -> Any:
    """The ModelProto of a model that a node carries; DlcError where onnx is missing."""
    try:
        import onnx
    except ImportError as error:
        raise DlcError(
            f"the package has nodes that run on the host by onnx, which is not installed: {error}"
        ) from error
    return onnx.ModelProto.FromString(base64.b64decode(model))
