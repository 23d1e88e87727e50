"""The CPU target: ``cpu`` (the best instruction set of this machine) or ``cpu:<level>`` (``cpu:avx2``).

``cpu:portable`` holds several levels in one package.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dlc.hardware import measured_machine, this_machine
from dlc.ir.graph import Node
from dlc.ir.ops.host import IF, LOOP
from dlc.options import Options
from dlc.package import safetensors_bytes
from dlc.pipeline import Context, Pass, run_passes
from dlc.targets.base import Build, Target, Variant
from dlc.targets.cpu.isa import PORTABLE, Isa, isa_by_name, levels_of

if TYPE_CHECKING:
    from dlc.targets.program import Call, Program

# Rare operators: the host computes them in numpy.
NO_KERNEL = frozenset({"dlc.sample", "dlc.random_bits", "dlc.determinant", "dlc.bitcast"})

PORTABLE_NAME = "portable"


def best_level() -> Isa:
    """The best instruction set that this machine has and that its operating system lets a process use."""
    return levels_of(this_machine())[0]


class CpuTarget(Target):
    """Generated kernels for one CPU core, compiled ahead of time by LLVM."""

    name: ClassVar[str] = "cpu"
    runtime: ClassVar[str] = "dlc.targets.cpu.runtime"
    groups_rows: ClassVar[bool] = True
    block_weights: ClassVar[bool] = True
    short_weights: ClassVar[bool] = True

    def __init__(self, isa: Isa, spec: str) -> None:
        self.isa, self._spec = isa, spec

    @classmethod
    def parse(cls, spec: str) -> CpuTarget:
        """``cpu``, ``cpu:<level>`` or ``cpu:portable``; DlcError for an unknown level."""
        _, _, level = spec.partition(":")
        if level == PORTABLE_NAME:
            return PortableTarget(PORTABLE[-1], spec)
        return cls(isa_by_name(level) if level else best_level(), spec)

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return self._spec

    def identity(self) -> dict[str, Any]:
        """The level, which the operating system's permission decides too; the machine itself is in every key."""
        return {"isa": self.isa.name}

    def declines(self, node: Node) -> str | None:
        """The operators that have no kernel, because they are rare, and control flow that cannot be native."""
        if node.op in (LOOP, IF):
            from dlc.targets.cpu import lower_control

            return lower_control.declines(node, self)
        if node.op in NO_KERNEL:
            return f"target cpu has no kernel for {node.op}"
        return super().declines(node)

    def passes(self, options: Options) -> list[Pass]:
        """Loops' states, types, layouts, fusion, halos, tile sizes."""
        from dlc.passes.legalize import matrices, widen
        from dlc.passes.partition import regions
        from dlc.passes.specialize import ring_buffers, row_updates
        from dlc.passes.tile import channels_last, halo, stage_inputs, stage_outputs
        from dlc.targets.cpu import attention_region
        from dlc.targets.cpu.contraction_region import unfit_for_pairs
        from dlc.targets.cpu.schedule import schedule_pass
        from dlc.targets.cpu.short_activations import short_activations_pass

        return [
            row_updates.PASS,
            ring_buffers.PASS,
            matrices.PASS,
            widen.widen_pass(unfit_for_pairs if self.isa.bfloat16 else None),
            short_activations_pass(self.isa),
            channels_last.PASS,
            stage_outputs.PASS,
            stage_inputs.PASS,
            regions.regions_pass(attention_region.unfit),
            halo.PASS,
            schedule_pass(self.isa, measured_machine()),
        ]

    def build(self, module: Any, context: Context) -> Build:
        """Generate, plan and compile."""
        from dlc.targets.cpu.link import Constants, compile_program, is_shared, size_expressions
        from dlc.targets.cpu.lower import lower
        from dlc.targets.plan import plan

        def prepare(name: str, block: Any) -> Any:
            # Its stages are dumped below its name: they are not those of the graph around it.
            inside = replace(context, part=f"{context.part}/{name}".strip("/"))
            return run_passes(block, self.passes(context.options), inside)

        program = lower(module, self.isa, prepare)
        memory = plan(program)
        constants = Constants(program.constants)
        objects = compile_program(program, memory, constants, self.isa)
        chunks = {
            f"constants{i}.safetensors": safetensors_bytes({"constants": c}) for i, c in enumerate(constants.chunks)
        }
        sizes = size_expressions(program, memory)
        manifest = {
            "isa": self.isa.name,
            "objects": list(objects),
            "constants": list(chunks),
            "symbols": [str(v.name) for v in program.symbols],
            "sizes": [int(s) for s in sizes] if not program.symbols else None,
            "calls": _calls_json(program),
            "shared": is_shared(program),
            "updated": sorted(program.updated.items()),
        }
        members = {**objects, **chunks}
        variant = Variant(self.isa.name, self.isa.arch or this_machine().arch, tuple(sorted(self.isa.requires)))
        return Build(members, manifest, program.rows(), (variant,))

    def describe(self) -> dict[str, Any]:
        """This machine's processor, caches and instruction sets."""
        machine = this_machine()
        levels = [isa.name for isa in levels_of(machine)]
        found = {k: v for k, v in asdict(machine).items() if k != "features"}
        portable = [isa.name for isa in PORTABLE]
        text = f"{machine.model}: {', '.join(levels)}"
        return {"available": True, "description": text, **found, "levels": levels, PORTABLE_NAME: portable}


class PortableTarget(CpuTarget):
    """Code of several levels in one package; passes that are asked for without a level are those of the least."""

    def levels(self) -> dict[str, Target]:
        """See `Target.levels`."""
        return {isa.name: CpuTarget(isa, f"{self.name}:{isa.name}") for isa in PORTABLE}

    def identity(self) -> dict[str, Any]:
        """All levels, whatever this machine has."""
        return {"levels": list(self.levels())}


def _calls_json(program: Program) -> list[dict[str, Any]]:
    """Where each call's output lies, and which row of the explanation is its own, for tracing."""
    from dlc.targets.program import Call, rows_of

    found, row = [], 0
    for call in program.calls:
        found.append(
            {"row": row, **(_call_json(call) if isinstance(call, Call) else {"kind": "control flow", "shape": []})}
        )
        row += len(rows_of(call))
    return found


def _call_json(call: Call) -> dict[str, Any]:
    return {
        "kind": call.output.kind,
        "index": call.output.index,
        "dtype": call.value.dtype,
        "shape": [str(d) if not isinstance(d, int) else d for d in call.value.shape],
        "halo": [list(pair) for pair in call.layout.halo],
    }
