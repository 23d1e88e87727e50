"""Cut a function into parts that run one behind the other, by a label that each node is given.

A part is a set of nodes of one label whose inputs come from the graph's inputs, constants and earlier parts. Some
targets hand a graph to several devices in this way, and all of them leave to the host what has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from dlc.ir.graph import Graph, Node, Value, node_symbols, symbol_names
from dlc.ir.ops.host import ITEM
from dlc.ir.rewrite import graph_module, live_nodes

LabelOf = Callable[[Node], Hashable]


@dataclass(frozen=True)
class Segment:
    """One part of a graph.

    Attributes:
        label: what its nodes were labelled with.
        nodes: in execution order.
        inputs: values that it reads from outside, constants left out, in the order of first use.
        outputs: values that later parts read or that the graph returns, in execution order.
    """

    label: Hashable
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Scheduler:
    """Orders the nodes of a graph so that those of one label come together.

    Attributes:
        needs: by a node's value, the values that must be there before: those that it reads, and those that alone tell
            the size of a symbol that it uses.
    """

    def __init__(self, graph: Graph, label_of: LabelOf) -> None:
        self.known = {v.name for v in graph.inputs} | set(graph.constants)
        self.rest = live_nodes(graph)
        self.labels = {node.output.name: label_of(node) for node in self.rest}
        given = symbol_names([v.shape for v in graph.inputs])
        told: dict[str, str] = {}
        self.needs: dict[str, set[str]] = {}
        for node in self.rest:
            used = node_symbols(node) if told or node.op == ITEM else set()
            self.needs[node.output.name] = set(node.inputs) | {told[s] for s in used if s in told}
            if node.op == ITEM:
                for symbol in used - given:
                    told.setdefault(symbol, node.output.name)

    def closure(self, label: Hashable) -> list[int]:
        """The positions of all nodes of a label that can run before any node of another label does."""
        made = set(self.known)
        taken = []
        for position, node in enumerate(self.rest):
            if self.labels[node.output.name] == label and self.needs[node.output.name] <= made:
                taken.append(position)
                made.add(node.output.name)
        return taken

    def run(self) -> list[tuple[Hashable, list[Node]]]:
        """The parts in order."""
        parts: list[tuple[Hashable, list[Node]]] = []
        while self.rest:
            ready = [self.labels[n.output.name] for n in self.rest if self.needs[n.output.name] <= self.known]
            # The label with most to do now: what it makes lets the others run longer without a change.
            closures = [(label, self.closure(label)) for label in dict.fromkeys(ready)]
            label, taken = max(closures, key=lambda c: len(c[1]))
            parts.append((label, [self.rest[i] for i in taken]))
            self.known |= {self.rest[i].output.name for i in taken}
            self.rest = [n for i, n in enumerate(self.rest) if i not in set(taken)]
        return parts


def segments(graph: Graph, label_of: LabelOf) -> list[Segment]:
    """All live nodes of `graph` in parts, in an order in which they can run.

    Args:
        graph: a function without regions, or with them.
        label_of: the label of a node; nodes of one label may come apart where another label lies between them.
    """
    parts = _Scheduler(graph, label_of).run()
    taken = _inputs(graph, [nodes for _, nodes in parts])
    readers = {name for inputs in taken for name in inputs}
    found = []
    for (label, nodes), inputs in zip(parts, taken, strict=True):
        outputs = [n.output.name for n in nodes if n.output.name in graph.outputs or n.output.name in readers]
        found.append(Segment(label, tuple(nodes), tuple(inputs), tuple(outputs)))
    return found


def _inputs(graph: Graph, parts: Sequence[Sequence[Node]]) -> list[list[str]]:
    """What each part takes: the values that it reads, and others that only bring it the size of a symbol."""
    carriers: dict[str, str] = {}  # symbol -> the first value that has it as an extent

    def carry(values: Sequence[Value]) -> None:
        for value in values:
            for dim in value.shape:
                if not isinstance(dim, int):
                    carriers.setdefault(str(dim), value.name)

    carry(graph.inputs)
    values = graph.values()
    found = []
    for nodes in parts:
        inside = {n.output.name for n in nodes}
        read = dict.fromkeys(i for n in nodes for i in n.inputs if i not in inside and i not in graph.constants)
        brought = {str(dim) for name in read for dim in values[name].shape}
        wanted = {name for node in nodes for name in node_symbols(node)} - brought
        read |= dict.fromkeys(carriers[symbol] for symbol in sorted(wanted) if symbol in carriers)
        found.append(list(read))
        carry([n.output for n in nodes])
    return found


def segment_module(module: Any, graph: Graph, segment: Segment) -> Any:
    """A module whose ``main`` is a segment of `graph`, `module`'s; its inputs and outputs keep the value names."""
    values = graph.values()
    inputs = tuple(values[name] for name in segment.inputs)
    return graph_module(module, Graph("main", inputs, segment.outputs, segment.nodes, graph.constants))
