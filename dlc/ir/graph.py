"""A read-only, plain-Python view of a Relax function: what the interpreter, the generators and reports look at.

Relax stays the IR; this view carries no TVM objects but symbolic dimensions, so walking it is cheap.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Dim = Any  # an int, or a symbolic int64 expression (a tirx expression; a string once serialised)
TUPLE = "tuple"
OBJECT = "object"


def is_tensor(dtype: str) -> bool:
    """Whether values of this dtype are tensors of numbers."""
    return dtype != TUPLE and not dtype.startswith(OBJECT)


@dataclass(frozen=True)
class Value:
    """A value: its name in the graph, its extents (ints or symbolic expressions) and its dtype.

    What is no tensor of numbers has no extents and a dtype that says what it is: `TUPLE` (the results of an operator
    that has several, read by ``dlc.item``) or ``object: ...`` (strings, sequences, optional values, tensors of unknown
    rank), which only the host handles.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Origin:
    """Where a node came from: ONNX operator type, node name and the name of the value it made.

    `channels_last`: the node's output is that value with its channels moved to the end.
    """

    op: str = ""
    node: str = ""
    value: str = ""
    channels_last: bool = False

    def __str__(self) -> str:
        label = self.node or self.value
        return f"{self.op} '{label}'" if self.op else f"'{label}'"


@dataclass(frozen=True)
class Node:
    """One operator call; `op` is its name in the IR (``relax.add``, ``dlc.conv``) or ``call`` for a region.

    `body` is the region that is called; `blocks` are the functions that control flow runs: a loop's body, the branches.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = Origin()
    body: Graph | None = None
    blocks: tuple[Graph, ...] = ()

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value


def free_name(hint: str, taken: Container[str]) -> str:
    """`hint`, with a number behind it where that is taken."""
    name, count = hint, 0
    while name in taken:
        count += 1
        name = f"{hint}_{count}"
    return name


def symbol_names(item: Any) -> set[str]:
    """The names of the symbols in an extent, a list of them, or whatever holds extents."""
    if item is None or isinstance(item, int | float):
        return set()
    if isinstance(item, tuple | list):
        return {name for part in item for name in symbol_names(part)}
    if type(item).__module__.startswith("tvm"):  # printing one takes several times as long as walking it
        from dlc.ir.dims import symbols

        return {str(var.name) for var in symbols([item])}
    return set(_NAME.findall(str(item))) - _NOT_SYMBOLS


_NAME = re.compile(r"[A-Za-z_]\w*")
_NOT_SYMBOLS = {"T", "int", "int32", "int64", "max", "min"}


def node_symbols(node: Node) -> set[str]:
    """The symbols that running a node needs: in its attributes and results, and in what it runs."""
    found = symbol_names([v.shape for v in node.outputs])
    found |= {name for value in node.attrs.values() if not isinstance(value, str) for name in symbol_names(value)}
    for block in node.blocks:
        found |= symbol_names([v.shape for v in block.inputs])
        found |= {name for inner in block.nodes for name in node_symbols(inner)}
    return found


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order. Constants are named like values and may be inputs of nodes."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Value]:
        """Every value by name, constants included."""
        found = {v.name: v for v in self.inputs}
        found |= {name: Value(name, tuple(a.shape), str(a.dtype)) for name, a in self.constants.items()}
        found |= {v.name: v for node in self.nodes for v in node.outputs}
        return found

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {v.name: node for node in self.nodes for v in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, in order, once each."""
        found: dict[str, list[Node]] = {name: [] for name in self.values()}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def walk(self) -> Iterator[Node]:
        """All nodes, those inside region bodies included, in execution order."""
        for node in self.nodes:
            yield node
            for inner in (*([node.body] if node.body is not None else []), *node.blocks):
                yield from inner.walk()
