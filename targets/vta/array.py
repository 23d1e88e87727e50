"""The accelerator as a target of its own, for the parts of a graph that are all layers: `VtaTarget` cuts them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node
from dlc.pipeline import Context
from dlc.targets.base import Build
from dlc.targets.vta.config import Config
from dlc.targets.vta.configured import Configured
from dlc.targets.vta.program import ARRAY, LayerReport, Program, compile_layers
from dlc.targets.vta.select import select


@dataclass
class Total:
    """Cycles and multiplications of all programs of one compilation."""

    cycles: int = 0
    macs: int = 0

    def as_json(self, config: Config) -> dict[str, Any]:
        """For the manifest."""
        utilisation = round(self.macs / (ARRAY * max(self.cycles, 1)), 4)
        return {"config": config.name, "cycles": self.cycles, "macs": self.macs, "utilisation": utilisation}


class Array(Configured):
    """One part: all its nodes are layers of the accelerator."""

    runtime: ClassVar[str] = "dlc.targets.vta.runtime"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.total = Total()

    def build(self, module: Any, context: Context) -> Build:
        """The program of a part."""
        graph = view(module)
        layers = [match.layer for match in select(graph, self.config).matches.values()]
        program = compile_layers(layers, [v.name for v in graph.inputs], self.config)
        assert program.timing is not None
        macs = sum(report.macs for report in program.reports)
        self.total.cycles += program.timing.cycles
        self.total.macs += macs
        members = {"instructions.bin": program.code(), "memory.bin": b"".join(data for _, data in program.constants)}
        values = graph.values()
        manifest = {
            **program.as_json(),
            "arguments": [v.name for v in graph.inputs],
            "results": list(graph.outputs),
            "cycles": program.timing.cycles,
            "macs": macs,
            "busy": program.timing.busy,
        }
        rows = [_row(report, graph, values[report.output].dtype) for report in program.reports]
        return Build(members, manifest, [*rows, _summary(program, macs)])


def _row(report: LayerReport, graph: Graph, dtype: str) -> dict[str, Any]:
    node: Node = graph.producers()[report.output]
    return {
        "node": str(node.origin),
        "value": node.origin.value,
        "op": node.op,
        "precision": "int8",
        "kernel": f"vta {report.kind}",
        "tensor": report.output,
        "dtype": dtype,
        "tile": report.tiling,
        "cycles": report.cycles,
        "utilisation": round(report.utilisation, 3),
        "why_not_better": _why(report),
    }


def _why(report: LayerReport) -> str:
    """What keeps the array from the peak."""
    if not report.macs:
        return "it multiplies nothing"
    idle = report.cycles - report.gemm_cycles
    wasted = report.gemm_cycles - report.macs // ARRAY
    if report.cycles * ARRAY <= report.macs * 1.1:
        return ""
    if idle >= wasted:
        return f"{idle} cycles without a multiplication: memory, ALU, or the start and the end of the layer"
    return f"{wasted} cycles multiply padding: blocks have 16 channels"


def _summary(program: Program, macs: int) -> dict[str, Any]:
    assert program.timing is not None
    cycles = program.timing.cycles
    return {
        "node": "(the whole program)",
        "op": "program",
        "precision": "int8",
        "kernel": f"vta:{program.config.name}, one image",
        "cycles": cycles,
        "utilisation": round(macs / (ARRAY * cycles), 3),
    }
