"""From regions to kernels: each region call of ``main`` becomes one generated function and one call of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import tvm

from dlc.errors import DlcError
from dlc.ir.dims import symbols
from dlc.ir.graph import Graph, Node
from dlc.ir.ops.host import IF, LOOP
from dlc.targets.cpu import attention_region, contraction_region
from dlc.targets.cpu.explain import explanation
from dlc.targets.cpu.in_place import updated_data
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import (
    backoff,
    contract_plain,
    group_order,
    normalise,
    order,
    pointwise,
    pool,
    reduce,
    resample,
    scan,
    scatter,
    set_rows,
    sources,
    trie,
)
from dlc.targets.cpu.kernels.builder import SHARED, TURNS
from dlc.targets.cpu.layouts import body_layouts, value_layouts
from dlc.targets.cpu.lifted import lift
from dlc.targets.layout import Layout, simplify
from dlc.targets.lowering import Lowering, canonical, region_constants
from dlc.targets.program import Call, Program, Ref

Prepare = Callable[[str, Any], Any]  # the target's passes on a block: its name, a module -> a module

FAMILIES: dict[str, tuple[ModuleType, ...]] = {
    "contraction": (contract_plain,),  # what `contraction_region` declines
    "window": (pool,),
    "reduction": (reduce, normalise),
    "opaque": (resample, order, scan, scatter, set_rows, sources, group_order, trie, backoff),
    "pointwise": (pointwise,),
}


def _digest(body: Graph, layouts: dict[str, Layout], attrs: Any, constants: dict[str, np.ndarray]) -> str:
    """Equal for regions that generate the same kernel (their array constants may differ)."""
    text = [
        [(v.name, str(v.shape), v.dtype) for v in body.inputs],
        [(n.op, n.inputs, str(sorted(n.attrs.items())), str(n.output.shape), n.output.dtype) for n in body.nodes],
        {n: [a.tolist(), str(a.dtype)] for n, a in body.constants.items()},
        {n: str(layout) for n, layout in sorted(layouts.items())},
        {n: [list(a.shape), str(a.dtype)] for n, a in constants.items()},
        str(sorted((k, str(v)) for k, v in attrs.items() if k != "global_symbol")),
    ]
    return hashlib.sha256(json.dumps(text, default=str).encode()).hexdigest()


def _without_zero_point(node: Node) -> Node:
    return replace(node, attrs={k: v for k, v in node.attrs.items() if k not in ("a_zero_point", "x_zero_point")})


def _extents(node: Node) -> list[Any]:
    """All symbolic expressions in what a node makes and in its attributes."""
    given = [item for value in node.attrs.values() for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in (*node.output.shape, *given) if isinstance(item, tvm.ir.Expr)]


class CpuLowering(Lowering):
    """The state of one lowering for one instruction set.

    Attributes:
        prepare: the target's passes, for the blocks of control flow.
        controls: how many loops and branches there were so far.
        copied: what updates a state and has to copy it -> why.
        repeats: whether it is the block of a loop.
    """

    repeats = False

    def __init__(self, module: Any, isa: Isa, prepare: Prepare) -> None:
        super().__init__(module)
        self.module, self.isa, self.prepare = module, isa, prepare
        self.layouts = value_layouts(self.graph)
        self.controls = 0
        self.copied: Mapping[str, str] = {}

    def node(self, node: Node) -> None:
        """See `Lowering.node`."""
        if node.op in (LOOP, IF):
            from dlc.targets.cpu.lower_control import lower_control

            self.controls += 1
            self.program.calls.append(lower_control(self, node, f"{self.prefix}f{self.controls}_"))
        else:
            self.region(node)

    def region(self, node: Node) -> None:
        """See `Lowering.region`."""
        assert node.body is not None
        kind = node.attrs["dlc.kind"]
        constants = region_constants(self.graph, node)
        renamed, lifted = lift(canonical(node.body))
        names = dict(zip((v.name for v in node.body.inputs), (v.name for v in renamed.inputs), strict=False))
        names[node.body.outputs[0]] = renamed.outputs[0]
        layouts = {names[n]: layout for n, layout in body_layouts(node, self.layouts).items()}
        layouts |= {n: Layout.dense(()) for n in lifted}
        constants = {**{names[n]: a for n, a in constants.items()}, **lifted}
        fill = float(node.attrs["dlc.halo_fill"]) if "dlc.halo" in node.attrs else None
        packed = kind == "contraction" and contraction_region.declines(renamed, constants, self.isa) is None
        if packed or kind == attention_region.KIND:
            refs, symbol = self._contraction(node, renamed, layouts, constants, fill)
            note = ""
        else:
            refs, symbol, note = self._generated(node, kind, renamed, layouts, constants, fill, lifted)
        output = self.place(node.output.name)
        layout = self.layouts[node.output.name]
        if output.kind == "workspace":
            bits = tvm.DataType(node.output.dtype).bits
            # A loop has said how large what it carries or stacks is.
            self.program.buffers.setdefault(output.name, simplify(layout.size * max(1, bits // 8)))
        row = explanation(node, symbol, self.isa, note)
        if len(refs) - len(lifted) < len(node.inputs) and kind == "opaque":
            row["kernel"] += ", in place"
        dims = self._dims(renamed, layouts)
        shared = SHARED in self.program.kernels[symbol].attrs
        row["threads"] = "all" if shared else "one"
        turns = TURNS in self.program.kernels[symbol].attrs
        made = Call(symbol, tuple(refs), output, tuple(dims), node.output, layout, node.origin, row, shared, turns)
        self.program.calls.append(made)

    def _dims(self, body: Graph, layouts: dict[str, Layout]) -> list[Any]:
        """The symbols that a kernel takes: those of its operands, and what its operators' attributes say of others."""
        found = [extent for node in body.nodes for extent in _extents(node)]
        return symbols(
            [*found, *(d for layout in layouts.values() for d in (*layout.shape, layout.offset, layout.size))]
        )

    def _contraction(
        self, node: Node, body: Graph, layouts: dict[str, Layout], constants: dict[str, Any], fill: float | None
    ) -> tuple[list[Ref], str]:
        region = contraction_region.packed_region(body, layouts, constants, self.isa)
        schedule = node.attrs.get("dlc.schedule", {})
        operands = region.operands(schedule)
        # The zero point of the activations is in the start values of the sums and nowhere else.
        alike = replace(body, nodes=tuple(_without_zero_point(n) for n in body.nodes))
        plain = isinstance(region, contraction_region.ContractionRegion)
        turns = {"turns": True} if self.repeats and plain and region.turns(schedule) else {}
        digest = _digest(alike, layouts, {**node.attrs, "init": region.init is not None, **turns}, constants)
        if digest not in self.known:
            assert node.body is not None
            func = region.emit(
                self.prefix + node.body.name, schedule, operands, self._dims(body, layouts), fill, **turns
            )
            self.known[digest] = self._add(func)
        # A constant is placed as the kernel reads it, packed; placing the node's own input would keep it twice.
        sources = {f"i{i}": name for i, name in enumerate(node.inputs)}
        refs = [self.constant(array) if array is not None else self.place(sources[name]) for name, array in operands]
        return refs, self.known[digest]

    def _generated(
        self, node: Node, kind: str, body: Graph, layouts: dict[str, Layout], constants: dict[str, Any],
        fill: float | None, lifted: Mapping[str, np.ndarray],
    ) -> tuple[list[Ref], str, str]:  # fmt: skip
        family, reasons = self._family(kind, body)
        if family is None:
            raise DlcError(f"node {node.origin}: target cpu has no kernel: {'; '.join(reasons)}")
        # A family that has slow forms says which and why.
        note = family.note(body) if hasattr(family, "note") else ""
        inputs = list(node.inputs)
        if family in (scatter, set_rows):
            data = updated_data(node)
            if data is not None and self.place(data) == self.place(node.output.name):
                body = family.in_place(body)
                inputs.remove(data)
            elif node.output.name in self.copied:
                note = f"copies the carried value: {self.copied[node.output.name]}"
        digest = _digest(body, layouts, node.attrs, constants)
        if digest not in self.known:
            assert node.body is not None
            halo_fill = {} if fill is None else {body.outputs[0]: fill}
            func = family.emit(
                self.prefix + node.body.name, body, layouts, self.isa, self._dims(body, layouts), halo_fill
            )
            self.known[digest] = self._add(func)
        refs = [self.place(name) for name in inputs] + [self.constant(array) for array in lifted.values()]
        return refs, self.known[digest], note

    @staticmethod
    def _family(kind: str, body: Graph) -> tuple[ModuleType | None, list[str]]:
        reasons = []
        for family in FAMILIES[kind]:
            reason = family.declines(body)
            if reason is None:
                return family, []
            reasons.append(reason)
        # Most families only say that the operator is another's.
        return None, [r for r in reasons if not r.startswith("a region of")] or reasons

    def _add(self, func: Any) -> str:
        symbol = str(func.attrs["global_symbol"])
        self.program.kernels[symbol] = func
        return symbol


def lower(module: Any, isa: Isa, prepare: Prepare = lambda _, module: module) -> Program:
    """Generate all kernels of `module` for one instruction set.

    Args:
        module: behind the target's passes.
        isa: the instruction set.
        prepare: runs the target's passes on a block of control flow.
    """
    from dlc.targets.cpu.lower_states import StatesLowering

    return StatesLowering(module, isa, prepare).run()
