"""Runs packages of several parts: interprets the outer graph, whose nodes call the parts or run on the host."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, is_tensor
from dlc.ir.interpret import RunPart, interpret
from dlc.ir.serial import graph_from_json
from dlc.package import Package
from dlc.runtime.execute import empty, execute
from dlc.targets.base import Executable, Trace


@dataclass(frozen=True)
class _Part:
    """A loaded part, and the names and dtypes of its outputs."""

    executable: Executable
    outputs: tuple[tuple[str, str], ...]

    def run(self, inputs: list[Any], sizes: Mapping[str, int]) -> list[Any]:
        # What the host made may be strided.
        return execute(self.executable, [_dense(a) for a in inputs], sizes, self._allocated)

    def _allocated(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        shapes = self.executable.output_shapes(sizes)
        return [empty(name, shape, dtype) for shape, (name, dtype) in zip(shapes, self.outputs, strict=True)]


def _dense(value: Any) -> Any:
    return np.require(value, requirements=["C", "A"]) if isinstance(value, np.ndarray | np.generic) else value


class CompositeExecutable:
    """A loaded model of several parts. Holds no state between calls, beyond what its parts hold."""

    def __init__(self, graph: Graph, parts: Mapping[str, _Part]) -> None:
        self.graph, self.parts = graph, parts
        self._names = [value.name for value in graph.inputs]

    def compute(self, inputs: list[Any], sizes: Mapping[str, int]) -> list[Any]:
        """Run the outer graph; see `dlc.targets.base.Executable`."""
        return self._interpret(inputs, sizes, lambda node, arrays, known: self._part(node).run(arrays, known))

    def _interpret(self, inputs: list[Any], sizes: Mapping[str, int], run_part: RunPart) -> list[Any]:
        return interpret(self.graph, dict(zip(self._names, inputs, strict=True)), None, sizes, run_part)

    def _part(self, node: Node) -> _Part:
        return self.parts[node.attrs["part"]]

    def clone(self) -> CompositeExecutable:
        """Another one, of clones of the parts."""
        twins = {name: _Part(part.executable.clone(), part.outputs) for name, part in self.parts.items()}
        return CompositeExecutable(self.graph, twins)

    def trace(self, inputs: list[Any], sizes: Mapping[str, int]) -> Trace:
        """What the parts outside control flow compute, kernel by kernel, as they dequantise it."""
        seen: list[tuple[dict[str, Any], np.ndarray]] = []
        outer = {node.attrs["part"] for node in self.graph.nodes if "part" in node.attrs}

        def run_part(node: Node, arrays: list[Any], known: Mapping[str, int]) -> list[Any]:
            part = self._part(node)
            follow = getattr(part.executable, "trace", None)
            if follow is not None and node.attrs["part"] in outer:
                seen.extend((row, array.copy()) for row, array in follow([_dense(a) for a in arrays], known))
            return part.run(arrays, known)

        self._interpret(inputs, sizes, run_part)
        yield from seen


def load(package: Package, threads: int) -> CompositeExecutable:
    """Load the outer graph and every part.

    Raises:
        DlcError: a part cannot be loaded on this machine, or the package's graph is not one.
    """
    parts = {}
    for name in package.manifest["build"]["parts"]:
        nested = package.nested(name)
        try:
            runtime = importlib.import_module(nested.manifest["runtime"])
        except ImportError as error:
            target = nested.manifest.get("target")
            raise DlcError(f"{package.name}: the runtime of target '{target}' is not installed: {error}") from error
        outputs = tuple((o["name"], o["dtype"] if is_tensor(o["dtype"]) else "") for o in nested.manifest["outputs"])
        parts[name] = _Part(runtime.load(nested, threads), outputs)
    constants = package.constants("constants.safetensors")
    try:
        graph = graph_from_json(package.json("graph.json"), constants)
    except (KeyError, TypeError, AttributeError) as error:
        raise DlcError(f"{package.name}: member 'graph.json' is not a graph: {error!r}") from error
    return CompositeExecutable(graph, parts)
