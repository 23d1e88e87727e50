"""The reference target, compiler's half: the package holds the graph itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dlc.errors import DlcError
from dlc.ir.ops.host import ONNX
from dlc.ir.serial import graph_to_json
from dlc.runtime.tensors import safetensors_bytes
from dlc.targets.base import HOST, Build, Place, Target

if TYPE_CHECKING:
    from dlc.ir.graph import Graph
    from dlc.options import Options
    from dlc.pipeline import Context, Pass


class ReferenceTarget(Target):
    """Runs the graph in numpy, operator by operator."""

    name = "reference"
    runtime = "dlc.targets.reference.runtime"
    runs_host = True
    groups_rows = True
    block_weights = True
    short_weights = True

    @classmethod
    def parse(cls, spec: str) -> ReferenceTarget:
        """``reference`` takes no suffix."""
        if spec != cls.name:
            raise DlcError(f"unknown target '{spec}': reference takes no suffix")
        return cls()

    def passes(self, options: Options) -> list[Pass]:
        """None: the interpreter runs the IR at any stage."""
        return []

    def places(self, graph: Graph) -> dict[str, Place]:
        """Every operator is its meaning in numpy, or onnx's reference implementation."""
        reasons = {n.output.name: self.declines(n) if n.op == ONNX else None for n in graph.nodes}
        return {name: Place("numpy") if why is None else Place(HOST, why) for name, why in reasons.items()}

    def build(self, module: Any, context: Context) -> Build:
        """The graph as JSON and its constants; there is no kernel to explain but the operators themselves."""
        from dlc.ir.convert import view

        graph = view(module)
        record, constants = graph_to_json(graph)
        members = {
            "graph.json": json.dumps(record, sort_keys=True, separators=(",", ":")).encode(),
            "constants.safetensors": safetensors_bytes(constants),
        }
        return Build(members, {}, explain(graph))

    def describe(self) -> dict[str, Any]:
        """The reference runs wherever numpy does."""
        return {"available": True, "description": "numpy, operator by operator: the oracle of all other targets"}


def explain(graph: Graph) -> list[dict[str, Any]]:
    """One row an operator, in execution order."""
    return [
        {
            "node": str(node.origin),
            "value": node.origin.value,
            "op": node.op,
            "precision": node.outputs[0].dtype,
            "kernel": "numpy",
            "why_not_better": "the reference is slow on purpose",
        }
        for node in graph.nodes
    ]
