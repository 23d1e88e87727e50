"""The reference target, runtime's half: interprets the graph that the package holds. Imports no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, is_tensor
from dlc.ir.interpret import check_extents, interpret
from dlc.ir.serial import graph_from_json
from dlc.package import Package
from dlc.targets.base import Trace


class ReferenceExecutable:
    """A graph and its constants. Holds no state between calls, so threads share it freely."""

    def __init__(self, graph: Graph, package: Package) -> None:
        self.graph, self.package = graph, package
        self._names = [value.name for value in graph.inputs]
        values = graph.values()
        self._outputs = [values[name] for name in graph.outputs]

    def compute(self, inputs: list[Any], sizes: Mapping[str, int]) -> list[Any]:
        """Interpret the graph."""
        results = interpret(self.graph, dict(zip(self._names, inputs, strict=True)), sizes=sizes)
        for value, result in zip(self._outputs, results, strict=True):
            if is_tensor(value.dtype):
                check_extents(value, result, sizes)
        return results

    def clone(self) -> ReferenceExecutable:
        """Itself: there is no state to share."""
        return self

    def trace(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> Trace:
        """Every ONNX value that some operator made, with that operator's row, in execution order."""
        from dlc.explain import read

        explanation = read(self.package)
        # An ONNX node may have become several operators of one origin: the last of them made its value.
        last = {node.origin.value: node for node in self.graph.walk() if node.origin.value}
        seen: list[tuple[dict[str, Any], np.ndarray]] = []

        def observe(node: Node, result: np.ndarray) -> None:
            if last.get(node.origin.value) is node:
                row = {"node": str(node.origin), "value": node.origin.value, "op": node.op, "kernel": "numpy"}
                seen.append((row, explanation.real(node.origin.value, result)))

        interpret(self.graph, dict(zip(self._names, inputs, strict=True)), observe, sizes)
        yield from seen


def load(package: Package, threads: int) -> ReferenceExecutable:
    """Read the graph back.

    Raises:
        DlcError: the package's graph is not one, or `threads` is not 1.
    """
    if threads != 1:
        raise DlcError(f"target 'reference' runs on one thread, got threads={threads}")
    constants = package.constants("constants.safetensors")
    try:
        graph = graph_from_json(package.json("graph.json"), constants)
    except (KeyError, TypeError, AttributeError) as error:
        raise DlcError(f"{package.name}: member 'graph.json' is not a graph: {error!r}") from error
    return ReferenceExecutable(graph, package)
