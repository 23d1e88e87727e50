"""The VTA target: ``vta:q31`` (exact requantisation) or ``vta:original`` (the published instruction set: shifts).

Layers that the accelerator can run become one program for each connected part of the graph; the host's CPU runs the
rest. A program is for one image: the runtime repeats it over the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from dlc.errors import DlcError
from dlc.options import Options
from dlc.pipeline import Context, Pass
from dlc.targets.base import Build, Target, find_target
from dlc.targets.vta.config import Config, config_by_name

_DEFAULT = "q31"


class VtaTarget(Target):
    """The accelerator with the host that drives it."""

    name: ClassVar[str] = "vta"
    runtime: ClassVar[str] = "dlc.runtime.composite"

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def parse(cls, spec: str) -> VtaTarget:
        """``vta`` or ``vta:<configuration>``; DlcError for an unknown one."""
        return cls(config_by_name(spec.partition(":")[2] or _DEFAULT))

    @property
    def spec(self) -> str:
        """The full name, as recorded in the package."""
        return f"{self.name}:{self.config.name}"

    def identity(self) -> dict[str, Any]:
        """The host's, which runs the rest."""
        return {"host": find_target("cpu").identity()}

    def passes(self, options: Options) -> list[Pass]:
        """None of its own: it reads the IR behind the common passes."""
        return []

    def compile(self, module: Any, context: Context) -> Build:
        """Cut the graph between the accelerator and the host, and build both sides.

        Raises:
            DlcError: the model is quantised in an arithmetic that this configuration does not have.
        """
        from dlc import composite
        from dlc.ir.convert import view
        from dlc.targets.vta.array import Array
        from dlc.targets.vta.select import select

        self._check(context.options)
        graph = view(module)
        selection = select(graph, self.config)
        for node in graph.nodes:
            if node.output.name in selection.reasons:
                context.decline("vta", node.origin, f"runs on the host: {selection.reasons[node.output.name]}")
        covered = selection.covered
        array, host = Array(self.config), find_target("cpu")
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

    def describe(self) -> dict[str, Any]:
        """The accelerator is simulated, so it is everywhere."""
        return {
            "available": True,
            "description": "a simulated VTA: 256 int8 multiplications a cycle; q31 (exact) or original (shifts)",
        }
