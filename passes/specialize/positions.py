"""The values of a sequence model that are made of nothing but constants and the number of steps.

Position embeddings and masks are such values. They do not change with the data, so what they are for the longest
sequence is computed when compiling, and a shorter sequence has the first rows of that, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, node_symbols
from dlc.ir.interpret import apply, evaluate_dim
from dlc.ir.ops import OPS


class NotLocalError(Exception):
    """A node needs more of the sequence than the steps so far.

    Attributes:
        likely: whether the axis may be time all the same; else the node shows that it is another one.
    """

    def __init__(self, node: Node, reason: str, likely: bool = True) -> None:
        super().__init__(f"node {node.origin}: {reason}")
        self.node, self.likely = node, likely


class Positions:
    """The values of one graph that the number of steps decides alone.

    Args:
        steps: the symbol of the number of steps; None where that is a number, and no value depends on it.
        longest: of the sequences; None where nobody said it.
        sizes: a size of each symbol of the graph, which tells extents from each other.
    """

    def __init__(self, graph: Graph, steps: str | None, longest: int | None, sizes: Mapping[str, int]) -> None:
        self.graph, self.steps, self.longest, self.sizes = graph, steps, longest, sizes
        self.nodes: dict[str, Node] = {}
        self._known: dict[int, dict[str, np.ndarray]] = {}
        fixed = set(graph.constants)
        for node in graph.nodes:
            if OPS[node.op].kind == "host" or any(n not in fixed and n not in self.nodes for n in node.inputs):
                continue
            if steps is not None and (steps in node_symbols(node) or any(n in self.nodes for n in node.inputs)):
                self.nodes[node.output.name] = node
            elif not node_symbols(node):
                fixed.add(node.output.name)

    def axes(self, name: str) -> list[int]:
        """The axes of a value that run over the steps."""
        wanted = self.sizes[str(self.steps)]
        return [i for i, d in enumerate(self.nodes[name].output.shape) if evaluate_dim(d, self.sizes) == wanted]

    def table(self, name: str, reader: Node) -> np.ndarray:
        """What the value is for the longest sequence.

        Raises:
            NotLocalError: it cannot be computed for that, or differs from what a shorter sequence has; names the node.
        """
        node = self.nodes[name]
        if self.longest is None:
            text = "it depends on the positions of the steps: say how long a sequence may become (max_length)"
            raise NotLocalError(reader, text)
        whole = self._value(name, self.longest)
        for count in sorted({1, 2, (self.longest + 1) // 2, self.longest - 1} & set(range(1, self.longest))):
            first = tuple(slice(count) if i in self.axes(name) else slice(None) for i in range(whole.ndim))
            if not np.array_equal(self._value(name, count), whole[first], equal_nan=whole.dtype.kind == "f"):
                raise NotLocalError(node, "its values depend on how long the whole sequence is")
        return whole

    def _value(self, name: str, count: int) -> np.ndarray:
        known = self._known.setdefault(count, dict(self.graph.constants))
        pending = [name]
        while pending:
            producer = self.graph_node(pending[-1])
            missing = [n for n in producer.inputs if n not in known]
            if missing:
                pending += missing
                continue
            known[pending.pop()] = self._computed(producer, [known[n] for n in producer.inputs], count)
        return known[name]

    def graph_node(self, name: str) -> Node:
        """The node that makes a value."""
        return self.nodes.get(name) or self.graph.producers()[name]

    def _computed(self, node: Node, inputs: list[np.ndarray], count: int) -> np.ndarray:
        other = sorted(node_symbols(node) - {self.steps})
        if other:
            raise NotLocalError(node, f"it depends on dimension '{other[0]}' and on the positions of the steps")
        try:
            return apply(node, inputs, {str(self.steps): count})
        except (ValueError, IndexError, OverflowError, MemoryError, DlcError) as error:
            text = f"it cannot be computed for a sequence of {count} steps (max_length is {self.longest})"
            raise NotLocalError(node, f"{text}: {error}") from error
