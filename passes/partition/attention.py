"""Find attention: softmax(scores) times values, where the scores are a product that nobody else reads.

    scores = dlc.matmul(q, k)            k with its last two axes exchanged already
    a chain of elementwise nodes         scales, masks, biases, a soft cap
    softmax along the last axis
    a chain of elementwise nodes         rows without any key set to zero
    dlc.matmul(weights, v)

Whatever the two chains read besides is an operand. Transposes and elementwise nodes that make q and k for this alone,
and a transpose of v, are part of it: they are computed where q and k are read. What a target makes of it is one kernel
without the scores in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.passes.partition import hidden
from dlc.passes.simplify.match import same_shape

SOFTMAX, PRODUCT, TRANSPOSE = "relax.nn.softmax", "dlc.matmul", "relax.permute_dims"


def products(body: Graph) -> tuple[Node, Node, Node]:
    """(the product that makes the scores, the softmax, the product with the values) of a body that was found here."""
    scores, values = (n for n in body.nodes if n.op == PRODUCT)
    return scores, next(n for n in body.nodes if n.op == SOFTMAX), values


def keeps_last(node: Node) -> bool:
    """Whether a transpose leaves the last axis where it is."""
    axes = [axis % len(node.attrs["axes"]) for axis in node.attrs["axes"]]
    return axes[-1] == len(axes) - 1


def turns_last(node: Node) -> bool:
    """Whether a transpose makes the last axis the last but one."""
    axes = [axis % len(node.attrs["axes"]) for axis in node.attrs["axes"]]
    return len(axes) > 1 and axes[-2] == len(axes) - 1


class AttentionFinder:
    """Looks for attention in a graph.

    Args:
        graph: what it is looked for in.
        nodes: its nodes that are alive, in order.
        is_free: whether a node belongs to no region yet.
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node], is_free: Callable[[Node], bool]) -> None:
        self.graph, self.nodes, self.is_free = graph, nodes, is_free
        self.values = graph.values()
        self.order = {n.output.name: i for i, n in enumerate(nodes)}
        self.producers = {v.name: n for n in nodes for v in n.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)

    def members(self, softmax: Node) -> list[Node] | None:
        """The nodes of the attention around a softmax, in order; None where there is none."""
        rank = len(softmax.output.shape)
        if not self.is_free(softmax) or softmax.attrs["axis"] % rank != rank - 1:
            return None
        after = self._after(softmax)
        if after is None:
            return None
        before = self._before(softmax)
        if before is None:
            return None
        scores, values = before[0], after[-1]
        found = [*before, softmax, *after]
        inside = {n.output.name for n in found} - {values.output.name}
        if any(not self._stays(name, found) for name in inside) or values.inputs[1] in inside:
            return None
        found += self._operand(scores, 0, keeps_last, True)
        found += self._operand(scores, 1, lambda node: keeps_last(node) or turns_last(node), True)
        found += self._operand(values, 1, keeps_last, False)
        return sorted(found, key=lambda n: self.order[n.output.name])

    def body(self, members: Sequence[Node]) -> Graph:
        """Such nodes as a graph, which takes all that they do not make; constants are in it."""
        inside = {n.output.name for n in members}
        outer = dict.fromkeys(n for m in members for n in m.inputs if n not in inside)
        constants = {name: self.graph.constants[name] for name in outer if name in self.graph.constants}
        inputs = tuple(self.values[name] for name in outer if name not in constants)
        return Graph("attention", inputs, (members[-1].output.name,), tuple(members), constants)

    def band(self, members: Sequence[Node]) -> hidden.Band:
        """See `hidden.band`."""
        scores, softmax, _ = products(self.body(members))
        return hidden.band(self.graph, self.producers, scores.output.name, softmax.inputs[0])

    def steps(self, members: Sequence[Node]) -> dict[str, hidden.Step]:
        """The masks that such nodes take and that are two numbers: see `hidden.step`."""
        scores, inside = products(self.body(members))[0].output, {n.output.name for n in members}
        found = {}
        for name in dict.fromkeys(n for m in members for n in m.inputs if n not in inside):
            if len(self.values[name].shape) > 1 and same_shape(self.values[name].shape[-2:], scores.shape[-2:]):
                found[name] = hidden.step(self.graph, self.producers, scores.name, name)
        return {name: step for name, step in found.items() if step is not None}

    def _stays(self, name: str, members: Sequence[Node]) -> bool:
        """Whether only `members` read a value."""
        return name not in self.graph.outputs and all(any(r is m for m in members) for r in self.readers[name])

    def _is_elementwise(self, node: Node | None, shape: Sequence[Any]) -> bool:
        wanted = node is not None and self.is_free(node) and OPS[node.op].kind == "elementwise"
        return wanted and node is not None and same_shape(node.output.shape, shape)

    def _after(self, softmax: Node) -> list[Node] | None:
        """What follows a softmax element by element, and last the product with the values."""
        made, found = {softmax.output.name}, list[Node]()
        for node in self.nodes[self.order[softmax.output.name] + 1 :]:
            if not made & set(node.inputs):
                continue
            if node.op == PRODUCT:
                fits = self.is_free(node) and node.inputs[0] in made and node.inputs[1] not in made
                return [*found, node] if fits else None
            if not self._is_elementwise(node, softmax.output.shape):
                return None
            made.add(node.output.name)
            found.append(node)
        return None

    def _before(self, softmax: Node) -> list[Node] | None:
        """The product that makes the scores, and what is computed from them element by element."""
        shape, todo, seen = softmax.output.shape, [softmax.inputs[0]], dict[str, Node]()
        while todo:
            node = self.producers.get(todo.pop())
            if node is None or node.output.name in seen or not same_shape(node.output.shape, shape):
                continue
            if node.op == PRODUCT and self.is_free(node):
                seen[node.output.name] = node
            elif self._is_elementwise(node, shape):
                seen[node.output.name] = node
                todo += node.inputs
        found = sorted(seen.values(), key=lambda n: self.order[n.output.name])
        # Of several products that are added (a bias by position is one) the last is computed here.
        last = max((i for i, n in enumerate(found) if n.op == PRODUCT), default=None)
        if last is None:
            return None
        chain, made = [found[last]], {found[last].output.name}
        for node in found[last + 1 :]:
            if made & set(node.inputs):
                made.add(node.output.name)
                chain.append(node)
        return chain if softmax.inputs[0] in made else None

    def _operand(self, product: Node, position: int, moves: Callable[[Node], bool], computed: bool) -> list[Node]:
        """What makes an operand for `product` alone: elementwise nodes if `computed`, then perhaps a transpose."""
        found: list[Node] = []
        name, reader = product.inputs[position], product
        while (node := self.producers.get(name)) is not None:
            if not self.is_free(node) or not self._stays(name, [reader]) or reader.inputs.count(name) > 1:
                break
            if node.op == TRANSPOSE:
                return [*found, node] if moves(node) else found
            if OPS[node.op].kind in ("contraction", "window", "reduction"):
                return []  # whose store computes what follows
            changing = [n for n in node.inputs if n not in self.graph.constants]
            if not computed or OPS[node.op].kind != "elementwise" or len(changing) != 1:
                break
            if not same_shape(node.output.shape, self.values[changing[0]].shape):
                break
            found.append(node)
            name, reader = changing[0], node
        return found
