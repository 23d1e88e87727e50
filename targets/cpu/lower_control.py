"""Control flow as native code: blocks are lowered like any graph; a loop repeats its calls, a branch chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node, Value, is_tensor
from dlc.ir.loops import take_apart
from dlc.ir.ops.host import IF, ITEM, LOOP
from dlc.ir.rewrite import graph_module
from dlc.targets.base import Target
from dlc.targets.cpu.lower import CpuLowering
from dlc.targets.cpu.lower_block import BlockLowering, BodyLowering, bytes_of
from dlc.targets.program import Branch, Call, Copy, Item, Loop, Ref, Step


def declines(node: Node, target: Target) -> str | None:
    """Why a ``dlc.loop`` or ``dlc.if`` cannot be native code; None when it can."""
    by_host = "so the host runs it" if node.op == IF else "so the host starts each iteration"
    for block in node.blocks:
        values = [*block.inputs, *(v for n in block.nodes if n.op not in (LOOP, IF) for v in n.outputs)]
        if not all(is_tensor(v.dtype) for v in values):
            return f"it handles what is no tensor of numbers, {by_host}"
        for inner in block.nodes:
            reason = target.declines(inner) if inner.op != ITEM else None
            if reason is not None:
                return f"node {inner.origin} inside it runs on the host ({reason}), {by_host}"
    if node.attrs["tells"]:
        return f"the extents of its results are in the data, {by_host}"
    changing = _changing(node)
    return None if changing is None else f"carried value {changing} changes its extents, {by_host}"


def _changing(node: Node) -> int | None:
    """The first carried value of a loop whose extents are others behind an iteration."""
    if node.op == IF:
        return None
    parts = take_apart(node)
    values = parts.block.values()
    changing = (i for i, s in enumerate(parts.states) if str(values[s.new].shape) != str(s.inside.shape))
    return next(changing, None)


def lower_control(outer: CpuLowering, node: Node, prefix: str) -> Item:
    """Lower a loop or a branch; `prefix` is what the names of its kernels and values begin with."""
    return (_LoopLowering if node.op == LOOP else _BranchLowering)(outer, node, prefix).run()


class _ControlLowering:
    """What loops and branches share: places of their own, and where their results lie."""

    def __init__(self, outer: CpuLowering, node: Node, prefix: str) -> None:
        self.outer, self.node, self.prefix = outer, node, prefix
        items = (n for n in outer.graph.nodes if n.op == ITEM and n.inputs[0] == node.output.name)
        self.items = {n.attrs["index"]: n.output.name for n in items}

    def workspace(self, name: str, size: Any) -> Ref:
        """A place of its own."""
        self.outer.program.buffers[self.prefix + name] = size
        return Ref("workspace", name=self.prefix + name)

    def result(self, index: int) -> Ref:
        """Where a result lies, whether anybody reads it or not."""
        size = bytes_of(self.node.attrs["shapes"][index], self.node.attrs["dtypes"][index])
        if index not in self.items:
            return self.workspace(f"result{index}", size)
        place = self.outer.place(self.items[index])
        if place.kind == "workspace" and not place.steps:  # a slice lies in what another loop has given its size
            self.outer.program.buffers[place.name] = size
        return place

    def prepared(self, block: Graph) -> Any:
        """A block behind the target's passes."""
        return self.outer.prepare(block.name, graph_module(self.outer.module, block))

    def row(self, kernel: str) -> dict[str, Any]:
        """What `dlc explain` says of it."""
        origin = self.node.origin
        return {
            "node": origin.node or origin.value or next(iter(self.items.values()), self.node.op),
            "op": origin.op,
            "value": "",
            "precision": ", ".join(dict.fromkeys(self.node.attrs["dtypes"])),
            "kernel": kernel,
        }


class _BranchLowering(_ControlLowering):
    """One ``dlc.if``: both blocks write the results' places."""

    def run(self) -> Branch:
        """Lower both blocks."""
        condition, *captured = (self.outer.place(name) for name in self.node.inputs)
        results = [self.result(i) for i in range(len(self.node.attrs["shapes"]))]
        then, other = (
            tuple(BlockLowering(self.outer, self.prepared(block), f"{self.prefix}{arm}", captured).calls(results))
            for arm, block in zip("te", self.node.blocks, strict=True)
        )
        row = self.row(f"native branch, {len(then)} or {len(other)} calls")
        return Branch(condition, (then, other), row)


class _LoopLowering(_ControlLowering):
    """One ``dlc.loop`` as calls that are repeated.

    Every carried value has a home, the place of the loop's result. An iteration writes the new value straight there
    when nobody reads the old one from then on, or when it only replaces some rows (see `in_place`); else beside it, and
    copies it at its end. Slices of what is scanned and stacked are parts of the whole tensors: nothing is copied.
    """

    def __init__(self, outer: CpuLowering, node: Node, prefix: str) -> None:
        super().__init__(outer, node, prefix)
        self.parts = take_apart(node)
        self.block, self.values = self.parts.block, self.parts.block.values()
        self.counter, self.going = self.workspace("counter", 8), self.workspace("going", 1)
        self.homes = [self.result(i) for i in range(len(self.parts.states))]

    def slice_of(self, place: Ref, value: Value) -> Ref:
        """One slice of a tensor along its first axis; `value` is the slice."""
        return replace(place, steps=(*place.steps, Step(self.prefix, bytes_of(*_type(value)))))

    def run(self) -> Loop:
        """Lower the block and say what happens around it."""
        parts, states = self.parts, [self.going, *self.homes]
        rows = [s.shape[0] for s in parts.stacks] + [self.outer.values[o.outside].shape[0] for o in parts.scanned]
        kept = [i for i in range(len(states)) if not self._stays(i)]
        results = [self.block.outputs[i] for i in kept] + [stack.value for stack in parts.stacks]
        shortened = replace(self.block, outputs=tuple(results))
        inner = BodyLowering(
            self.outer, self.prepared(shortened), self.prefix, self._inputs(), {k: 1 + i for k, i in enumerate(kept)},
            rows[0] if rows else self._known_trips(),
        )  # fmt: skip
        fresh = {
            i: self.workspace(f"new{i}", bytes_of(*_type(self.values[self.block.outputs[i]])))
            for i in kept
            if 1 + i not in inner.updated
        }
        places = [*(fresh.get(i, states[i]) for i in kept), *self._stacked()]
        calls = _needed(inner.calls(places), [*places, *states])
        after = []
        for i, place in fresh.items():
            if not _written_in_place(calls, states[i], place):
                after.append(Copy(place, states[i], self.outer.program.buffers[place.name]))
            else:
                calls = [_moved(call, place, states[i]) for call in calls]
        ends = 0 in fresh or parts.condition is not None
        read = {ref for call in calls for ref in call.refs()}
        return Loop(
            self.prefix,
            tuple(calls),
            tuple(self._before(ends or self.going in read)),
            tuple(after),
            None if parts.trips is None else self.outer.place(parts.trips),
            rows[0] if rows else None,
            self.going if ends else None,
            self.counter if self.counter in read else None,
            self.row(f"native loop, {len(calls)} calls an iteration"),
        )

    def _inputs(self) -> list[Ref]:
        """Where the block's inputs lie."""
        scanned = (self.slice_of(self.outer.place(o.outside), o.inside) for o in self.parts.scanned)
        captured = (self.outer.place(o.outside) for o in self.parts.captured)
        return [self.counter, self.going, *self.homes, *scanned, *captured]

    def _stacked(self) -> list[Ref]:
        """Where the results go that are stacked."""
        first = len(self.homes)
        return [self.slice_of(self.result(first + i), self.values[s.value]) for i, s in enumerate(self.parts.stacks)]

    def _before(self, going: bool) -> list[Copy]:
        """How carried values, and the condition where somebody asks for it, begin."""
        pairs = zip(self.parts.states, self.homes, strict=True)
        copies = [Copy(self.outer.place(s.initial), home, bytes_of(*_type(s.inside))) for s, home in pairs]
        if going:
            condition = self.parts.condition
            true = self.outer.constant(np.ones((), np.bool_))
            copies.append(Copy(true if condition is None else self.outer.place(condition), self.going, 1))
        return copies

    def _known_trips(self) -> int | None:
        """The trip count, where it is known when compiling."""
        array = self.outer.graph.constants.get(self.parts.trips or "")
        return None if array is None else int(array.reshape(()))

    def _stays(self, state: int) -> bool:
        """Whether the block gives back the condition (0) or a carried value as it is; true is no condition at all."""
        name = self.block.outputs[state]
        array = self.block.constants.get(name)
        return name == self.block.inputs[1 + state].name or (state == 0 and array is not None and bool(array.all()))


def _type(value: Value) -> tuple[Sequence[Any], str]:
    return value.shape, value.dtype


def _needed(calls: Sequence[Item], results: Sequence[Ref]) -> list[Item]:
    """`calls` without those that make what nobody reads: positions of rows that have become addresses."""
    wanted = {ref.whole() for ref in results}
    kept: list[Item] = []
    for call in reversed(calls):
        if isinstance(call, Call) and call.output.whole() not in wanted:
            continue
        wanted |= {ref.whole() for ref in call.refs()}
        kept.append(call)
    return kept[::-1]


def _written_in_place(calls: Sequence[Item], old: Ref, new: Ref) -> bool:
    """Whether `new` may lie where `old` does: nobody reads the old value from the call on that writes the new one."""
    first = next(i for i, call in enumerate(calls) if any(new == ref.whole() for ref in call.refs()))
    return not any(old.whole() == ref.whole() for call in calls[first:] for ref in call.refs())


def _moved(call: Item, old: Ref, new: Ref) -> Item:
    """`call` with one place, which has no steps, for another."""

    def move(ref: Ref) -> Ref:
        return replace(new, steps=(*new.steps, *ref.steps)) if ref.whole() == old else ref

    def turn(copies: Sequence[Copy]) -> tuple[Copy, ...]:
        return tuple(replace(copy, source=move(copy.source), target=move(copy.target)) for copy in copies)

    if isinstance(call, Call):
        return replace(call, inputs=tuple(move(ref) for ref in call.inputs), output=move(call.output))
    if isinstance(call, Copy):
        return turn([call])[0]
    if isinstance(call, Branch):
        then, other = (tuple(_moved(each, old, new) for each in arm) for arm in call.arms)
        return replace(call, condition=move(call.condition), arms=(then, other))
    return replace(
        call,
        calls=tuple(_moved(each, old, new) for each in call.calls),
        before=turn(call.before),
        after=turn(call.after),
        trips=None if call.trips is None else move(call.trips),
    )
