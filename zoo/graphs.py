"""ONNX models put together node by node, for what no exporter writes: loops of our own, and plain operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

OPSET = 17
Weights = Mapping[str, np.ndarray]


class Graph:
    """Collects nodes and constants; a constant of one name is written once."""

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        """Begin an empty graph.

        Args:
            weights: what `weight` takes from.
            prefix: of the names of values, for a loop's body: they must differ from those outside.
        """
        self.weights, self.prefix = weights, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        """The name of a constant."""
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def integers(self, *values: int) -> str:
        """The name of a constant int64 vector."""
        return self.constant(f"integers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def weight(self, name: str) -> str:
        """The name of a weight as it was trained."""
        return self.constant(name, self.weights[name])

    def op(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """One node; returns its first output."""
        outputs = outputs or [f"{self.prefix}{kind.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, f"{kind}_{outputs[0]}", **attributes))
        return outputs[0]

    def split(self, x: str, parts: int, size: int) -> list[str]:
        """`x` in equal parts of a size along axis 1."""
        outputs = [f"{self.prefix}part_{len(self.nodes)}_{part}" for part in range(parts)]
        self.op("Split", [x, self.integers(*[size] * parts)], outputs, axis=1)
        return outputs

    def total(self, values: Sequence[str]) -> str:
        """The sum."""
        result = values[0]
        for value in values[1:]:
            result = self.op("Add", [result, value])
        return result

    def model(
        self, name: str, inputs: Sequence[Any], outputs: Sequence[Any], constants: Weights | None = None
    ) -> ModelProto:
        """The whole model, checked; `constants` are further ones, of a loop's body."""
        tensors = [numpy_helper.from_array(a, key) for key, a in {**self.constants, **(constants or {})}.items()]
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="dlc")
        onnx.checker.check_model(proto, full_check=True)
        return proto


def info(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """A described value."""
    return helper.make_tensor_value_info(name, kind, list(shape))
