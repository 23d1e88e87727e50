"""A ``dlc.loop`` with its operands, parameters and results by name; the layout itself is in `dlc.ir.ops.host`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dlc.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class State:
    """One carried value.

    Attributes:
        initial: the value around the loop that it begins with.
        inside: the block's input.
        new: the block's value that it becomes.
        shape, dtype: of the result.
    """

    initial: Any
    inside: Value
    new: str
    shape: tuple[Any, ...]
    dtype: str


@dataclass(frozen=True)
class Operand:
    """A value around the loop, and the block's input that is it (captured) or one slice of it (scanned)."""

    outside: Any
    inside: Value


@dataclass(frozen=True)
class Stack:
    """A block's value that is stacked, and the result's type."""

    value: str
    shape: tuple[Any, ...]
    dtype: str


@dataclass(frozen=True)
class LoopParts:
    """A loop taken apart; `join` puts it together again. What stands outside is a name, or what a pass makes of it."""

    trips: Any | None
    condition: Any | None
    counter: Value
    going: Value
    goes_on: str
    states: tuple[State, ...]
    scanned: tuple[Operand, ...]
    captured: tuple[Operand, ...]
    stacks: tuple[Stack, ...]
    block: Graph

    def join(self) -> tuple[list[Any], dict[str, Any], Graph]:
        """(operands, attributes without `tells`, block)."""
        operands = (*self.scanned, *self.captured)
        given = [x for x in (self.trips, self.condition) if x is not None]
        outside = [*given, *(s.initial for s in self.states), *(o.outside for o in operands)]
        types: list[State | Stack] = [*self.states, *self.stacks]
        attrs = {
            "carried": len(self.states),
            "scanned": len(self.scanned),
            "has_trips": self.trips is not None,
            "has_condition": self.condition is not None,
            "shapes": tuple(t.shape for t in types),
            "dtypes": tuple(t.dtype for t in types),
        }
        inside = [*(s.inside for s in self.states), *(o.inside for o in operands)]
        outputs = (self.goes_on, *(s.new for s in self.states), *(s.value for s in self.stacks))
        return outside, attrs, replace(self.block, inputs=(self.counter, self.going, *inside), outputs=outputs)


def take_apart(node: Node) -> LoopParts:
    """The parts of a ``dlc.loop``, with names for what stands outside."""
    (block,) = node.blocks
    attrs, rest = node.attrs, list(node.inputs)
    trips = rest.pop(0) if attrs["has_trips"] else None
    condition = rest.pop(0) if attrs["has_condition"] else None
    count, scans = attrs["carried"], attrs["scanned"]
    types = list(zip(attrs["shapes"], attrs["dtypes"], strict=True))
    counter, going, *params = block.inputs
    states = tuple(
        State(initial, inside, new, *kind)
        for initial, inside, new, kind in zip(
            rest[:count], params[:count], block.outputs[1 : 1 + count], types[:count], strict=True
        )
    )
    operands = [Operand(outside, inside) for outside, inside in zip(rest[count:], params[count:], strict=True)]
    stacks = tuple(Stack(name, *kind) for name, kind in zip(block.outputs[1 + count :], types[count:], strict=True))
    scanned, captured = tuple(operands[:scans]), tuple(operands[scans:])
    return LoopParts(trips, condition, counter, going, block.outputs[0], states, scanned, captured, stacks, block)
