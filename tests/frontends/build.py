"""Short forms for building ONNX models in tests, and for running them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.graph import Graph
from dlc.ir.interpret import interpret

FLOAT = TensorProto.FLOAT
node = helper.make_node


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Any],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    **options: Any,
) -> onnx.ModelProto:
    """A model; an input is a shape of floats, or (element type, shape)."""
    values = []
    for name, shape in inputs.items():
        kind, dims = shape if isinstance(shape, tuple) else (FLOAT, shape)
        values.append(helper.make_tensor_value_info(name, kind, dims))
    graph = helper.make_graph(
        nodes,
        "g",
        values,
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    for value in graph.output:
        value.type.tensor_type.elem_type = FLOAT
        value.type.tensor_type.shape.SetInParent()  # the checker wants the field, and does not look inside
    imports = [helper.make_opsetid("", opset), *options.pop("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=options.pop("ir_version", 10), **options)


def graph_of(proto: onnx.ModelProto, **shapes: Any) -> Graph:
    """The imported graph."""
    return view(import_model(proto, shapes or None))


def ops(graph: Graph) -> list[str]:
    """The operators in order, without ``relax.``."""
    return [n.op.removeprefix("relax.") for n in graph.nodes]


def run(graph: Graph, *arrays: np.ndarray) -> list[np.ndarray]:
    """The outputs for inputs in order."""
    return interpret(graph, {v.name: a for v, a in zip(graph.inputs, arrays, strict=True)})
