"""What each node of a graph costs on a device, and what a cut between two nodes costs on a link.

A node takes its arithmetic and its memory traffic, one after the other: in the generated kernels of a core the two
overlap so little that the sum is within a few per cent for the convolutions of a ResNet-18, and a maximum is not.
Elementwise nodes behind another node are free: every inner target computes them where that node's result still is in
registers; a cut between the two takes that away. Extents that are symbols count as `SYMBOL`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from dlc.ir.graph import Dim, Graph, Node, Value, is_tensor, symbol_names
from dlc.ir.interpret import evaluate_dim
from dlc.ir.ops import OPS
from dlc.ir.serial import extent_text
from dlc.targets.multi.devices import Device, Link

SYMBOL = 8


def extent(dim: Dim) -> int:
    """An extent as a number."""
    text = extent_text(dim)
    if isinstance(text, int):
        return text
    return max(1, evaluate_dim(text, dict.fromkeys(symbol_names(dim), SYMBOL)))


def nbytes(value: Value) -> int:
    """A value's size in bytes; 0 for what is no tensor, which stays on one device."""
    if not is_tensor(value.dtype):
        return 0
    return prod(extent(d) for d in value.shape) * np.dtype(value.dtype).itemsize


def multiply_adds(node: Node, values: Mapping[str, Value]) -> int:
    """The multiply-adds of a contraction; 0 for any other node."""
    results = prod(extent(d) for d in node.outputs[0].shape)
    if node.op == "dlc.conv":
        return results * prod(extent(d) for d in values[node.inputs[1]].shape[1:])
    if node.op == "dlc.matmul":
        return results * extent(values[node.inputs[0]].shape[-1])
    return 0


def is_fused(node: Node, producers: Mapping[str, Node]) -> bool:
    """Whether a node is elementwise and follows another node: it costs nothing where both are in one stage."""
    return OPS[node.op].kind == "elementwise" and any(name in producers for name in node.inputs)


@dataclass(frozen=True)
class Stage:
    """The nodes from `begin` to before `end`, and what they cost.

    Attributes:
        seconds: for one input, receiving and sending included.
        weights: bytes of the constants that they read.
        activations: the most bytes of other values that live at one time.
        received: bytes that come over the link.
        possible: whether what it receives can be sent, and tells the size of every symbol.
    """

    begin: int
    end: int
    seconds: float
    weights: int
    activations: int
    received: int
    possible: bool = True

    @property
    def memory(self) -> int:
        """Bytes that the stage takes on its device."""
        return self.weights + self.activations


class Costs:
    """The costs of a graph's nodes, in execution order, and of every run of them as a stage."""

    def __init__(self, graph: Graph, device: Device, link: Link) -> None:
        self.nodes, self.device, self.link = graph.nodes, device, link
        self._values = graph.values()
        self._producers = graph.producers()
        self._weights = [[n for n in dict.fromkeys(node.inputs) if n in graph.constants] for node in self.nodes]
        self.seconds = [self._node_seconds(node) for node in self.nodes]
        self._known = symbol_names([value.shape for value in graph.inputs])
        self._symbols = [self._node_symbols(node) & self._known for node in self.nodes]
        self._live(graph)

    def _node_symbols(self, node: Node) -> set[str]:
        tensors = [*(self._values[name] for name in node.inputs), *node.outputs]
        return symbol_names([value.shape for value in tensors])

    def _node_seconds(self, node: Node) -> float:
        if is_fused(node, self._producers):
            return 0.0
        macs = multiply_adds(node, self._values)
        traffic = sum(nbytes(self._values[name]) for name in dict.fromkeys(node.inputs))
        traffic += sum(nbytes(value) for value in node.outputs)
        rate = self.device.macs(self._values[node.inputs[0]].dtype) if node.inputs else 1.0
        return macs / rate + traffic / self.device.bandwidth

    def _live(self, graph: Graph) -> None:
        """`crossing`: bytes of the values alive between nodes k - 1 and k; `peak`: during node k; `broken`: seconds
        that a cut in front of node k adds on either side because elementwise nodes lose their place in registers;
        `open`: whether all that would cross the cut has a size that is known before.
        """
        count = len(self.nodes)
        made = {v.name: k + 1 for k, node in enumerate(self.nodes) for v in node.outputs}
        made |= {v.name: 0 for v in graph.inputs}
        last = dict.fromkeys(graph.outputs, count)
        for k, node in reversed(list(enumerate(self.nodes))):
            for name in node.inputs:
                last.setdefault(name, k)
        crossing, closed = np.zeros(count + 2, np.int64), np.zeros(count + 2, np.int64)
        for name, begin in made.items():
            value, end = self._values[name], last.get(name, begin) + 1
            crossing[begin] += nbytes(value)
            crossing[end] -= nbytes(value)
            unknown = not is_tensor(value.dtype) or bool(symbol_names(value.shape) - self._known)
            closed[begin] += unknown
            closed[end] -= unknown
        self.open = (np.cumsum(closed) == 0)[: count + 1].tolist()
        self.crossing = np.cumsum(crossing)[: count + 1].tolist()
        made_now = [sum(nbytes(v) for v in node.outputs) for node in self.nodes]
        self.peak = [alive + fresh for alive, fresh in zip(self.crossing, made_now, strict=False)]
        broken = np.zeros(count + 2)
        for k, node in enumerate(self.nodes):
            for name in node.inputs if is_fused(node, self._producers) else ():
                if name in self._producers:
                    broken[made[name]] += nbytes(self._values[name]) / self.device.bandwidth
                    broken[k + 1] -= nbytes(self._values[name]) / self.device.bandwidth
        self.broken = np.cumsum(broken)[: count + 1].tolist()

    def _edge(self, position: int) -> float:
        """Seconds that a stage spends on the link and the memory at one of its ends."""
        inner = 0 < position < len(self.nodes)
        return self.link.seconds(self.crossing[position]) + (self.broken[position] if inner else 0.0)

    def stages_from(self, begin: int) -> Iterator[Stage]:
        """Every stage that begins in front of node `begin`, shortest first."""
        seconds, weights, activations = self._edge(begin), 0, 0
        seen: set[str] = set()
        made: set[str] = set()
        used: set[str] = set()
        told: set[str] = set()
        for end in range(begin + 1, len(self.nodes) + 1):
            node = self.nodes[end - 1]
            for name in node.inputs:
                if name not in made:
                    texts = [extent_text(d) for d in self._values[name].shape]
                    told |= {text for text in texts if isinstance(text, str) and text.isidentifier()}
            made |= {v.name for v in node.outputs}
            used |= self._symbols[end - 1]
            seconds += self.seconds[end - 1]
            activations = max(activations, self.peak[end - 1])
            for name in self._weights[end - 1]:
                if name not in seen:
                    seen.add(name)
                    weights += nbytes(self._values[name])
            yield Stage(
                begin,
                end,
                seconds + self._edge(end),
                weights,
                activations,
                self.crossing[begin],
                self.open[begin] and used <= told,
            )
