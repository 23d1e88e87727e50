"""Which nodes of a graph go to the accelerator, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlc.ir.graph import Graph, Node
from dlc.passes.partition.segments import segments
from dlc.targets.vta.config import Config
from dlc.targets.vta.match import DeclinedError, Match, Matcher, is_work
from dlc.targets.vta.program import check_layer, padding_conflict


@dataclass
class Selection:
    """What was decided.

    Attributes:
        matches: the layers to run, by the value that each makes, in execution order.
        reasons: why a node (by output name) is not taken.
    """

    matches: dict[str, Match] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def covered(self) -> set[str]:
        """Every value that a layer makes or computes on its way."""
        return set().union(*(m.nodes for m in self.matches.values())) if self.matches else set()


def select(graph: Graph, config: Config) -> Selection:
    """Decide for a whole graph.

    A layer whose parts would come to lie in different programs (host work between them) is left to the host, and the
    graph is looked at again.
    """
    excluded: dict[str, str] = {}
    while True:
        found = _once(graph, config, excluded)
        cut = _cut(graph, config, found)
        if not cut:
            return found
        excluded |= cut


def _once(graph: Graph, config: Config, excluded: dict[str, str]) -> Selection:
    matcher, result = Matcher(graph), Selection(reasons=dict(excluded))
    fills: dict[str, int] = {}
    possible: dict[str, Match] = {}
    for node in graph.nodes:
        name = node.output.name
        if name in excluded:
            continue
        try:
            match = matcher.layer(node)
            if match is not None:
                check_layer(match.layer, config)
                padding_conflict(match.layer, fills)
                possible[name] = match
        except DeclinedError as declined:
            result.reasons[name] = str(declined)
    _take(graph, possible, result)
    for node in graph.nodes:
        if is_work(node) and node.output.name not in result.covered:
            result.reasons.setdefault(node.output.name, _default(node))
    return result


def _take(graph: Graph, possible: dict[str, Match], result: Selection) -> None:
    """From the last node backwards: a sum is a layer of its own only where something reads it outside one."""
    consumers, taken = graph.consumers(), dict[str, Match]()

    def read_outside(name: str) -> bool:
        holders = [m.nodes for m in taken.values() if name in m.nodes]
        readers = [n.output.name for n in consumers[name]]
        return name in graph.outputs or any(not any(r in nodes for nodes in holders) for r in readers)

    for node in reversed(graph.nodes):
        match = possible.get(node.output.name)
        if match is None:
            continue
        is_sum = match.layer.kind == "conv" and match.layer.requantise is None
        if not is_sum or read_outside(node.output.name):
            taken[node.output.name] = match
    for name, match in list(taken.items())[::-1]:
        inner = [n for n in match.nodes if n not in taken and read_outside(n)]
        if inner:
            result.reasons[name] = f"the value '{inner[0]}' on its way is read elsewhere too"
        else:
            result.matches[name] = match


def _default(node: Node) -> str:
    if node.output.dtype not in ("uint8", "int8", "int32"):
        return f"it computes in {node.output.dtype}; the accelerator has integers only"
    return "no layer of the accelerator has this form"


def _cut(graph: Graph, config: Config, found: Selection) -> dict[str, str]:
    """Layers that would be divided between programs."""
    covered = found.covered
    divided: dict[str, str] = {}
    for segment in segments(graph, lambda node: node.output.name in covered):
        if not segment.label:
            continue
        inside = {n.output.name for n in segment.nodes}
        for name, match in found.matches.items():
            if name in inside and not match.nodes <= inside:
                divided[name] = "one of its operands needs host work between the accelerator's"
    return divided
