"""Symbolic dimensions: which symbols an extent has, and one variable a name for a whole graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from dlc.ir.graph import Dim, Graph, Node, Value


def symbols(dims: Iterable[Dim]) -> list[Any]:
    """The variables in `dims`, once a name, sorted by name."""
    found: dict[str, Any] = {}

    def visit(var: Any) -> None:
        found.setdefault(str(var.name), var)

    for dim in dims:
        if isinstance(dim, tirx.Var):
            visit(dim)
        elif not isinstance(dim, int):
            tvm_ffi.structural_walk(dim, (tvm.ir.Var, visit))
    return [found[name] for name in sorted(found)]


def substitute(dim: Dim, table: Mapping[str, Any]) -> Dim:
    """Replace variables by name; an int stays."""
    if isinstance(dim, int):
        return dim
    if isinstance(dim, tirx.Var):
        return table.get(str(dim.name), dim)
    return tvm_ffi.structural_map(dim, (tvm.ir.Var, lambda v: table.get(str(v.name), v)))


class Symbols:
    """One int64 variable a name."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}

    def dim(self, dim: Dim) -> Dim:
        """The same extent over this table's variables."""
        if isinstance(dim, int):
            return dim
        for var in symbols([dim]):
            self.table.setdefault(str(var.name), tirx.Var(str(var.name), "int64"))
        return substitute(dim, self.table)

    def _value(self, value: Value) -> Value:
        return replace(value, shape=tuple(self.dim(d) for d in value.shape))

    def _attr(self, item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(self._attr(i) for i in item)
        return self.dim(item) if isinstance(item, tvm.ir.Expr) else item

    def _node(self, node: Node) -> Node:
        return replace(
            node,
            outputs=tuple(self._value(v) for v in node.outputs),
            attrs={k: self._attr(v) for k, v in node.attrs.items()},
            body=None if node.body is None else self.graph(node.body),
            blocks=tuple(self.graph(block) for block in node.blocks),
        )

    def graph(self, graph: Graph) -> Graph:
        """`graph` with every symbol replaced by this table's variable of the same name."""
        return replace(
            graph, inputs=tuple(self._value(v) for v in graph.inputs), nodes=tuple(self._node(n) for n in graph.nodes)
        )
