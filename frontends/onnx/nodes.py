"""ONNX protos as plain Python: attributes, element types, normalised domains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, numpy_helper

from dlc.frontends.onnx.context import NodeView
from dlc.frontends.onnx.tensor import ConversionError, HostError

_FORMS = {
    AttributeProto.FLOAT: lambda a: float(a.f),
    AttributeProto.INT: lambda a: int(a.i),
    AttributeProto.STRING: lambda a: a.s.decode("utf-8", "replace"),
    AttributeProto.TENSOR: lambda a: a.t if a.t.data_type == onnx.TensorProto.STRING else tensor_array(a.t),
    AttributeProto.GRAPH: lambda a: a.g,
    AttributeProto.FLOATS: lambda a: [float(v) for v in a.floats],
    AttributeProto.INTS: lambda a: [int(v) for v in a.ints],
    AttributeProto.STRINGS: lambda a: [v.decode("utf-8", "replace") for v in a.strings],
    AttributeProto.TENSORS: lambda a: [tensor_array(t) for t in a.tensors],
    AttributeProto.GRAPHS: lambda a: list(a.graphs),
    AttributeProto.TYPE_PROTO: lambda a: a.tp,
    AttributeProto.SPARSE_TENSOR: lambda a: a.sparse_tensor,
}


def domain_of(domain: str) -> str:
    """The domain with its one alias resolved."""
    return "" if domain == "ai.onnx" else domain


def opsets_of(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Opset versions by domain."""
    return {domain_of(entry.domain): int(entry.version) for entry in imports}


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs among a node's attributes, the branches and bodies of control flow, by the attributes' names."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def element_type(elem_type: int) -> str:
    """numpy's name of an ONNX element type; ConversionError for those that tensors here cannot have."""
    if elem_type == onnx.TensorProto.STRING:
        raise HostError("tensors of strings are nothing for a kernel")
    try:
        name = str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except Exception as error:
        raise ConversionError(f"element type {elem_type} is unknown") from error
    if name.startswith("complex"):
        raise HostError(f"tensors of {name} are nothing for a kernel")
    return name


def tensor_array(proto: onnx.TensorProto) -> np.ndarray:
    """The content of a tensor proto."""
    element_type(proto.data_type)
    try:
        return np.asarray(numpy_helper.to_array(proto))
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"tensor '{proto.name}' cannot be read: {' '.join(str(error).split())}") from error


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """An attribute in plain Python."""
    form = _FORMS.get(attribute.type)
    if form is None:
        raise ConversionError(f"attribute '{attribute.name}' has a type that is not supported")
    return form(attribute)


def node_view(node: onnx.NodeProto, bound: Mapping[str, onnx.AttributeProto], prefix: str) -> tuple[NodeView, Any]:
    """A node in plain Python, with the same node as a proto in which references to `bound` are resolved.

    `bound` holds the attributes of the function call that the node is inside of; an attribute that refers to one that
    the call did not give is absent, so that the operator's own default counts.
    """
    if any(a.ref_attr_name for a in node.attribute):
        resolved = onnx.NodeProto()
        resolved.CopyFrom(node)
        del resolved.attribute[:]
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                resolved.attribute.append(attribute)
            elif attribute.ref_attr_name in bound:
                copy = resolved.attribute.add()
                copy.CopyFrom(bound[attribute.ref_attr_name])
                copy.name = attribute.name
        node = resolved
    name = f"{prefix}{node.name}" if node.name or not prefix else f"{prefix}{next(iter(node.output), '')}"
    view = NodeView(node.op_type, domain_of(node.domain), name, tuple(node.input), tuple(node.output), {}, node)
    return view, node
