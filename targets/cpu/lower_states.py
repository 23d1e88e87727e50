"""The lowering of a whole model: its states are updated where they lie, and parts of them are read there.

`dlc.updates` of ``main`` says which output is the new value of which input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dlc.ir.graph import Graph, Node
from dlc.targets.cpu import contraction_region
from dlc.targets.cpu.attention_region import KIND
from dlc.targets.cpu.in_place import find_updates, updated_data
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.lower import CpuLowering, Prepare
from dlc.targets.layout import Layout, simplify
from dlc.targets.lowering import VIEW, region_constants
from dlc.targets.program import Ref

SLICE = "relax.strided_slice"


class StatesLowering(CpuLowering):
    """The lowering of ``main``.

    Attributes:
        parts: slices that are no kernel, because their readers find them in what they are a part of -> that.
    """

    def __init__(self, module: Any, isa: Isa, prepare: Prepare) -> None:
        super().__init__(module, isa, prepare)
        inputs = [value.name for value in self.graph.inputs]
        pairs = {int(output): index for output, index in self.graph.attrs.get("dlc.updates", {}).items()}
        self.parts = find_parts(self.graph, self.isa) if pairs else {}
        news = {index: self.graph.outputs[output] for output, index in pairs.items()}
        found = find_updates(self.graph, {inputs[i]: i for i in news}, news, self.parts)
        self.graph, self.copied = replace(self.graph, nodes=found.order), found.declined
        self.fixed |= {name: Ref("input", index) for name, index in found.places.items()}
        updated = set(found.places.values())
        self.program.updated = {output: index for output, index in pairs.items() if index in updated}
        for node in self.graph.nodes:
            if node.output.name in self.parts:
                self.layouts[node.output.name] = part_layout(node, self.layouts[self.parts[node.output.name]])

    def region(self, node: Node) -> None:
        """See `Lowering.region`; a part of a state is an address."""
        if node.output.name in self.parts:
            self.fixed[node.output.name] = self.place(self.parts[node.output.name])
        else:
            super().region(node)


def find_parts(graph: Graph, isa: Isa) -> dict[str, str]:
    """The slices of updated values that matrix products alone read, where they lie -> what they are cut from."""
    producers, consumers = graph.producers(), graph.consumers()
    found: dict[str, str] = {}
    for node in graph.nodes:
        data = node.inputs[0] if node.inputs else ""
        body = node.body
        if body is None or [n.op for n in body.nodes] != [SLICE] or set(body.nodes[0].attrs["strides"]) != {1}:
            continue
        made = producers.get(data)
        readers = consumers[node.output.name]
        if made is None or updated_data(made) is None or node.output.name in graph.outputs or "dlc.halo" in node.attrs:
            continue
        if all(_reads_strided(graph, reader, node.output.name, isa) for reader in readers):
            found[node.output.name] = data
    return found


def _reads_strided(graph: Graph, reader: Node, name: str, isa: Isa) -> bool:
    """Whether a region is a packed matrix product with `name` as its right matrix, and reads it nowhere else.

    Attention reads all its operands by their strides.
    """
    if reader.op == VIEW or reader.body is None or reader.attrs["dlc.kind"] not in ("contraction", KIND):
        return False
    if reader.attrs["dlc.kind"] == KIND:
        return True
    anchor = contraction_region.anchor_of(reader.body)
    inside = [v.name for v, outer in zip(reader.body.inputs, reader.inputs, strict=True) if outer == name]
    reads = [used for inner in reader.body.nodes for used in inner.inputs if used in inside]
    if anchor.op != "dlc.matmul" or reads != [anchor.inputs[1]]:
        return False
    return contraction_region.declines(reader.body, region_constants(graph, reader), isa) is None


def part_layout(node: Node, whole: Layout) -> Layout:
    """Where a slice lies in the memory of what it is cut from, which is dense."""
    assert node.body is not None
    attrs = node.body.nodes[0].attrs
    halo: list[tuple[Any, Any]] = [(0, 0)] * len(whole.shape)
    for axis, begin, end in zip(attrs["axes"], attrs["begin"], attrs["end"], strict=True):
        halo[axis] = begin, simplify(whole.shape[axis] - end)
    return Layout.padded(node.output.shape, halo)
