"""`dlc.top_indices`: the k best positions along an axis, by insertion into the sorted output.

One row after the other, without vectors: an element is compared with the worst that is kept and, where it is better,
moved up. That is n comparisons and about k log(n / k) insertions for values in random order, n k at worst.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Accumulator, Region, emitter, why_not
from dlc.targets.cpu.kernels.builder import Expr, let
from dlc.targets.cpu.kernels.contract_loops import loops, whole_index


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    return why_not(body, ["dlc.top_indices"])


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    return "scalar loop: elements are inserted one by one"


class _Order:
    def __init__(self, region: Region) -> None:
        self.region, self.attrs = region, region.anchor.attrs
        self.axis = int(self.attrs["axis"])
        (self.out,) = region.outputs.values()

    def run(self) -> None:
        """Emit everything."""
        shape = self.region.shape
        extent = whole_index(shape[self.axis])
        with (
            loops(shape[: self.axis]) as before,
            loops(shape[self.axis + 1 :]) as after,
            T.serial(T.int64(0), extent) as i,
        ):
            self.insert(before, let(i), after)

    def x(self, before: Sequence[Expr], position: Expr, after: Sequence[Expr]) -> Expr:
        """An element to compare."""
        value = self.region.x((*before, position, *after), 1)
        return let(v.convert(value, "uint8")) if v.element(value) == "bool" else value

    def better(self, a: Expr, b: Expr) -> Expr:
        """Whether `a`, later in order, comes before `b`; NaN is the largest of all."""
        wins = a > b if self.attrs["largest"] else a < b
        if not v.is_float(v.element(a)):
            return wins
        number, other = (b, a) if self.attrs["largest"] else (a, b)
        return v.either(wins, v.both(v.invert(v.is_nan(number)), v.is_nan(other)))

    def insert(self, before: Sequence[Expr], i: Expr, after: Sequence[Expr]) -> None:
        """Move element `i` up from the end of what is kept to its place."""
        k = whole_index(self.attrs["k"])
        x = self.x(before, i, after)
        place = Accumulator("int64", 1, T.min(i, k))
        moving = Accumulator("int32", 1, T.int32(1))

        def at(position: Expr) -> tuple[Expr, ...]:
            return (*(whole_index(j) for j in before), position, *(whole_index(j) for j in after))

        with T.While(moving.get() != T.int32(0)):
            slot = let(place.get())
            # Two branches and no conjunction, whose second half would read before the first element.
            with T.If(slot == T.int64(0)):
                with T.Then():
                    moving.set(T.int32(0))
                with T.Else():
                    kept = let(self.out.load(at(slot - T.int64(1))))
                    with T.If(self.better(x, self.x(before, kept, after))):
                        with T.Then():
                            with T.If(slot < k), T.Then():
                                self.out.store(at(slot), kept)
                            place.set(slot - T.int64(1))
                        with T.Else():
                            moving.set(T.int32(0))
        with T.If(place.get() < k), T.Then():
            self.out.store(at(let(place.get())), i)


emit = emitter(lambda region: _Order(region).run())
