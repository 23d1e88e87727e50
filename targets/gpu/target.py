"""The GPU target: ``gpu:opencl`` (also ``gpu``) or ``gpu:cuda,<arch>`` such as ``gpu:cuda,sm_80``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, is_tensor
from dlc.ir.serial import extent_text
from dlc.options import Options
from dlc.package import safetensors_bytes
from dlc.pipeline import Context, Pass
from dlc.targets.base import KERNEL, NOWHERE, Build, Place, Target
from dlc.targets.gpu.nvcc import compile_cuda, nvcc_version

if TYPE_CHECKING:
    from dlc.targets.plan import Plan
    from dlc.targets.program import Call, Program, Ref

_ARCH = re.compile(r"sm_\d+[a-z]?")


class GpuTarget(Target):
    """Scheduled kernels as OpenCL C text, or compiled by nvcc.

    Attributes:
        arch: CUDA's name of the architecture; empty for OpenCL.
    """

    name: ClassVar[str] = "gpu"
    runtime: ClassVar[str] = "dlc.targets.gpu.runtime"

    def __init__(self, arch: str = "") -> None:
        self.arch = arch

    @classmethod
    def parse(cls, spec: str) -> GpuTarget:
        """``gpu``, ``gpu:opencl`` or ``gpu:cuda,<arch>``; DlcError for anything else."""
        _, _, suffix = spec.partition(":")
        language, _, arch = suffix.partition(",")
        if suffix in ("", "opencl"):
            return cls()
        if language == "cuda" and _ARCH.fullmatch(arch):
            return cls(arch)
        raise DlcError(f"unknown target '{spec}': gpu takes opencl or cuda,<arch>, such as gpu:cuda,sm_80")

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return f"gpu:cuda,{self.arch}" if self.arch else "gpu:opencl"

    def identity(self) -> dict[str, Any]:
        """The version of nvcc, where it is asked."""
        return {"nvcc": nvcc_version() if self.arch else None}

    def declines(self, node: Node) -> str | None:
        """The operators that have no kernel, because they are rare."""
        from dlc.targets.gpu.lower import no_kernel

        return super().declines(node) or no_kernel(node)

    def places(self, graph: Graph) -> dict[str, Place]:
        """As of any target; tensors of types that OpenCL C and CUDA C lack stop a compilation."""
        from dlc.targets.gpu.source import UNSUPPORTED, has_type

        values, found = graph.values(), super().places(graph)
        for node in graph.nodes:
            types = [values[name].dtype for name in (*node.inputs, node.output.name)]
            lacking = next((t for t in types if is_tensor(t) and not has_type(t)), None)
            if lacking is not None and found[node.output.name].unit == KERNEL:
                found[node.output.name] = Place(NOWHERE, UNSUPPORTED.format(lacking))
        return found

    def passes(self, options: Options) -> list[Pass]:
        """Layouts and fusion; padding is a condition of the kernels' loads, so there are no halos."""
        from dlc.passes.partition import regions
        from dlc.passes.tile import channels_last, stage_outputs

        return [channels_last.PASS, stage_outputs.PASS, regions.PASS]

    def build(self, module: Any, context: Context) -> Build:
        """Schedule, write, plan; for CUDA also compile."""
        from dlc.targets.gpu.lower import lower
        from dlc.targets.gpu.source import CUDA_PRELUDE, OPENCL_PRELUDE
        from dlc.targets.plan import plan

        program = lower(module)
        memory = plan(program)
        kernels = "\n".join(kernel.text(symbol) for symbol, kernel in program.kernels.items())
        members = {"constants.safetensors": safetensors_bytes({f"c{i}": a for i, a in enumerate(program.constants)})}
        rows = program.rows()
        if self.arch:
            text = f"{CUDA_PRELUDE}\n{kernels}"
            cubin, ptx, resources = compile_cuda(text, self.arch)
            members |= {"kernels.cu": text.encode(), "kernels.cubin": cubin, "kernels.ptx": ptx}
            for row in rows:
                used = resources[row["symbol"]]
                row |= {"registers": used.registers, "shared_bytes": used.shared, "spill_bytes": used.spills}
        else:
            members["kernels.cl"] = f"{OPENCL_PRELUDE}\n{kernels}".encode()
        manifest = {"language": "cuda" if self.arch else "opencl", **_program_json(program, memory)}
        return Build(members, manifest, rows)

    def describe(self) -> dict[str, Any]:
        """The OpenCL devices, the CUDA devices and the nvcc of this machine."""
        from dlc.targets.gpu.cuda import cuda_devices
        from dlc.targets.gpu.opencl import opencl_devices

        devices, no_opencl = opencl_devices()
        cuda, no_cuda = cuda_devices()
        version = nvcc_version()
        opencl = [f"{device.name.strip()} ({device.platform.name.strip()})" for device in devices]
        compiler = f"nvcc {version}" if version else "no nvcc"
        parts = [f"OpenCL: {', '.join(opencl) or no_opencl}", f"CUDA: {', '.join(cuda) or no_cuda}, {compiler}"]
        return {"available": bool(opencl or cuda or version), "description": "; ".join(parts),
                "devices": [*opencl, *cuda], "nvcc": version or "none"}  # fmt: skip


def _program_json(program: Program, memory: Plan) -> dict[str, Any]:
    """What the runtime reads: slots of the workspace, and the launches in order."""
    from dlc.targets.program import Call

    slots: dict[str, int] = {}
    sizes: list[list[int | str]] = []
    slot_of: dict[str, int] = {}
    for name, offset in memory.offset_of.items():
        # Values of one slot have one offset in the plan.
        slot_of[name] = slots.setdefault(str(extent_text(offset)), len(slots))
        if slot_of[name] == len(sizes):
            sizes.append([])
        sizes[slot_of[name]].append(extent_text(program.buffers[name]))

    def place(ref: Ref) -> list[Any]:
        return [ref.kind, slot_of[ref.name] if ref.kind == "workspace" else ref.index]

    def launch(call: Call) -> dict[str, Any]:
        kernel = program.kernels[call.symbol]
        return {
            "symbol": call.symbol,
            "operands": [place(ref) for ref in call.inputs],
            "output": place(call.output),
            "dims": list(call.dims),
            "grid": [axis.as_json() for axis in kernel.grid],
            "threads": kernel.threads,
            "dtype": call.value.dtype,
            "shape": [extent_text(d) for d in call.value.shape],
        }

    return {
        "constants": len(program.constants),
        "slots": sizes,
        "calls": [launch(c) for c in program.calls if isinstance(c, Call)],
    }
