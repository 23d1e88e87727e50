"""Where the nodes of a model would run on each target, found without compiling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlc.composite import block_module, host_reason, is_host
from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.ops.host import ITEM
from dlc.targets.base import HOST, Place, Target

if TYPE_CHECKING:
    from dlc.pipeline import Context


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


def placed_nodes(module: Any, target: Target, context: Context) -> Iterator[tuple[Node, Place]]:
    """Every node of a module behind the common passes with its place, the blocks of control flow included."""
    graph = view(module)
    found = target.places(graph)
    for node in graph.nodes:
        if node.op == ITEM:
            continue
        if not is_host(node):
            yield node, found[node.output.name]
            continue
        yield node, Place(HOST, host_reason(node))
        for block in node.blocks:
            yield from placed_nodes(block_module(module, block, context), target, context)


def placements(module: Any, targets: Sequence[Target], context: Context) -> Mapping[str, dict[str, Placed]]:
    """By ONNX operator and target's name, what becomes of a model's nodes.

    Args:
        module: the IR behind the common passes; `context` is theirs.
    """
    found: dict[str, dict[str, Placed]] = {}
    for target in targets:
        seen: set[tuple[str, str, str]] = set()
        for node, place in placed_nodes(module, target, context):
            operator, label = node.origin.op, node.origin.node or node.origin.value
            placed = found.setdefault(operator, {t.name: Placed() for t in targets})[target.name]
            if (operator, label, place.unit) not in seen:
                seen.add((operator, label, place.unit))
                placed.units[place.unit] += 1
            nodes = placed.reasons.setdefault((place.unit, place.reason), []) if place.reason else []
            if label not in nodes:
                nodes.append(label)
    return found
