"""The VTA target: ``vta:q31`` (exact requantisation) or ``vta:original`` (the published instruction set: shifts).

Layers that the accelerator can run become one program for each connected part of the graph; the host's CPU runs the
rest. A program is for one image: the runtime repeats it over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from dlc.errors import DlcError
from dlc.options import Options
from dlc.pipeline import Context
from dlc.targets.base import KERNEL, Build, Place, Target, find_target
from dlc.targets.vta.configured import Configured

if TYPE_CHECKING:
    from dlc.ir.graph import Graph, Node

_DRIVER = "cpu"  # the target of what the accelerator does not take


class VtaTarget(Configured):
    """The accelerator with the host that drives it."""

    runtime: ClassVar[str] = "dlc.runtime.composite"

    def identity(self) -> dict[str, Any]:
        """The host's, which runs the rest."""
        return {"host": find_target(_DRIVER).identity()}

    def places(self, graph: Graph) -> dict[str, Place]:
        """``array`` for the nodes of the accelerator's layers, ``cpu`` for kernels of the CPU that drives it."""
        from dlc.targets.vta.select import select

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
        from dlc import composite
        from dlc.targets.vta.array import Array
        from dlc.targets.vta.select import select

        self._check(context.options)
        array, host = Array(self.config), find_target(_DRIVER)

        def targets_of(graph: Graph) -> Callable[[Node], Target]:
            selection = select(graph, self.config)
            for node in graph.nodes:
                if node.output.name in selection.reasons:
                    context.decline("vta", node.origin, f"runs on the host: {selection.reasons[node.output.name]}")
            return lambda node: array if node.output.name in selection.covered else host

        built = composite.build(module, context, targets_of)
        return replace(built, manifest={**built.manifest, "vta": array.total.as_json(self.config)})

    def _check(self, options: Options) -> None:
        known = ("fixed", "shift") if self.config.requantise else ("shift",)
        if options.quantize == "int8" and options.arithmetic not in known:
            wanted = " or ".join(f"--arithmetic {name}" for name in known)
            raise DlcError(f"target {self.spec} has no {options.arithmetic} arithmetic: compile with {wanted}")

    def build(self, module: Any, context: Context) -> Build:
        """The same as `compile`: there are no passes between."""
        return self.compile(module, context)
