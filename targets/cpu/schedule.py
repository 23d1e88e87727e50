"""The tile pass of the CPU target: each contraction's schedule from the cost model, kept on its region."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dlc.hardware import Machine
from dlc.ir.convert import view
from dlc.ir.dims import Symbols, symbols
from dlc.ir.graph import Graph
from dlc.pipeline import Context, Pass
from dlc.targets.cpu import attention_region, region_cost
from dlc.targets.cpu.contraction_region import declines, packed_region
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.contract_cost import GUESS
from dlc.targets.cpu.layouts import body_layouts, value_layouts
from dlc.targets.layout import Layout
from dlc.targets.lowering import region_constants

_PREDICTED = ("window", "reduction", "pointwise")  # regions without multiply-adds; others depend on their data


def _prediction(body: Graph, layouts: Mapping[str, Layout], isa: Isa, machine: Machine) -> dict[str, Any]:
    """The predicted time of a region that has nothing to choose."""
    seconds = region_cost.predicted_seconds(body, layouts, isa, machine)
    found = symbols([d for value in body.values().values() for d in value.shape])
    return {"predicted_us": round(seconds * 1e6, 3), "predicted_for": ", ".join(f"{v.name}={GUESS}" for v in found)}


def schedule_pass(isa: Isa, machine: Machine) -> Pass:
    """The pass for one instruction set and machine."""

    def run(module: Any, context: Context) -> Any:
        graph = Symbols().graph(view(module))
        layouts = value_layouts(graph)
        for node in graph.nodes:
            kind = node.attrs.get("dlc.kind")
            if node.body is None:
                continue
            constants = region_constants(graph, node)
            inside = body_layouts(node, layouts)
            reason = declines(node.body, constants, isa) if kind == "contraction" else None
            choice: dict[str, Any] = {}
            if reason is not None:
                choice = {"unit": "plain", "note": reason}
            elif kind in ("contraction", attention_region.KIND):
                choice = packed_region(node.body, inside, constants, isa).choose(machine)
            elif kind in _PREDICTED:
                choice = _prediction(node.body, inside, isa, machine)
            module[node.body.name] = module[node.body.name].with_attr("dlc.schedule", json.dumps(choice))
        return module

    return Pass("schedule", run)
