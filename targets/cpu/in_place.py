"""Which states, of a loop or of a whole model, are updated where they lie: rows are stored, nothing is copied.

The new value of a state is a chain of `dlc.scatter_rows` and `dlc.set_rows` that begins at the old one. Each link may
write into the memory of what it updates when everybody else who reads that has done so before; calls are put in such an
order where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.graph import Graph, Node

VIEW = "relax.reshape"
UPDATES = ("dlc.scatter_rows", "dlc.set_rows")
Edges = set[tuple[str, str]]  # (a node's output, that of one which must come later)


@dataclass(frozen=True)
class Updates:
    """What `find_updates` found.

    Attributes:
        order: the block's nodes, in an order that lets every update in `places` overwrite what it updates.
        places: the values that lie in a state's memory -> the state.
        declined: output of an update of a state that has to copy it -> why.
    """

    order: tuple[Node, ...]
    places: Mapping[str, int]
    declined: Mapping[str, str]


def roots(graph: Graph, names: Sequence[str]) -> set[str]:
    """The values whose memory `names` are."""
    sources = {node.output.name: node.inputs[0] for node in graph.nodes if node.op == VIEW}
    found = set()
    for name in names:
        while name in sources:
            name = sources[name]
        found.add(name)
    return found


def updated_data(node: Node) -> str | None:
    """The value that a region updates row by row, where it is nothing but such an update."""
    if node.body is None or len(node.body.nodes) != 1 or node.body.nodes[0].op not in UPDATES:
        return None
    names = dict(zip((v.name for v in node.body.inputs), node.inputs, strict=True))
    return names.get(node.body.nodes[0].inputs[0])


def find_updates(graph: Graph, states: Mapping[str, int], news: Mapping[int, str], parts: Mapping[str, str]) -> Updates:
    """Decide for a graph of regions.

    Args:
        states: the graph's inputs that are states -> which state that is.
        news: the states that change -> the graph's output that replaces them.
        parts: values that are a part of another one's memory -> that one.
    """
    return _Search(graph, states, parts).run(news)


class _Search:
    def __init__(self, graph: Graph, states: Mapping[str, int], parts: Mapping[str, str]) -> None:
        self.graph, self.states, self.parts = graph, states, parts
        self.producers = graph.producers()
        self.roots: dict[str, str] = {}
        for node in graph.nodes:
            if node.op == VIEW:
                self.roots[node.output.name] = self.root(node.inputs[0])
            elif node.output.name in parts:
                self.roots[node.output.name] = self.root(parts[node.output.name])
        self.outputs = [self.root(name) for name in graph.outputs]

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    def run(self, news: Mapping[int, str]) -> Updates:
        edges: Edges = set()
        places: dict[str, int] = {}
        declined: dict[str, str] = {}
        for state, name in news.items():
            chain = self.chain(self.root(name), state)
            wanted: Edges = set()
            reason = next((r for r in (self.link(node, wanted) for node in chain) if r is not None), None)
            if reason is None and self.order(edges | wanted) is None:
                reason = "the old value is read by what needs the new one"
            if reason is not None:
                declined |= {node.output.name: reason for node in chain}
                continue
            edges |= wanted
            places |= {node.output.name: state for node in chain}
        order = self.order(edges)
        assert order is not None
        return Updates(order, places, declined)

    def chain(self, name: str, state: int) -> list[Node]:
        """The updates that make `name` out of the state, last first; none where it is made otherwise."""
        found: list[Node] = []
        while name not in self.states:
            node = self.producers.get(name)
            data = updated_data(node) if node is not None else None
            if node is None or data is None:
                return []
            found.append(node)
            name = self.root(data)
        return found if self.states[name] == state else []

    def link(self, node: Node, wanted: Edges) -> str | None:
        """Why `node` cannot overwrite what it updates; adds to `wanted` what must come before it."""
        data = updated_data(node)
        assert data is not None
        root = self.root(data)
        assert node.body is not None
        (inner,) = node.body.nodes
        if inner.inputs.count(inner.inputs[0]) > 1 or [self.root(name) for name in node.inputs].count(root) > 1:
            return "it is updated from itself"
        if root in self.outputs:
            return "the value before the update is a result too"
        for reader in self.graph.nodes:
            names_it = reader.op == VIEW or reader.output.name in self.parts
            if reader is not node and not names_it and root in map(self.root, reader.inputs):
                wanted.add((reader.output.name, node.output.name))
        return None

    def order(self, edges: Edges) -> tuple[Node, ...] | None:
        """The nodes with every edge respected, else as they were; None where the edges go round."""
        before: dict[str, list[str]] = {}
        for first, second in sorted(edges):
            before.setdefault(second, []).append(first)
        done: set[str] = set()
        active: set[str] = set()
        order: list[Node] = []
        for node in self.graph.nodes:
            if not self._visit(node, before, done, active, order):
                return None
        return tuple(order)

    def _visit(
        self, start: Node, before: Mapping[str, Sequence[str]], done: set[str], active: set[str], order: list[Node]
    ) -> bool:
        """Append `start` behind all that must come before it; False on a cycle. Iterative: chains may be long."""
        stack = [(start, iter(self._needs(start, before)))]
        while stack:
            node, needs = stack[-1]
            name = node.output.name
            if name in done:
                stack.pop()
                continue
            active.add(name)
            needed = next((n for n in needs if n in self.producers and n not in done), None)
            if needed is None:
                stack.pop()
                active.discard(name)
                done.add(name)
                order.append(node)
            elif needed in active:
                return False
            else:
                producer = self.producers[needed]
                stack.append((producer, iter(self._needs(producer, before))))
        return True

    def _needs(self, node: Node, before: Mapping[str, Sequence[str]]) -> list[str]:
        return [*node.inputs, *before.get(node.output.name, ())]
