"""A region whose anchor is `dlc.block_matmul`: rows of int8 times a matrix of 4-bit weights, or that of their group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.hardware import Machine
from dlc.ir.graph import Graph
from dlc.ir.ops import block_matmul
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract_blocks
from dlc.targets.cpu.kernels.builder import Expr, Operand, kernel
from dlc.targets.cpu.kernels.contract_blocks import BLOCK, Blocks
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.runs import GUESS, Runs, part
from dlc.targets.layout import Layout

ANCHOR = block_matmul.NAME
_SHARED_MICROSECONDS = 10.0


def declines(body: Graph, constants: Mapping[str, np.ndarray]) -> str | None:
    """Why there is no kernel for the region; None when there is."""
    values, node = body.values(), next(n for n in body.nodes if n.op == ANCHOR)
    if not all(name in constants for name in node.inputs[1:3]):
        return "the 4-bit weights are no constant"
    depth, blocks = values[node.inputs[0]].shape[-1], values[node.inputs[2]].shape[-2]
    if depth != BLOCK * blocks or depth > contract_blocks.MOST_K:
        return f"{blocks} blocks of {depth} elements: kernels take up to {contract_blocks.MOST_K} in blocks of {BLOCK}"
    return None


class BlockRegion(Runs):
    """One product of this kind with its epilogue; the interface is that of `ContractionRegion`."""

    def __init__(
        self, body: Graph, layouts: Mapping[str, Layout], constants: Mapping[str, np.ndarray], isa: Isa
    ) -> None:
        anchor = next(n for n in body.nodes if n.op == ANCHOR)
        super().__init__(body, layouts, constants, isa, anchor, anchor.inputs[3] if len(anchor.inputs) > 3 else "")
        self.a, self.w, self.scales = anchor.inputs[:3]
        self.init = None
        shape = [int(d) for d in self.values[self.w].shape]
        self.count, self.k, self.n = shape[0] if self.groups else 1, 2 * shape[-2], shape[-1]

    def problem(self, rows: Expr) -> Blocks:
        """The product of `rows` rows with one matrix."""
        return Blocks(rows, self.k, self.n)

    def choose(self, machine: Machine) -> dict[str, Any]:
        """The schedule that the cost model ranks first for an even share of the rows, as JSON."""
        rows = -(-self.rows // self.count) if isinstance(self.rows, int) else GUESS
        return contract_blocks.choose(self.problem(max(rows, 1)), self.isa, machine)

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name, constant or None)."""
        codes, scales = (self.constants[name].reshape(self.count, -1, self.n) for name in (self.w, self.scales))
        packed = [
            contract_blocks.pack(block_matmul.unpack(c), s, schedule["nr"], self.isa)
            for c, s in zip(codes, scales, strict=True)
        ]
        found: list[tuple[str, np.ndarray | None]] = [(self.a, self.constants.get(self.a))]
        found += [(name, np.concatenate([p[i] for p in packed])) for i, name in enumerate((self.w, self.scales))]
        others = [v.name for v in self.body.inputs if v.name not in (self.a, self.w, self.scales)]
        return found + [(name, self.constants.get(name)) for name in others]

    def emit(
        self,
        name: str,
        schedule: Mapping[str, Any],
        operands: Sequence[tuple[str, np.ndarray | None]],
        dims: Sequence[Any],
        halo_fill: float | None,
    ) -> Any:
        """Generate the kernel over `operands` (what `operands` gave) and, last, the output."""
        (out,) = self.body.outputs
        params = []
        for position, (label, array) in enumerate(operands):
            packed = {self.w: "uint8", self.scales: "uint16"}.get(label)
            layout = Layout.dense((array.size,)) if packed and array is not None else self.layouts[label]
            params.append((f"x{position}", packed or self.values[label].dtype, layout))
        params.append(("y", self.values[out].dtype, self.layouts[out]))
        # Rows that choose their matrices are few for each: nothing there is shared out.
        shared = not self.groups and schedule.get("predicted_us", 0.0) >= _SHARED_MICROSECONDS
        with kernel(name, params, dims, shared=shared) as k:
            if halo_fill is not None:
                fill_halo(k.operands[-1], halo_fill)
            self.share = k.share
            named = {label: operand for (label, _), operand in zip(operands, k.operands[:-1], strict=True)}
            if self.groups:
                self.runs(named, k.operands[-1], schedule)
            else:
                self.multiply(named, k.operands[-1], T.int64(0), self.rows, T.int64(0), schedule)
        return k.func

    def multiply(
        self,
        named: Mapping[str, Operand],
        y: Operand,
        begin: Expr,
        count: Expr,
        group: Expr,
        schedule: Any,
    ) -> None:
        """See `Runs`."""
        problem = self.problem(count)
        bytes_, factors = contract_blocks.sizes(problem, self.isa)

        def store(row: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            self.store(named, y, (begin + row, channel), acc, lanes, mask)

        x = named[self.a]
        w, scales = named[self.w], named[self.scales]
        if self.groups:
            x = part(x, begin * self.k, Layout.dense((count, self.k)))
            w, scales = (part(o, group * n, Layout.dense((n,))) for o, n in ((w, bytes_), (scales, factors)))
        mr, nr = schedule["mr"], schedule["nr"]
        contract_blocks.emit(contract_blocks.Task(problem, self.isa, mr, nr, x, w, scales, store, self.share))
