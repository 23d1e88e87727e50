"""The VTA target: ``vta:q31`` (exact requantisation) or ``vta:original`` (the published instruction set: shifts).

Layers that the accelerator can run become one program for each connected part of the graph; the host's CPU runs the
rest. A program is for one image: the runtime repeats it over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from dlc import composite
from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node
from dlc.options import Options
from dlc.pipeline import Context, Pass
from dlc.targets.base import KERNEL, Build, Place, Target, find_target
from dlc.targets.vta.config import Config, config_by_name
from dlc.targets.vta.program import ARRAY, LayerReport, Program, compile_layers
from dlc.targets.vta.select import select

_DEFAULT = "q31"
_DRIVER = "cpu"  # the target of what the accelerator does not take


@dataclass
class _Total:
    """Cycles and multiplications of all programs of one compilation."""

    cycles: int = 0
    macs: int = 0

    def as_json(self, config: Config) -> dict[str, Any]:
        """For the manifest."""
        utilisation = round(self.macs / (ARRAY * max(self.cycles, 1)), 4)
        return {"config": config.name, "cycles": self.cycles, "macs": self.macs, "utilisation": utilisation}


class _Configured(Target):
    """What the accelerator with its host and the accelerator alone have in common: the name and the configuration."""

    name: ClassVar[str] = "vta"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def parse(cls, spec: str) -> Self:
        """``vta`` or ``vta:<configuration>``; DlcError for an unknown one."""
        return cls(config_by_name(spec.partition(":")[2] or _DEFAULT))

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return f"{self.name}:{self.config.name}"

    def passes(self, options: Options) -> list[Pass]:
        """None of its own: it reads the IR behind the common passes."""
        return []

    def describe(self) -> dict[str, Any]:
        """The accelerator is simulated, so it is everywhere."""
        return {
            "available": True,
            "description": "a simulated VTA: 256 int8 multiplications a cycle; q31 (exact) or original (shifts)",
        }


class VtaTarget(_Configured):
    """The accelerator with the host that drives it."""

    runtime: ClassVar[str] = "dlc.runtime.composite"

    def places(self, graph: Graph) -> dict[str, Place]:
        """``array`` for the nodes of the accelerator's layers, ``cpu`` for kernels of the CPU that drives it."""
        selection, found = select(graph, self.config), find_target(_DRIVER).places(graph)
        for name, place in found.items():
            if name in selection.covered:
                found[name] = Place("array")
            elif place.unit == KERNEL:
                found[name] = Place(_DRIVER, selection.reasons.get(name, ""))
        return found

    def compile(self, module: Any, context: Context) -> Build:
        """Cut the graph between the accelerator and the host, and build both sides.

        Raises:
            DlcError: the model is quantised in an arithmetic that this configuration does not have.
        """
        self._check(context.options)
        graph = view(module)
        selection = select(graph, self.config)
        for node in graph.nodes:
            if node.output.name in selection.reasons:
                context.decline("vta", node.origin, f"runs on the host: {selection.reasons[node.output.name]}")
        covered = selection.covered
        array, host = _Array(self.config), find_target(_DRIVER)
        built = composite.build(module, context, lambda node: array if node.output.name in covered else host)
        return replace(built, manifest={**built.manifest, "vta": array.total.as_json(self.config)})

    def _check(self, options: Options) -> None:
        known = ("fixed", "shift") if self.config.requantise else ("shift",)
        if options.quantize == "int8" and options.arithmetic not in known:
            wanted = " or ".join(f"--arithmetic {name}" for name in known)
            raise DlcError(f"target {self.spec} has no {options.arithmetic} arithmetic: compile with {wanted}")

    def build(self, module: Any, context: Context) -> Build:
        """The same as `compile`: there are no passes between."""
        return self.compile(module, context)


class _Array(_Configured):
    """One part: all its nodes are layers of the accelerator."""

    runtime: ClassVar[str] = "dlc.targets.vta.runtime"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.total = _Total()

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
