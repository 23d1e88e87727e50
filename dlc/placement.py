"""Where the nodes of a model would run on each target, found without compiling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dlc.ir.graph import Graph, Node
from dlc.ir.ops.host import ITEM
from dlc.targets.base import HOST, Place, Target


@dataclass
class Placed:
    """Where the nodes of one ONNX operator run on one target.

    Attributes:
        units: how many ONNX nodes have code in each unit; empty where none is left: they were computed when compiling,
            or have become part of another node.
        reasons: (unit, why not in a kernel) -> the ONNX nodes.
    """

    units: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def placed_nodes(graph: Graph, target: Target) -> Iterator[tuple[Node, Place]]:
    """Every node of a graph behind the common passes with its place, the blocks of control flow included."""
    found = target.places(graph)
    for node in graph.nodes:
        if node.op == ITEM:
            continue
        place = found[node.output.name]
        yield node, place
        for block in node.blocks:
            if place.unit == HOST:
                yield from placed_nodes(block, target)
            else:  # control flow in native code has native blocks
                yield from ((inner, place) for inner in block.walk() if inner.op != ITEM)


def placements(graph: Graph, targets: Sequence[Target]) -> Mapping[str, dict[str, Placed]]:
    """By ONNX operator and target's name, what becomes of the nodes of a graph behind the common passes."""
    found: dict[str, dict[str, Placed]] = {}
    for target in targets:
        seen: set[tuple[str, str, str]] = set()
        for node, place in placed_nodes(graph, target):
            operator, label = node.origin.op, node.origin.node or node.origin.value
            placed = found.setdefault(operator, {t.name: Placed() for t in targets})[target.name]
            if (operator, label, place.unit) not in seen:
                seen.add((operator, label, place.unit))
                placed.units[place.unit] += 1
            nodes = placed.reasons.setdefault((place.unit, place.reason), []) if place.reason else []
            if label not in nodes:
                nodes.append(label)
    return found
