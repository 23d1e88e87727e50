"""Operators that are graphs: model-local functions, and the bodies by which ONNX defines some of its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from dlc.frontends.onnx.context import Context, NodeView
from dlc.frontends.onnx.host import runs_on_host
from dlc.frontends.onnx.nodes import domain_of, opsets_of, subgraphs
from dlc.frontends.onnx.registry import lookup
from dlc.frontends.onnx.signature import schema_of
from dlc.frontends.onnx.tensor import Tensor, type_proto

Matcher = Callable[[Context, onnx.FunctionProto, Sequence["Tensor | None"]], "Sequence[Tensor | None] | None"]

FUNCTION_MATCHERS: dict[tuple[str, str], Matcher] = {}
"""By (domain, name): converters of known model-local functions. One returns None to have the body inlined instead; it
must compare the body with the one it knows, because anybody may use the name."""

FunctionKey = tuple[str, str, str]


def local_functions(model: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    """The model's own functions by domain, name and overload."""
    return {(domain_of(f.domain), f.name, f.overload): f for f in model.functions}


def has_body(op_type: str, version: int, domain: str) -> bool:
    """Whether ONNX defines the operator by a function body."""
    schema = schema_of(op_type, version, domain)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def schema_body(node: NodeView, version: int, inputs: Sequence[Tensor | None]) -> onnx.FunctionProto | None:
    """The body by which ONNX defines an operator, for a call with these inputs; None where there is none."""
    schema = schema_of(node.op_type, version, node.domain)
    if schema is None:
        return None
    plain = [v for v in schema.function_opset_versions if v <= version]
    dependent = [v for v in schema.context_dependent_function_opset_versions if v <= version]
    if plain:
        body = onnx.FunctionProto()
        found = schema.get_function_with_opset_version(max(plain))
        body.ParseFromString(found if isinstance(found, bytes) else found.SerializeToString())
        return body
    if not dependent:
        return None
    types = [(onnx.TypeProto() if t is None else type_proto(t)).SerializeToString() for t in inputs]
    text = schema.get_context_dependent_function_with_opset_version(
        max(dependent), node.proto.SerializeToString(), types
    )
    body = onnx.FunctionProto()
    body.ParseFromString(text)
    return body


def schema_defaults(op_type: str, version: int, domain: str) -> dict[str, onnx.AttributeProto]:
    """The default values of an operator's attributes: a body refers to attributes that the node leaves out."""
    schema = schema_of(op_type, version, domain)
    return {} if schema is None else {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}


@dataclass
class Inventory:
    """The nodes of a model by (domain, operator), those of branches, loop bodies and local functions included.

    Attributes:
        nodes: how many there are; the nodes of a function count once, however often it is called.
        unsupported: the labels of those that cannot be converted.
    """

    nodes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unsupported: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def text(self) -> str:
        """The unsupported ones: operator, domain, node names; empty when there are none."""
        parts = []
        for (domain, op_type), names in sorted(self.unsupported.items()):
            where = ", ".join(f"'{n}'" for n in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            parts.append(f"{op_type} of domain '{domain or 'ai.onnx'}' in {where}")
        return "; ".join(parts)


@dataclass
class _Scan:
    functions: Mapping[FunctionKey, onnx.FunctionProto]
    found: Inventory
    seen: set[FunctionKey]

    def nodes(self, nodes: Iterable[onnx.NodeProto], opsets: Mapping[str, int], prefix: str) -> None:
        for node in nodes:
            domain = domain_of(node.domain)
            label = prefix + (node.name or next((o for o in node.output if o), ""))
            self.found.nodes[domain, node.op_type] += 1
            for name, graph in subgraphs(node):
                self.nodes(graph.node, opsets, f"{label}/{name}/")
            key = (domain, node.op_type, node.overload)
            if key in self.functions:
                if key not in self.seen:
                    self.seen.add(key)
                    body = self.functions[key]
                    self.nodes(body.node, opsets_of(body.opset_import) or opsets, f"{label}/")
                continue
            version = opsets.get(domain, 1)
            if not is_supported(domain, node.op_type, version):
                self.found.unsupported.setdefault((domain, node.op_type), []).append(label)


def is_supported(domain: str, op_type: str, version: int) -> bool:
    """Whether something takes an operator at an opset version: a converter, its body in ONNX, or the host."""
    known = lookup(domain, op_type, version) is not None or has_body(op_type, version, domain)
    return known or runs_on_host(op_type, domain, version)


def inventory(model: onnx.ModelProto) -> Inventory:
    """What nodes a model has, and which of them cannot be converted."""
    scan = _Scan(local_functions(model), Inventory(), set())
    scan.nodes(model.graph.node, opsets_of(model.opset_import), "")
    return scan.found
