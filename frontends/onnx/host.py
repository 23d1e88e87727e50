"""Nodes that the host runs: as a model of one node, inside the package (see `dlc.ir.ops.host_import`).

They are standard operators on what the IR has no values for (strings, sequences, optional values), or whose parameters
are known only when running, or that nobody needs fast. Their result types come from ONNX's own inference.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator, ops
from onnx.reference.ops import aionnx_preview_training, aionnxml

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.nodes import subgraphs
from dlc.frontends.onnx.symbols import Symbols
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor, object_tensor, type_proto
from dlc.ir.ops.host import ONNX

_LOADERS: dict[str, Callable[..., Any]] = {
    "": ops.load_op,
    "ai.onnx.ml": aionnxml.load_op,
    "ai.onnx.preview.training": aionnx_preview_training.load_op,
}
_SMALL = 1024  # constants up to this size help the inference; larger ones are never shapes
Find = Callable[[str], Tensor]


@dataclass(frozen=True)
class Surroundings:
    """What a one-node model takes over from the model around it; and whether the importer can take such nodes."""

    opsets: Mapping[str, int]
    functions: Sequence[onnx.FunctionProto]
    ir_version: int
    imported: bool


def runs_on_host(op_type: str, domain: str, version: int) -> bool:
    """Whether onnx's reference implementation knows the operator."""
    if domain not in _LOADERS or not onnx.defs.has(op_type, version, domain):
        return False
    try:
        _LOADERS[domain](domain, op_type, version)
    except Exception:  # it raises several types, some of its own
        return False
    return True


def host_call(c: Context, inputs: Sequence[Tensor | None], find: Find, around: Surroundings, reason: str) -> list[Any]:
    """The outputs of `c`'s node, left to the host; None for those that it does not name.

    Raises:
        ConversionError: the reference implementation does not know the operator, or its types do not fit.
    """
    node = c.node.proto
    version = around.opsets.get(c.node.domain, 1)
    # What can be imported at times will be when it runs; onnx's inference needs to know it all the same.
    imported = around.imported and onnx.defs.has(node.op_type, version, c.node.domain)
    if not imported and not runs_on_host(node.op_type, c.node.domain, version) and not around.functions:
        raise ConversionError(reason)
    operands = {n: t for n, t in zip(node.input, inputs, strict=True) if n and t is not None}
    operands |= {name: find(name) for name in _free_names(node) if name not in operands}
    passed = {name: t for name, t in operands.items() if t.literal is None}
    model = _model(node, {name: type_proto(t) for name, t in passed.items()}, around)
    for name, tensor in operands.items():
        if tensor.literal is not None:
            model.graph.initializer.add().CopyFrom(tensor.literal)
            model.graph.initializer[-1].name = name
    types = _infer(model, passed, c.symbols)
    if not imported:
        ReferenceEvaluator(model)  # says now that it lacks something, not when running
    data = base64.b64encode(model.SerializeToString(deterministic=True)).decode()
    label = c.onnx_node or c.node.name or next((name for name in node.output if name), "")
    attrs = {"model": data, "op_type": node.op_type, "node": label, "reason": reason}
    results = iter(c.results(ONNX, list(passed.values()), attrs, types))
    return [next(results) if name else None for name in node.output]


def _model(node: onnx.NodeProto, inputs: Mapping[str, onnx.TypeProto], around: Surroundings) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="host", node=[node])
    for name, proto in inputs.items():
        graph.input.add(name=name, type=proto)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in around.opsets.items()]
    # A function, or a graph in an attribute, may call any of the model's functions; an operator calls none.
    calls = any(True for _ in subgraphs(node))
    calls = calls or any((f.domain, f.name) == (node.domain, node.op_type) for f in around.functions)
    functions = list(around.functions) if calls else []
    return onnx.ModelProto(ir_version=around.ir_version, graph=graph, opset_import=opsets, functions=functions)


# --- the names that subgraphs read from around the node ------------------------------------------------------------


def _free_names(node: onnx.NodeProto) -> list[str]:
    found: dict[str, None] = {}
    for _, graph in subgraphs(node):
        found |= dict.fromkeys(_free_in_graph(graph))
    return list(found)


def _free_in_graph(graph: onnx.GraphProto) -> Iterable[str]:
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        yield from (name for name in (*node.input, *_free_names(node)) if name and name not in known)
        known |= set(node.output)
    yield from (v.name for v in graph.output if v.name not in known)


# --- types -----------------------------------------------------------------------------------------------------------


def _infer(model: onnx.ModelProto, passed: Mapping[str, Tensor], symbols: Symbols) -> list[Tensor]:
    """The types of the named outputs."""
    known = onnx.ModelProto()
    known.CopyFrom(model)
    _correct(known.graph.node[0])
    for name, tensor in passed.items():
        if tensor.value is not None and tensor.value.size <= _SMALL:
            known.graph.initializer.append(numpy_helper.from_array(tensor.value, name))
    try:
        inferred = onnx.shape_inference.infer_shapes(known, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConversionError(lines[-1] if lines else type(error).__name__) from error
    dims = {str(d): d for t in passed.values() for d in t.shape}
    return [_tensor(value, dims, symbols) for value in inferred.graph.output]


def _correct(node: onnx.NodeProto) -> None:
    """Take away what onnx's inference gets wrong.

    It adds a ConvTranspose's output_padding to the extents that SAME padding fixes at input times stride.
    """
    given = {a.name: a for a in node.attribute}
    if node.op_type == "ConvTranspose" and "auto_pad" in given and given["auto_pad"].s.startswith(b"SAME"):
        kept = [a for name, a in given.items() if name != "output_padding"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _tensor(value: onnx.ValueInfoProto, dims: dict[str, Dim], symbols: Symbols) -> Tensor:
    proto = value.type
    if proto.WhichOneof("value") is None:
        raise HostError(f"the type of '{value.name}' is not known")
    tensor = proto.tensor_type
    if proto.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return object_tensor(proto)
    if tensor.elem_type == onnx.TensorProto.STRING:
        return object_tensor(proto)
    shape = []
    for index, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value"):
            shape.append(int(dim.dim_value))
            continue
        text = dim.dim_param or f"{value.name}_{index}"
        if text not in dims or not dim.dim_param:
            dims[text] = symbols.fresh(text, least=0)
        shape.append(dims[text])
    return Tensor(tuple(shape), str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
