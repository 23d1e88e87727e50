"""Rows that are multiplied by the matrix of their group, run by run; what the regions of such products share.

The rows come sorted by group (see `dlc.group_order`), so a run is all that a group has to do, its matrix is read once,
and the matrices of groups without rows are not read at all. What the epilogue takes at the rows' groups (a bias, the
scales of integer weights) is read where it lies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.anchored import Accumulator
from dlc.targets.cpu.kernels.builder import Expr, Operand, let
from dlc.targets.cpu.kernels.contract_loops import whole_index
from dlc.targets.cpu.kernels.evaluate import Evaluator
from dlc.targets.cpu.kernels.injective import wrapped_position
from dlc.targets.layout import Layout, simplify

GUESS = 4  # rows a group where the number of rows is not known: few enough for one row alone to run well


class Runs(ABC):
    """A region with one product of rows by a constant matrix, or by one of several for each row.

    Args:
        body: the region.
        layouts: layouts of the body's inputs and output, by the body's names.
        constants: the body's inputs that are constants; the matrices are one.
        anchor: the product, whose first input are the rows (R, K).
        groups: the value that says which matrix each row takes; '' where there is but one.
    """

    def __init__(
        self,
        body: Graph,
        layouts: Mapping[str, Layout],
        constants: Mapping[str, np.ndarray],
        isa: Isa,
        anchor: Node,
        groups: str,
    ) -> None:
        self.body, self.layouts, self.constants, self.isa = body, dict(layouts), constants, isa
        self.anchor, self.groups, self.values = anchor, groups, body.values()
        self.rows = self.values[anchor.inputs[0]].shape[0]
        self.count = 1

    @abstractmethod
    def multiply(
        self, named: Mapping[str, Operand], y: Operand, begin: Expr, count: Expr, group: Expr, schedule: Any
    ) -> None:
        """Emit the product of `count` rows from row `begin` on with the matrix of a group."""

    def runs(self, named: Mapping[str, Operand], y: Operand, schedule: Any) -> None:
        """Emit every run of rows of one group."""
        rows, row = whole_index(self.rows), Accumulator("int64", 1, T.int64(0))
        with T.While(row.get() < rows):
            begin = let(row.get())
            group = self._group(named, begin)
            with self._end(named, begin, group, rows) as end:
                self.multiply(named, y, begin, let(end - begin), group, schedule)
                row.set(end)

    def store(
        self, named: Mapping[str, Operand], y: Operand, index: tuple[Expr, ...], acc: Expr, lanes: int, mask: Expr
    ) -> None:
        """Compute what follows the product at `index`, and store it."""
        evaluator = Evaluator(self.body, named, self.isa)
        evaluator.bind(self.anchor.output.name, acc)
        y.store(index, evaluator.value(self.body.outputs[0], index, lanes, mask), lanes, mask)

    def _group(self, named: Mapping[str, Operand], row: Expr) -> Expr:
        """The group of a row, never outside the matrices."""
        place = Evaluator(self.body, named, self.isa).value(self.groups, (row,))
        return let(wrapped_position(place, self.count))

    @contextmanager
    def _end(self, named: Mapping[str, Operand], begin: Expr, group: Expr, rows: Expr) -> Iterator[Expr]:
        """Where the run that begins at a row ends."""
        end, going = Accumulator("int64", 1, begin + T.int64(1)), Accumulator("int32", 1, T.int32(1))
        with T.While(going.get() != T.int32(0)):
            going.set(T.int32(0))
            at = let(end.get())
            # Not one condition: both sides of it would be evaluated, and one of them reads.
            with T.If(at < rows), T.Then(), T.If(self._group(named, at) == group), T.Then():
                end.set(at + T.int64(1))
                going.set(T.int32(1))
        yield let(end.get())


def part(operand: Operand, begin: Expr, layout: Layout) -> Operand:
    """The part of a flat operand from position `begin` on."""
    address = T.address_of(operand.buffer[simplify(begin)])
    buffer = T.decl_buffer((layout.size,), operand.storage, data=T.bind(address))
    return replace(operand, layout=layout, buffer=buffer)
