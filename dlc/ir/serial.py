"""A graph as JSON and constants, and back: how the reference target's package holds it. Imports no TVM.

Symbolic extents become strings in shapes and `Extent` objects in attributes; `dlc.ir.interpret` evaluates both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node, Origin, Value

_INT = re.compile(r"T\.int(?:32|64)\(([^()]*)\)")


@dataclass(frozen=True)
class Extent:
    """A symbolic extent inside an attribute, told from an ordinary string by its type."""

    text: str

    def __str__(self) -> str:
        return self.text


def extent_text(dim: Any) -> int | str:
    """An extent as the package spells it: an int, or arithmetic on symbol names in Python's syntax."""
    if isinstance(dim, int | np.integer):
        return int(dim)
    return _INT.sub(r"\1", str(dim)).replace("T.", "")


# --- to JSON ---------------------------------------------------------------------------------------------------------


def _attr_to_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_attr_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": {str(key): _attr_to_json(item) for key, item in value.items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no infinities
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return {"extent": extent_text(value)}


def _value_to_json(value: Value) -> dict[str, Any]:
    return {"name": value.name, "shape": [extent_text(d) for d in value.shape], "dtype": value.dtype}


def _node_to_json(node: Node, prefix: str, constants: dict[str, np.ndarray]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "op": node.op,
        "inputs": list(node.inputs),
        "outputs": [_value_to_json(v) for v in node.outputs],
        "attrs": {key: _attr_to_json(value) for key, value in node.attrs.items()},
        "origin": asdict(node.origin),
    }
    if node.body is not None:
        record["body"] = _graph_to_json(node.body, prefix, constants)
    if node.blocks:
        record["blocks"] = [_graph_to_json(b, f"{prefix}b{i}/", constants) for i, b in enumerate(node.blocks)]
    return record


def _graph_to_json(graph: Graph, prefix: str, constants: dict[str, np.ndarray]) -> dict[str, Any]:
    constants |= {f"{prefix}{name}": array for name, array in graph.constants.items()}
    return {
        "name": graph.name,
        "inputs": [_value_to_json(v) for v in graph.inputs],
        "outputs": list(graph.outputs),
        "nodes": [_node_to_json(n, f"{prefix}{i}/", constants) for i, n in enumerate(graph.nodes)],
        "constants": sorted(graph.constants),
        "attrs": {key: _attr_to_json(value) for key, value in graph.attrs.items()},
    }


def graph_to_json(graph: Graph) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A graph as JSON-able data, and its constants by a name of their own (those of region bodies prefixed)."""
    constants: dict[str, np.ndarray] = {}
    return _graph_to_json(graph, "", constants), constants


# --- from JSON -------------------------------------------------------------------------------------------------------


def _attr_from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_attr_from_json(item) for item in value)
    if isinstance(value, dict) and "map" in value:
        return {key: _attr_from_json(item) for key, item in value["map"].items()}
    if isinstance(value, dict):
        return float(value["float"]) if "float" in value else Extent(str(value["extent"]))
    return value


def _value_from_json(record: Mapping[str, Any]) -> Value:
    return Value(record["name"], tuple(record["shape"]), record["dtype"])


def _node_from_json(record: Mapping[str, Any], prefix: str, constants: Mapping[str, np.ndarray]) -> Node:
    body = record.get("body")
    blocks = enumerate(record.get("blocks", []))
    return Node(
        record["op"],
        tuple(record["inputs"]),
        tuple(_value_from_json(v) for v in record["outputs"]),
        {key: _attr_from_json(value) for key, value in record["attrs"].items()},
        Origin(**record["origin"]),
        _graph_from_json(body, prefix, constants) if body is not None else None,
        tuple(_graph_from_json(b, f"{prefix}b{i}/", constants) for i, b in blocks),
    )


def _graph_from_json(record: Mapping[str, Any], prefix: str, constants: Mapping[str, np.ndarray]) -> Graph:
    return Graph(
        record["name"],
        tuple(_value_from_json(v) for v in record["inputs"]),
        tuple(record["outputs"]),
        tuple(_node_from_json(n, f"{prefix}{i}/", constants) for i, n in enumerate(record["nodes"])),
        {name: constants[f"{prefix}{name}"] for name in record["constants"]},
        {key: _attr_from_json(value) for key, value in record["attrs"].items()},
    )


def graph_from_json(record: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> Graph:
    """The graph that `graph_to_json` wrote; KeyError or TypeError where it is not one."""
    return _graph_from_json(record, "", constants)
