"""Loops as native code: a loop's block is lowered like any graph, and its calls are repeated in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import tvm

from dlc.ir.graph import Node, Value, is_tensor
from dlc.ir.ops.host import ITEM, LOOP
from dlc.ir.rewrite import graph_module
from dlc.targets.base import Target
from dlc.targets.cpu.lower import CpuLowering
from dlc.targets.layout import simplify
from dlc.targets.program import Call, Copy, Loop, Ref, Step


def declines(node: Node, target: Target) -> str | None:
    """Why a ``dlc.loop`` cannot be native code; None when it can."""
    (block,) = node.blocks
    if not all(
        is_tensor(v.dtype) for v in (*block.inputs, *(v for n in block.nodes for v in n.outputs if n.op != LOOP))
    ):
        return "it carries what is no tensor: each iteration is started by the host"
    if node.attrs["tells"]:
        return "how many results it stacks is known only afterwards: each iteration is started by the host"
    for inner in block.nodes:
        reason = target.declines(inner) if inner.op != ITEM else None
        if reason is not None:
            return f"node {inner.origin} inside it runs on the host ({reason}): each iteration is started by the host"
    values = block.values()
    for index in range(node.attrs["carried"]):
        given, taken = values[block.outputs[1 + index]], block.inputs[2 + index]
        if str(given.shape) != str(taken.shape):
            return f"carried value {index} changes its extents: each iteration is started by the host"
    return None


class _BlockLowering(CpuLowering):
    """The lowering of a loop's block: kernels, constants and memory are those of the lowering around it.

    Its inputs lie where the loop says, and its outputs go where the loop wants them.
    """

    def __init__(
        self, outer: CpuLowering, module: Any, prefix: str, inputs: Sequence[Ref], outputs: Sequence[Ref]
    ) -> None:
        super().__init__(module, outer.isa, outer.prepare)
        self.prefix = prefix
        self.program = replace(outer.program, calls=[])
        self.known, self._constant_index = outer.known, outer._constant_index
        self.fixed = {v.name: ref for v, ref in zip(self.graph.inputs, inputs, strict=True)}
        self.outputs = outputs

    def place_outputs(self) -> None:
        """See `Lowering.place_outputs`."""
        for name, ref in zip(self.graph.outputs, self.outputs, strict=True):
            self.fixed.setdefault(self._root(name), ref)


class LoopLowering:
    """One ``dlc.loop`` as calls that are repeated.

    Every carried value has a home, the place of the loop's result. An iteration writes the new value straight there
    when nobody reads the old one from then on; else beside it, and copies it at its end. Slices of what is scanned
    and stacked are parts of the whole tensors: nothing is copied.
    """

    def __init__(self, outer: CpuLowering, node: Node) -> None:
        outer.loops += 1
        self.outer, self.node = outer, node
        self.prefix = f"{outer.prefix}l{outer.loops}_"
        (self.block,) = node.blocks
        rest = list(node.inputs)
        self.trips = rest.pop(0) if node.attrs["has_trips"] else None
        self.condition = rest.pop(0) if node.attrs["has_condition"] else None
        count, scans = node.attrs["carried"], node.attrs["scanned"]
        self.initial, self.scanned, self.captured = rest[:count], rest[count : count + scans], rest[count + scans :]
        self.items = {
            n.attrs["index"]: n.output.name
            for n in outer.graph.nodes
            if n.op == ITEM and n.inputs[0] == node.output.name
        }

    def workspace(self, name: str, size: Any) -> Ref:
        """A place of the loop's own."""
        self.outer.program.buffers[self.prefix + name] = size
        return Ref("workspace", name=self.prefix + name)

    def result(self, index: int) -> Ref:
        """Where a result lies, whether anybody reads it or not."""
        shape, dtype = self.node.attrs["shapes"][index], self.node.attrs["dtypes"][index]
        size = bytes_of(shape, dtype)
        if index not in self.items:
            return self.workspace(f"result{index}", size)
        place = self.outer.place(self.items[index])
        if place.kind == "workspace":
            self.outer.program.buffers[place.name] = size
        return place

    def slice_of(self, place: Ref, value: Value) -> Ref:
        """One slice of a tensor along its first axis; `value` is the slice."""
        return replace(place, steps=(*place.steps, Step(self.prefix, bytes_of(value.shape, value.dtype))))

    def run(self) -> Loop:
        """Lower the block and say what happens around it."""
        block, values = self.block, self.block.values()
        counts = len(self.initial)
        homes = [self.result(i) for i in range(counts)]
        counter, going = self.workspace("counter", 8), self.workspace("going", 1)
        slices = block.inputs[2 + counts : 2 + counts + len(self.scanned)]
        inputs = [counter, going, *homes]
        inputs += [self.slice_of(self.outer.place(n), v) for n, v in zip(self.scanned, slices, strict=True)]
        inputs += [self.outer.place(n) for n in self.captured]
        states = [going, *homes]
        kept = [i for i in range(len(states)) if not self._stays(i)]
        fresh = {i: self.workspace(f"new{i}", bytes_of(*_type(values[block.outputs[i]]))) for i in kept}
        stacked = [
            self.slice_of(self.result(counts + i), values[name]) for i, name in enumerate(block.outputs[1 + counts :])
        ]
        names = [block.outputs[i] for i in kept] + list(block.outputs[1 + counts :])
        module = self.outer.prepare(graph_module(self.outer.module, replace(block, outputs=tuple(names))))
        inner = _BlockLowering(self.outer, module, self.prefix, inputs, [*fresh.values(), *stacked])
        calls = list(inner.run().calls)
        after = []
        for i, place in fresh.items():
            if not _written_in_place(calls, states[i], place):
                after.append(Copy(place, states[i], self.outer.program.buffers[place.name]))
            else:
                calls = [_moved(call, place, states[i]) for call in calls]
        ends = 0 in fresh or self.condition is not None
        read = {ref for call in calls for ref in call.refs()}
        before = [
            Copy(self.outer.place(name), home, bytes_of(*_type(value)))
            for name, home, value in zip(self.initial, homes, block.inputs[2:], strict=False)
        ]
        if ends or going in read:
            true = self.outer.constant(np.ones((), np.bool_))
            before.append(Copy(true if self.condition is None else self.outer.place(self.condition), going, 1))
        rows = [self.node.attrs["shapes"][counts + i][0] for i in range(len(stacked))]
        rows += [self.outer.values[name].shape[0] for name in self.scanned]
        return Loop(
            self.prefix,
            tuple(calls),
            tuple(before),
            tuple(after),
            None if self.trips is None else self.outer.place(self.trips),
            rows[0] if rows else None,
            going if ends else None,
            counter if counter in read else None,
            self._row(len(calls)),
        )

    def _row(self, kernels: int) -> dict[str, Any]:
        origin = self.node.origin
        return {
            "node": origin.node or origin.value,
            "op": origin.op,
            "value": "",
            "precision": ", ".join(dict.fromkeys(self.node.attrs["dtypes"])),
            "kernel": f"native loop, {kernels} calls an iteration",
        }

    def _stays(self, state: int) -> bool:
        """Whether the block gives back the condition (0) or a carried value as it is; true is no condition at all."""
        name = self.block.outputs[state]
        array = self.block.constants.get(name)
        return name == self.block.inputs[1 + state].name or (state == 0 and array is not None and bool(array.all()))


def _type(value: Value) -> tuple[Sequence[Any], str]:
    return value.shape, value.dtype


def bytes_of(shape: Sequence[Any], dtype: str) -> Any:
    """The size of a dense tensor."""
    return simplify(prod(shape, start=1) * max(1, tvm.DataType(dtype).bits // 8))


def _written_in_place(calls: Sequence[Call | Loop], old: Ref, new: Ref) -> bool:
    """Whether `new` may lie where `old` does: nobody reads the old value from the call on that writes the new one."""
    first = next(i for i, call in enumerate(calls) if new in call.refs())
    return not any(old in call.refs() for call in calls[first:])


def _moved(call: Call | Loop, old: Ref, new: Ref) -> Call | Loop:
    """`call` with one place for another."""

    def move(ref: Ref) -> Ref:
        return new if ref == old else ref

    def turn(copies: Sequence[Copy]) -> tuple[Copy, ...]:
        return tuple(replace(copy, source=move(copy.source), target=move(copy.target)) for copy in copies)

    if isinstance(call, Call):
        return replace(call, inputs=tuple(move(ref) for ref in call.inputs), output=move(call.output))
    return replace(
        call,
        calls=tuple(_moved(each, old, new) for each in call.calls),
        before=turn(call.before),
        after=turn(call.after),
        trips=None if call.trips is None else move(call.trips),
    )
