"""From an ONNX graph to Relax: walks the nodes, hands each to its converter, then writes what the outputs need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from dlc.errors import DlcError
from dlc.frontends.onnx.context import Context, NodeView
from dlc.frontends.onnx.functions import (
    FUNCTION_MATCHERS,
    has_body,
    local_functions,
    schema_body,
    schema_defaults,
)
from dlc.frontends.onnx.host import Surroundings, host_call
from dlc.frontends.onnx.inputs import GraphInputs, Ranges, Shapes
from dlc.frontends.onnx.load import Loaded
from dlc.frontends.onnx.nodes import attribute_value, node_view, opsets_of, tensor_array
from dlc.frontends.onnx.registry import lookup
from dlc.frontends.onnx.signature import check_parameters, check_signature
from dlc.frontends.onnx.symbols import Fact, FactFoundError, Symbols
from dlc.frontends.onnx.tensor import Block, Call, ConversionError, HostError, Tensor, constant, string_constant
from dlc.frontends.onnx.write import write
from dlc.ir.convert import IrTypeError

# Converters of these pass on values that are no tensors.
_TAKE_OBJECTS = {"Identity", "If", "Loop", "Scan"}
_DEEPEST = 64  # functions calling functions; a model that goes deeper calls itself


@dataclass
class Scope:
    """The names visible to the nodes of one graph or function body.

    Attributes:
        opsets: operator set versions by domain.
        values: tensors by ONNX name; an initialiser is read when it is first used.
        parent: the graph around a subgraph, whose values it sees; None for a function body.
        bound: the attributes of the call, for a function body.
        prefix: of the names of nodes and values in messages and origins.
        caller: the node whose body this is, when ONNX defines that operator by a body: all origins are its own.
    """

    opsets: Mapping[str, int]
    values: dict[str, Tensor | onnx.TensorProto] = field(default_factory=dict)
    parent: Scope | None = None
    bound: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    prefix: str = ""
    caller: NodeView | None = None
    depth: int = 0

    def find(self, name: str) -> Tensor:
        """The tensor of a name; ConversionError where it is undefined."""
        found = self.values.get(name)
        if found is None:
            if self.parent is not None:
                return self.parent.find(name)
            raise ConversionError(f"value '{name}' is used before it is made")
        if isinstance(found, onnx.TensorProto):
            strings = found.data_type == onnx.TensorProto.STRING
            found = string_constant(found) if strings else constant(tensor_array(found))
            self.values[name] = found
        return found


class Importer:
    """One import.

    `external` are initialisers from other files, `facts` what the model demands of sizes, by the symbols' names: see
    `import_graph`.
    """

    def __init__(
        self, loaded: Loaded, external: Mapping[str, np.ndarray], shapes: Shapes | None, facts: Mapping[str, Fact]
    ) -> None:
        self.loaded, self.external = loaded, external
        self.proto = loaded.proto
        self.symbols = Symbols(facts)
        self.calls: list[Call] = []
        self.functions = local_functions(self.proto)
        self.shapes = shapes or {}
        self.in_block = 0  # blocks of control flow around the current node

    def run(self) -> Any:
        """The module."""
        graph = self.proto.graph
        scope = Scope(opsets_of(self.proto.opset_import))
        if graph.sparse_initializer:
            raise DlcError(f"{self.loaded.name}: sparse initializers are not supported")
        scope.values.update({t.name: t for t in graph.initializer})
        scope.values.update({name: constant(array) for name, array in self.external.items()})
        inputs = GraphInputs(self.loaded.name, self.symbols, self.shapes).declare(graph)
        scope.values.update({t.name: t for t in inputs})
        self.nodes(graph.node, scope)
        try:
            outputs = [scope.find(o.name) for o in graph.output]
        except ConversionError as error:
            raise DlcError(f"{self.loaded.name}: {error}") from error
        if not outputs:
            raise DlcError(f"{self.loaded.name}: the graph has no outputs")
        outputs = [self._returned(t, scope) for t in outputs]
        names = [o.name for o in graph.output]
        cuts = {name: sorted(found) for name, found in self.symbols.cuts.items()}
        return write(self.loaded.name, inputs, self.calls, outputs, names, self.symbols.demands, cuts)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def nodes(self, nodes: Sequence[onnx.NodeProto], scope: Scope) -> None:
        """Convert nodes in order."""
        for proto in nodes:
            view, proto = node_view(proto, scope.bound, scope.prefix)
            start = len(self.calls)
            try:
                view = replace(view, attrs={a.name: attribute_value(a) for a in proto.attribute})
                inputs = [scope.find(n) if n else None for n in view.inputs]
                results = self._apply_or_host(view, inputs, scope)
            except (DlcError, FactFoundError):
                raise
            except Exception as error:
                raise self._failure(view, scope, error) from error
            self._bind(view, results, scope, start)

    def _failure(self, view: NodeView, scope: Scope, error: Exception) -> Exception:
        known = isinstance(error, ConversionError | IrTypeError)
        reason = " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
        if scope.caller is not None:
            # The user does not know the body's nodes; the call that was expanded puts its own name in front.
            return ConversionError(f"in its body, {view.op_type}: {reason}")
        return DlcError(f"{self.loaded.name}: {view.label}: {reason}")

    def _bind(self, view: NodeView, results: Sequence[Tensor | None], scope: Scope, start: int) -> None:
        new = set(map(id, self.calls[start:]))
        for index, name in enumerate(view.outputs):
            if not name:
                continue
            result = results[index] if index < len(results) else None
            if result is None:
                raise DlcError(f"{self.loaded.name}: {view.label}: its output '{name}' is not supported")
            scope.values[name] = result
            if result.call is not None and id(result.call) in new and scope.caller is None:
                result.call.value = f"{scope.prefix}{name}"

    def _apply_or_host(self, view: NodeView, inputs: Sequence[Tensor | None], scope: Scope) -> Sequence[Tensor | None]:
        start = len(self.calls)
        try:
            return self.apply(view, inputs, scope)
        except HostError as error:
            del self.calls[start:]
            return self._host(view, inputs, scope, str(error))

    def _host(
        self, view: NodeView, inputs: Sequence[Tensor | None], scope: Scope, reason: str
    ) -> Sequence[Tensor | None]:
        opsets = {**scope.opsets, "": scope.opsets.get("", onnx.defs.onnx_opset_version())}
        version = opsets.get(view.domain, 1)
        imported = lookup(view.domain, view.op_type, version) is not None
        imported = imported or has_body(view.op_type, version, view.domain)
        around = Surroundings(opsets, tuple(self.proto.functions), self.proto.ir_version, imported)
        context = self._context(view, version, scope)
        return host_call(context, inputs, scope.find, around, reason)

    def apply(self, view: NodeView, inputs: Sequence[Tensor | None], scope: Scope) -> Sequence[Tensor | None]:
        """The outputs of one node."""
        version = scope.opsets.get(view.domain, 1)
        context = self._context(view, version, scope)
        function = self.functions.get((view.domain, view.op_type, view.proto.overload))
        if function is not None:
            matcher = FUNCTION_MATCHERS.get((view.domain, view.op_type))
            matched = matcher(context, function, inputs) if matcher else None
            return matched if matched is not None else self._local_call(view, function, inputs, scope)
        check_signature(view, version, inputs)
        convert = lookup(view.domain, view.op_type, version)
        objects = [t for t in inputs if t is not None and t.is_object]
        expanded = convert is None and has_body(view.op_type, version, view.domain)
        if objects and view.op_type not in _TAKE_OBJECTS and not expanded:
            raise HostError(f"no kernel handles {objects[0]}")
        if convert is not None:
            check_parameters(convert, inputs)
            result = convert(context, *inputs)
            return result if isinstance(result, tuple | list) else (result,)
        return self._expand(view, version, inputs, scope)

    def _context(self, view: NodeView, version: int, scope: Scope) -> Context:
        shown = scope.caller or view
        return Context(
            node=view,
            version=version,
            symbols=self.symbols,
            calls=self.calls,
            onnx_op=shown.op_type,
            onnx_node=shown.name,
            certain=not self.in_block,
            branch=lambda graph: self._branch(graph, scope),
            block=lambda graph, params: self._block(graph, params, scope),
        )

    # --- bodies ------------------------------------------------------------------------------------------------------

    def _local_call(
        self, view: NodeView, body: onnx.FunctionProto, inputs: Sequence[Tensor | None], scope: Scope
    ) -> Sequence[Tensor | None]:
        if len(inputs) > len(body.input):
            raise ConversionError(f"it has {len(inputs)} inputs, the function takes {len(body.input)}")
        bound = {a.name: a for a in body.attribute_proto} | {a.name: a for a in view.proto.attribute}
        label = view.name or next((o for o in view.outputs if o), view.op_type)
        inner = Scope(
            opsets_of(body.opset_import) or scope.opsets,
            bound=bound,
            prefix=f"{label}/",
            caller=scope.caller,
            depth=scope.depth + 1,
        )
        return self._body(body, inputs, inner)

    def _expand(
        self, view: NodeView, version: int, inputs: Sequence[Tensor | None], scope: Scope
    ) -> Sequence[Tensor | None]:
        body = schema_body(view, version, inputs)
        if body is None:
            raise HostError("the operator has no kernel")
        bound = schema_defaults(view.op_type, version, view.domain) | {a.name: a for a in view.proto.attribute}
        opsets = dict(scope.opsets) | opsets_of(body.opset_import)
        inner = Scope(opsets, bound=bound, caller=scope.caller or view, depth=scope.depth + 1)
        return self._body(body, inputs, inner)

    def _body(self, body: onnx.FunctionProto, inputs: Sequence[Tensor | None], scope: Scope) -> Sequence[Tensor | None]:
        if scope.depth > _DEEPEST:
            raise ConversionError(f"functions call each other more than {_DEEPEST} deep")
        for name, tensor in zip(body.input, inputs, strict=False):
            if tensor is not None:
                scope.values[name] = tensor
        absent = set(body.input) - set(scope.values)
        nodes = []
        for node in body.node:
            if absent & set(node.input):  # an optional input that the call leaves out
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                copy.input[:] = ["" if name in absent else name for name in node.input]
                node = copy
            nodes.append(node)
        self.nodes(nodes, scope)
        return [scope.find(name) if name in scope.values else None for name in body.output]

    def _branch(self, graph: onnx.GraphProto, outer: Scope) -> tuple[Tensor, ...]:
        inner = replace(outer, values={t.name: t for t in graph.initializer}, parent=outer, depth=outer.depth + 1)
        self.nodes(graph.node, inner)
        return tuple(inner.find(o.name) for o in graph.output)

    def _block(self, graph: onnx.GraphProto, params: Sequence[Tensor], outer: Scope) -> Block:
        """A graph as a block: the values around it are captured, its calls are kept apart."""
        if len(graph.input) != len(params):
            raise ConversionError(f"the body '{graph.name}' takes {len(graph.input)} values, it is given {len(params)}")
        values: dict[str, Tensor | onnx.TensorProto] = {t.name: t for t in graph.initializer}
        values |= {v.name: t for v, t in zip(graph.input, params, strict=True)}
        inner = replace(outer, values=values, parent=outer, depth=outer.depth + 1)
        around, self.calls = self.calls, []
        noted, self.symbols.noted = self.symbols.noted, []
        self.in_block += 1
        try:
            self.nodes(graph.node, inner)
            outputs = [self._returned(inner.find(o.name), inner) for o in graph.output]
            return Block(list(params), self.calls, outputs, self.symbols.noted)
        finally:
            self.calls, self.symbols.noted = around, noted
            self.in_block -= 1

    def _returned(self, tensor: Tensor, scope: Scope) -> Tensor:
        """A result that is not computed by any call as one that is."""
        if tensor.literal is not None:
            node = onnx.helper.make_node("Constant", [], ["value"], value=tensor.literal)
            (made,) = self._host(node_view(node, {}, scope.prefix)[0], [], scope, "a constant of strings")
            assert made is not None
            return made
        nowhere = self._context(NodeView("Shape", "", "", (), (), {}, onnx.NodeProto()), 1, scope)
        return nowhere.materialised(tensor)


def import_graph(
    loaded: Loaded, external: Mapping[str, np.ndarray], shapes: Shapes | None, ranges: Ranges | None = None
) -> Any:
    """The module of a loaded model; with `ranges` (least, largest) of symbols for those sizes and on assumptions.

    A fact about a symbol is found on the way and matters from the first node on.
    """
    facts = {name: Fact(largest, least=least) for name, (least, largest) in (ranges or {}).items()}
    while True:
        importer = Importer(loaded, external, shapes, facts)
        importer.symbols.assuming = ranges is not None
        try:
            return importer.run()
        except FactFoundError as found:
            facts[found.name] = facts.get(found.name, Fact()).both(found.fact)
