"""Cut a function into parts that run one behind the other, by a label that each node is given.

A part is a set of nodes of one label whose inputs come from the graph's inputs, constants and earlier parts. Some
targets hand a graph to several devices in this way, and all of them leave to the host what has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Graph, Node
from dlc.ir.rewrite import copy_node, live_nodes


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


def _closure(
    nodes: Sequence[Node], label: Hashable, label_of: Callable[[Node], Hashable], known: set[str]
) -> list[int]:
    """The positions of all nodes of a label that can run before any node of another label does."""
    made = set(known)
    taken = []
    for position, node in enumerate(nodes):
        if label_of(node) == label and all(name in made for name in node.inputs):
            taken.append(position)
            made.add(node.output.name)
    return taken


def _order(graph: Graph, label_of: Callable[[Node], Hashable]) -> list[tuple[Hashable, list[Node]]]:
    known = {v.name for v in graph.inputs} | set(graph.constants)
    rest = live_nodes(graph)
    parts: list[tuple[Hashable, list[Node]]] = []
    while rest:
        ready = [label_of(n) for n in rest if all(name in known for name in n.inputs)]
        # The label with most to do now: what it makes lets the others run longer without a change.
        closures = [(label, _closure(rest, label, label_of, known)) for label in dict.fromkeys(ready)]
        label, taken = max(closures, key=lambda c: len(c[1]))
        parts.append((label, [rest[i] for i in taken]))
        known |= {rest[i].output.name for i in taken}
        rest = [n for i, n in enumerate(rest) if i not in set(taken)]
    return parts


def segments(graph: Graph, label_of: Callable[[Node], Hashable]) -> list[Segment]:
    """All live nodes of `graph` in parts, in an order in which they can run.

    Args:
        graph: a function without regions, or with them.
        label_of: the label of a node; nodes of one label may come apart where another label lies between them.
    """
    parts = _order(graph, label_of)
    readers: dict[str, set[int]] = {}
    for number, (_, nodes) in enumerate(parts):
        for node in nodes:
            for name in node.inputs:
                readers.setdefault(name, set()).add(number)
    found = []
    for number, (label, nodes) in enumerate(parts):
        inside = {n.output.name for n in nodes}
        inputs = dict.fromkeys(i for n in nodes for i in n.inputs if i not in inside and i not in graph.constants)
        outputs = [
            n.output.name
            for n in nodes
            if n.output.name in graph.outputs or readers.get(n.output.name, set()) - {number}
        ]
        found.append(Segment(label, tuple(nodes), tuple(inputs), tuple(outputs)))
    return found


def segment_module(module: Any, segment: Segment) -> Any:
    """A module whose ``main`` is a segment of `module`'s; its inputs and outputs keep the graph's value names."""
    graph = view(module)
    values = graph.values()
    inputs = tuple(values[name] for name in segment.inputs)
    return graph_module(module, Graph("main", inputs, segment.outputs, segment.nodes, graph.constants))


def graph_module(module: Any, graph: Graph) -> Any:
    """A module whose ``main`` is `graph`, with the functions of `module`, which the graph's nodes may use."""
    builder = FunctionBuilder("main")
    builder.add_functions(module)
    env: dict[str, Any] = {v.name: builder.input(v.name, v.shape, v.dtype) for v in graph.inputs}

    def get(name: str) -> Any:
        if name not in env:
            env[name] = builder.constant(graph.constants[name])
        return env[name]

    for node in graph.nodes:
        env[node.output.name] = copy_node(builder, node, [get(name) for name in node.inputs])
    names = {"inputs": [v.name for v in graph.inputs], "outputs": list(graph.outputs)}
    return builder.finish([get(name) for name in graph.outputs], names)
