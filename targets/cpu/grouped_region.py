"""A region whose anchor is `dlc.grouped_matmul`: the packed GEMM of one group, for each run of rows of that group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.hardware import Machine
from dlc.ir.graph import Graph
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import contract
from dlc.targets.cpu.kernels.builder import Expr, Operand, kernel
from dlc.targets.cpu.kernels.contract import Axis, Contraction, Run, Schedule
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.cpu.runs import GUESS, Runs, part
from dlc.targets.layout import Layout, simplify

ANCHOR = "dlc.grouped_matmul"
_DTYPES = (("uint8", "int8"), ("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))


def declines(body: Graph, constants: Mapping[str, np.ndarray]) -> str | None:
    """Why there is no kernel for the region; None when there is."""
    values, node = body.values(), next(n for n in body.nodes if n.op == ANCHOR)
    dtypes = tuple(values[name].dtype for name in node.inputs[:2])
    if dtypes not in _DTYPES:
        return f"no packed kernel multiplies {dtypes[0]} by {dtypes[1]}"
    if node.inputs[1] not in constants or not all(isinstance(d, int) for d in values[node.inputs[1]].shape):
        return "the matrices of the groups are no constant"
    return None


class GroupedRegion(Runs):
    """One grouped product with its epilogue; the interface is that of `ContractionRegion`."""

    def __init__(
        self, body: Graph, layouts: Mapping[str, Layout], constants: Mapping[str, np.ndarray], isa: Isa
    ) -> None:
        anchor = next(n for n in body.nodes if n.op == ANCHOR)
        super().__init__(body, layouts, constants, isa, anchor, anchor.inputs[2])
        self.a, self.w = anchor.inputs[:2]
        self.count, self.k, self.n = (int(d) for d in self.values[self.w].shape)
        zero = int(self.anchor.attrs.get("a_zero_point", 0))
        sums = constants[self.w].astype(np.int64).sum(1) if zero else None
        self.init = None if sums is None else (-zero * sums).astype(np.int32)

    def problem(self, rows: Expr) -> Contraction:
        """The product of `rows` rows with one matrix."""
        dtypes = (self.values[self.a].dtype, self.values[self.w].dtype)
        return Contraction(*dtypes, 0, (), Axis(rows, self.k), (Run(0, self.k),), self.n)

    def choose(self, machine: Machine) -> dict[str, Any]:
        """The schedule that the cost model ranks first for an even share of the rows, as JSON."""
        rows = -(-self.rows // self.count) if isinstance(self.rows, int) else GUESS
        problem = self.problem(max(rows, 1))
        every = [s for s in contract.candidates(problem, self.isa, machine) if s.unit in ("vector", "amx")]
        best = min(every, key=lambda s: contract.predicted_seconds(problem, s, self.isa, machine))
        seconds = contract.predicted_seconds(problem, best, self.isa, machine)
        share = f"{rows} rows of one of {self.count} groups"
        return {**best.to_json(), "predicted_us": round(seconds * 1e6, 3), "predicted_for": share}

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name or '', constant or None)."""
        problem, chosen = self.problem(1), _schedule(schedule)
        packed = [contract.pack(problem, chosen, self.isa, matrix[None]) for matrix in self.constants[self.w]]
        found: list[tuple[str, np.ndarray | None]] = [(self.a, None), (self.w, np.concatenate(packed))]
        if self.init is not None:
            found.append(("", self.init.reshape(-1)))
        others = [v.name for v in self.body.inputs if v.name not in (self.a, self.w)]
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
            flat = array is not None and label in ("", self.w)
            layout = Layout.dense((array.size,)) if flat and array is not None else self.layouts[label]
            params.append((f"x{position}", self.values[label].dtype if label else "int32", layout))
        params.append(("y", self.values[out].dtype, self.layouts[out]))
        with kernel(name, params, dims) as k:
            if halo_fill is not None:
                fill_halo(k.operands[-1], halo_fill)
            named = {label: operand for (label, _), operand in zip(operands, k.operands[:-1], strict=True)}
            self.runs(named, k.operands[-1], _schedule(schedule))
        return k.func

    def multiply(
        self, named: Mapping[str, Operand], y: Operand, begin: Expr, count: Expr, group: Expr, schedule: Any
    ) -> None:
        """See `Runs`."""
        size = contract.packed_size(self.problem(1), schedule, self.isa)
        a = part(named[self.a], begin * self.k, Layout.dense((count, self.k)))
        w = part(named[self.w], group * size, Layout.dense((size,)))
        init = None if self.init is None else part(named[""], group * self.n, Layout.dense((self.n,)))

        def store(_: Sequence[Expr], i: Expr, channel: Expr, acc: Expr, lanes: int, mask: Expr) -> None:
            self.store(named, y, (simplify(begin + i), channel), acc, lanes, mask)

        contract.emit(self.problem(count), schedule, self.isa, a, w, init, store)


def _schedule(values: Mapping[str, Any]) -> Schedule:
    return Schedule.from_json({k: v for k, v in values.items() if not k.startswith("predicted")})
