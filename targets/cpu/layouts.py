"""Where every value of ``main`` lies in memory: dense, or with the halo that its region writes."""

from __future__ import annotations

from collections.abc import Mapping

from dlc.ir.graph import Graph, Node
from dlc.targets.layout import Layout


def output_layout(node: Node) -> Layout:
    """Layout of what a region call makes."""
    halo = node.attrs.get("dlc.halo")
    shape = node.output.shape
    return Layout.dense(shape) if halo is None else Layout.padded(shape, [(b, a) for b, a in halo])


def value_layouts(graph: Graph) -> dict[str, Layout]:
    """Layouts of all values of ``main`` after the region and halo passes."""
    found = {name: Layout.dense(value.shape) for name, value in graph.values().items()}
    for node in graph.nodes:
        if node.op == "call":
            found[node.output.name] = output_layout(node)
    return found


def body_layouts(node: Node, layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """Layouts by the names that a region's body uses: its inputs and its output."""
    assert node.body is not None
    found = {v.name: layouts[name] for v, name in zip(node.body.inputs, node.inputs, strict=True)}
    found[node.body.outputs[0]] = layouts[node.output.name]
    return found
