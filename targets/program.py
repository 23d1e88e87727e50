"""What lowering leaves: kernels, the order they are called in, and where their operands lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from dlc.ir.graph import Origin, Value
from dlc.targets.layout import Layout


@dataclass(frozen=True)
class Step:
    """How far a place moves with every iteration of a loop: `size` bytes, times the loop's `variable` plus `offset`,
    the sum modulo `period` where that is not None."""

    variable: str
    size: Any
    offset: int = 0
    period: int | None = None


@dataclass(frozen=True)
class Ref:
    """A place: graph input or output `index`, constant `index`, or a named value in the workspace.

    Inside loops it may move with the iteration: a slice of what is scanned or stacked.
    """

    kind: Literal["input", "output", "constant", "workspace"]
    index: int = 0
    name: str = ""
    steps: tuple[Step, ...] = ()

    def whole(self) -> Ref:
        """The tensor that a place is a part of."""
        return replace(self, steps=())


@dataclass(frozen=True)
class Call:
    """One kernel call; `layout` is that of its output.

    `shared` says whether threads compute a part each, `turns` whether the kernel takes the iteration's parity, to go
    through its weights forwards and backwards in turn.
    """

    symbol: str
    inputs: tuple[Ref, ...]
    output: Ref
    dims: tuple[Any, ...]
    value: Value
    layout: Layout
    origin: Origin
    row: dict[str, Any]
    shared: bool = False
    turns: bool = False

    def refs(self) -> list[Ref]:
        """All places that the kernel reads or writes."""
        return [*self.inputs, self.output]


@dataclass(frozen=True)
class Copy:
    """`size` bytes from one place to another; `row` explains one that is an operator of the model."""

    source: Ref
    target: Ref
    size: Any
    row: dict[str, Any] | None = None

    def refs(self) -> list[Ref]:
        """Both places."""
        return [self.source, self.target]


@dataclass(frozen=True)
class Loop:
    """Calls that are repeated.

    Attributes:
        variable: the number of the iteration, as `Step` calls it.
        calls: one iteration.
        before, after: carried values to their homes: where they start, and at the end of each iteration those that
            could not be written there at once, all of them read before any is written over.
        trips: how many iterations there are at most (an int64 in memory), or None.
        rows: how many slices there are of what is scanned or stacked, or None where nothing is.
        going: where a condition lies (a bool in memory) that ends the loop when it is false, or None.
        counter: where the body reads the number of the iteration (an int64), or None.
    """

    variable: str
    calls: tuple[Item, ...]
    before: tuple[Copy, ...]
    after: tuple[Copy, ...]
    trips: Ref | None
    rows: Any
    going: Ref | None
    counter: Ref | None
    row: dict[str, Any]

    def refs(self) -> list[Ref]:
        """All places that the loop and its calls read or write."""
        return [*self._own(), *(ref for call in self.calls for ref in call.refs())]

    def lasting(self) -> list[Ref]:
        """The places that hold something from one iteration to the next: the loop's own, and what moves with it."""
        return [*self._own(), *(ref for call in self.calls for ref in call.refs() if ref.steps)]

    def _own(self) -> list[Ref]:
        moved = [ref for copy in (*self.before, *self.after) for ref in (copy.source, copy.target)]
        return [*moved, *(ref for ref in (self.trips, self.going, self.counter) if ref is not None)]


@dataclass(frozen=True)
class Branch:
    """Calls of which one list runs: the first where the bool at `condition` is true, else the second."""

    condition: Ref
    arms: tuple[tuple[Item, ...], tuple[Item, ...]]
    row: dict[str, Any]

    def refs(self) -> list[Ref]:
        """All places that its calls read or write, and the condition."""
        return [self.condition, *(ref for arm in self.arms for call in arm for ref in call.refs())]


Item: TypeAlias = Call | Copy | Loop | Branch


def inside(call: Item) -> Sequence[Item]:
    """The calls that a loop repeats or a branch chooses from; none for others."""
    if isinstance(call, Loop):
        return call.calls
    return [each for arm in call.arms for each in arm] if isinstance(call, Branch) else ()


@dataclass
class Program:
    """A whole lowered function.

    Attributes:
        kernels: PrimFunc by symbol.
        calls: in execution order.
        constants: what kernels read, by index of `Ref`.
        buffers: bytes of each workspace value (int or symbolic).
        symbols: the symbolic dimensions, in the order of the entry's arguments.
        inputs, outputs: of the whole function.
        updated: the outputs that lie where an input does, which is overwritten: output -> input, by index.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    symbols: list[Any]
    kernels: dict[str, Any] = field(default_factory=dict)
    calls: list[Item] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    buffers: dict[str, Any] = field(default_factory=dict)
    updated: dict[int, int] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The explanation: a row a kernel in execution order, a loop's before those of its kernels."""
        return [row for call in self.calls for row in rows_of(call)]


def rows_of(call: Item) -> list[dict[str, Any]]:
    """The rows of one call; those inside a loop or a branch say which."""
    if isinstance(call, Copy):
        return [] if call.row is None else [call.row]
    if isinstance(call, Call):
        return [call.row]
    inner = [row for each in inside(call) for row in rows_of(each)]
    return [call.row, *({"inside": call.row["node"], **row} for row in inner)]
