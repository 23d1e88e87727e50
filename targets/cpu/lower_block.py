"""The lowering of blocks, which loops and branches run: as any graph, between places that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import tvm

from dlc.ir.graph import Node
from dlc.targets.cpu.addresses import Row, find_rows
from dlc.targets.cpu.in_place import find_updates, roots
from dlc.targets.cpu.lower import CpuLowering
from dlc.targets.layout import simplify
from dlc.targets.lowering import region_row
from dlc.targets.program import Copy, Item, Ref, Step


def bytes_of(shape: Sequence[Any], dtype: str) -> Any:
    """The size of a dense tensor."""
    return simplify(prod(shape, start=1) * max(1, tvm.DataType(dtype).bits // 8))


class BlockLowering(CpuLowering):
    """The lowering of a block: kernels, constants and memory are those of the lowering around it.

    Args:
        inputs: where the block's inputs lie.
    """

    def __init__(self, outer: CpuLowering, module: Any, prefix: str, inputs: Sequence[Ref]) -> None:
        super().__init__(module, outer.isa, outer.prepare)
        self.prefix = prefix
        self.program = replace(outer.program, calls=[])
        self.known, self._constant_index = outer.known, outer._constant_index
        self.fixed = {v.name: ref for v, ref in zip(self.graph.inputs, inputs, strict=True)}
        self.outputs: Sequence[Ref] = ()

    def calls(self, outputs: Sequence[Ref]) -> list[Item]:
        """One run of the block; its outputs go to these places."""
        self.outputs = outputs
        return list(self.run().calls)

    def place_outputs(self) -> None:
        """See `Lowering.place_outputs`."""
        for name, ref in zip(self.graph.outputs, self.outputs, strict=True):
            self.fixed.setdefault(self._root(name), ref)


class BodyLowering(BlockLowering):
    """The lowering of a loop's block, whose first input is the number of the iteration.

    Args:
        states: the outputs that are carried, by number -> the input that each replaces.
        most: what the number of the iteration is less than; None where that is unknown.

    Attributes:
        updated: the inputs that are updated where they lie; their outputs need no place.
    """

    repeats = True

    def __init__(
        self, outer: CpuLowering, module: Any, prefix: str, inputs: Sequence[Ref], states: Mapping[int, int], most: Any
    ) -> None:
        super().__init__(outer, module, prefix, inputs)
        dense = {name for name, layout in self.layouts.items() if layout.is_dense}
        self.rows = {n: r for n, r in find_rows(self.graph, most).items() if dense >= {n, r.data, r.update or n}}
        results = roots(self.graph, self.graph.outputs)
        self.picked = {n: row.data for n, row in self.rows.items() if not row.update and n not in results}
        names = {self.graph.inputs[index].name: index for index in states.values()}
        news = {index: self.graph.outputs[i] for i, index in states.items()}
        found = find_updates(self.graph, names, news, self.picked)
        self.graph, self.copied = replace(self.graph, nodes=found.order), found.declined
        self.fixed |= {name: inputs[index] for name, index in found.places.items()}
        self.updated = set(found.places.values())

    def region(self, node: Node) -> None:
        """See `Lowering.region`; what picks or stores one row at an address is no kernel."""
        row = self.rows.get(node.output.name)
        if row is None:
            super().region(node)
        elif node.output.name in self.picked:
            self.fixed[node.output.name] = self._address(row)
        elif row.update and self.place(row.data) == self.place(node.output.name):
            explained = {**region_row(node, "memcpy"), "kernel": "copy of a row, in place"}
            target = self._address(row)
            self.program.calls.append(Copy(self.place(row.update), target, target.steps[-1].size, explained))
        else:
            super().region(node)

    def _address(self, row: Row) -> Ref:
        value, place = self.values[row.data], self.place(row.data)
        size = bytes_of(value.shape[row.axis + 1 :], value.dtype)
        step = Step(self.prefix, size, row.position.offset, row.position.period)
        return replace(place, steps=(*place.steps, step))
