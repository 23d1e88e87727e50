"""The tile pass of the CPU target: each contraction's schedule from the cost model, kept on its region."""

from __future__ import annotations

import json
from typing import Any

from dlc.hardware import Machine
from dlc.ir.convert import view
from dlc.ir.dims import Symbols
from dlc.pipeline import Context, Pass
from dlc.targets.cpu import attention_region
from dlc.targets.cpu.contraction_region import declines, packed_region
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.layouts import body_layouts, value_layouts
from dlc.targets.lowering import region_constants


def schedule_pass(isa: Isa, machine: Machine) -> Pass:
    """The pass for one instruction set and machine."""

    def run(module: Any, context: Context) -> Any:
        graph = Symbols().graph(view(module))
        layouts = value_layouts(graph)
        for node in graph.nodes:
            kind = node.attrs.get("dlc.kind")
            if node.body is None or kind not in ("contraction", attention_region.KIND):
                continue
            constants = region_constants(graph, node)
            reason = declines(node.body, constants) if kind == "contraction" else None
            if reason is None:
                region = packed_region(node.body, body_layouts(node, layouts), constants, isa)
                choice = json.dumps(region.choose(machine))
            else:
                choice = json.dumps({"unit": "plain", "note": reason})
            module[node.body.name] = module[node.body.name].with_attr("dlc.schedule", choice)
        return module

    return Pass("schedule", run)
