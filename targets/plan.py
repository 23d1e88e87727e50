"""The memory plan: which workspace values share memory, and where each lies.

Values whose lives do not overlap share a *slot*. Slots are filled greedily in execution order; a slot is as large
as the largest value that it ever holds, so the plan is the same list of slots for static and for symbolic extents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from dlc.ir.dims import substitute, symbols
from dlc.targets.layout import simplify
from dlc.targets.program import Branch, Item, Loop, Program, Ref

ALIGNMENT = 64
# Extent assumed for a symbolic dimension when values are matched to slots; any value gives a correct plan.
_GUESS = 8


@dataclass(frozen=True)
class Plan:
    """`offset_of[value]` and `total`: bytes, ints or symbolic expressions; offsets are multiples of 64."""

    offset_of: dict[str, Any]
    total: Any


def _aligned(size: Any) -> Any:
    return simplify((size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)


def _guess(size: Any) -> int:
    if isinstance(size, int):
        return size
    table = {str(v.name): tirx.IntImm("int64", _GUESS) for v in symbols([size])}
    guessed = simplify(substitute(size, table))
    return guessed if isinstance(guessed, int) else 1 << 20


class _Lives:
    """(first, last) moment of every workspace value; what lives when a loop begins, and is used in it, outlives it."""

    def __init__(self, program: Program) -> None:
        self.now = 0
        self.found: dict[str, tuple[int, int]] = {}
        self.visit(program.calls)

    def touch(self, refs: Iterable[Ref]) -> None:
        for ref in refs:
            if ref.kind == "workspace":
                self.found[ref.name] = (self.found.get(ref.name, (self.now, 0))[0], self.now)

    def visit(self, calls: Iterable[Item]) -> None:
        for call in calls:
            self.now += 1
            if isinstance(call, Loop):
                self.loop(call)
            elif isinstance(call, Branch):
                self.touch([call.condition])
                for arm in call.arms:
                    self.visit(arm)
            else:
                self.touch(call.refs())

    def loop(self, loop: Loop) -> None:
        # What lasts from one iteration to the next comes first: it lives from the loop's begin to its end.
        start = self.now
        self.touch(loop.lasting())
        self.visit(loop.calls)
        self.now += 1
        for name, (first, last) in self.found.items():
            if first <= start <= last:
                self.found[name] = (first, self.now)


def plan(program: Program) -> Plan:
    """Place every workspace value."""
    lives = _Lives(program).found
    slots: list[list[str]] = []
    busy_until: list[int] = []
    for name in sorted(lives, key=lambda n: lives[n][0]):
        first, last = lives[name]
        need = _guess(program.buffers[name])
        free = [s for s in range(len(slots)) if busy_until[s] < first]
        # The free slot whose size is closest: growing one or wasting one costs the same bytes.
        best = min(free, key=lambda s: abs(max(_guess(program.buffers[n]) for n in slots[s]) - need), default=None)
        if best is None:
            slots.append([name])
            busy_until.append(last)
        else:
            slots[best].append(name)
            busy_until[best] = last
    offset: Any = 0
    offset_of: dict[str, Any] = {}
    for slot in slots:
        size: Any = 0
        for name in slot:
            offset_of[name] = offset
            need = program.buffers[name]
            both_int = isinstance(size, int) and isinstance(need, int)
            size = max(size, need) if both_int else tirx.max(_int64(size), _int64(need))
        offset = simplify(offset + _aligned(size))
    return Plan(offset_of, offset)


def _int64(value: Any) -> Any:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value
