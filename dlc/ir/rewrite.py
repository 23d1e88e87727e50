"""Rewriting a function node by node: what most passes are made of.

A pass gives `rewrite` a handler. It sees each live node in execution order and either returns the new expression for
the node's output, or None to keep the node as it is. Dead nodes are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm

from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Graph, Node, Origin, Value, node_symbols, symbol_names
from dlc.ir.ops import OPS
from dlc.ir.ops.host import ITEM

Handler = Callable[["Rewriter", Node], Any]


def live_nodes(graph: Graph) -> list[Node]:
    """The nodes that the outputs depend on, in order: for their elements, or for an extent that only data tell."""
    needed = set(graph.outputs)
    dynamic = any(node.op == ITEM and symbol_names(node.output.shape) for node in graph.nodes)
    symbols: set[str] = set()
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        told = node.op == ITEM and symbols & symbol_names(node.output.shape)
        if told or any(v.name in needed for v in node.outputs):
            kept.append(node)
            needed.update(node.inputs)
            symbols |= node_symbols(node) if dynamic else set()
    return kept[::-1]


def used_functions(graph: Graph) -> list[Graph]:
    """The functions that the nodes of `graph` call or run, each behind those that it uses itself."""
    found: dict[str, Graph] = {}

    def add(inside: Graph) -> None:
        for node in inside.nodes:
            for used in (*([node.body] if node.body is not None else []), *node.blocks):
                add(used)
                found.setdefault(used.name, used)

    add(graph)
    return list(found.values())


def own_attrs(graph: Graph) -> dict[str, Any]:
    """The attributes of a graph's function that are ours, as `FunctionBuilder.finish` takes them."""
    return {key.removeprefix("dlc."): value for key, value in graph.attrs.items() if key.startswith("dlc.")}


def graph_module(module: Any, graph: Graph, attrs: Mapping[str, Any] | None = None) -> Any:
    """A module whose ``main`` is `graph`, with the functions of `module` that it uses.

    Its attributes are `attrs`, or without them the graph's own names of its inputs and outputs.
    """
    builder = FunctionBuilder("main")
    for used in used_functions(graph):
        builder.add_region(used.name, module[used.name])
    env: dict[str, Any] = {v.name: builder.input(v.name, v.shape, v.dtype) for v in graph.inputs}

    def get(name: str) -> Any:
        if name not in env:
            env[name] = builder.constant(graph.constants[name])
        return env[name]

    for node in graph.nodes:
        env[node.output.name] = copy_node(builder, node, [get(name) for name in node.inputs])
    names = {"inputs": [v.name for v in graph.inputs], "outputs": list(graph.outputs)}
    return builder.finish([get(name) for name in graph.outputs], names if attrs is None else attrs)


def map_blocks(module: Any, transform: Callable[[str, Any], Any]) -> Any:
    """`module` with every block that control flow in ``main`` runs replaced by what `transform` makes of it.

    Args:
        transform: (the block's name, a module whose ``main`` is the block) -> such a module, of the same type.
    """
    functions = {var.name_hint: function for var, function in module.functions.items()}
    if len(functions) == 1:
        return module  # most models have no control flow, and half a dozen passes ask
    for node in view(module).nodes:
        for block in node.blocks:
            done = transform(block.name, graph_module(module, block))
            functions |= {used.name: done[used.name] for used in used_functions(view(done))}
            functions[block.name] = done["main"]
    return tvm.IRModule(functions)


def copy_node(builder: FunctionBuilder, node: Node, inputs: Sequence[Any]) -> Any:
    """Write `node` again, over new expressions; the functions that it uses must have been added to `builder`."""
    name = node.output.name
    if node.op == "call":
        assert node.body is not None
        return builder.call(node.body.name, inputs, node.origin, name)
    if node.op == ITEM:
        return builder.item(inputs[0], node.attrs["index"], node.origin, name)
    if OPS[node.op].kind == "host":
        return builder.host(node.op, [b.name for b in node.blocks], inputs, node.attrs, node.origin, name)
    return builder.emit(node.op, inputs, node.attrs, node.origin, name)


class Rewriter:
    """The state of one rewrite: the old graph, and the new expression of each old value.

    Attributes:
        graph: the function before the rewrite.
        producers, consumers, values: the old graph's indices (dead nodes left out of consumers).
        env: old value name -> new Relax expression.
    """

    def __init__(self, module: Any) -> None:
        full = view(module)
        self.nodes_before = len(full.nodes)
        self.graph = Graph(full.name, full.inputs, full.outputs, tuple(live_nodes(full)), full.constants, full.attrs)
        self.module = module
        self.producers = self.graph.producers()
        self.consumers = self.graph.consumers()
        self.values = self.graph.values()
        self.builder = FunctionBuilder("main")
        self.builder.add_functions(module)
        self.env: dict[str, Any] = {}
        for value in self.graph.inputs:
            self.env[value.name] = self.builder.input(value.name, value.shape, value.dtype)

    # --- reading ---

    def constant(self, name: str) -> np.ndarray | None:
        """The old value as an array when it is a constant."""
        return self.graph.constants.get(name)

    def scalar(self, name: str) -> Any:
        """The old value as a Python number when it is a constant of one element, else None."""
        array = self.graph.constants.get(name)
        return array.reshape(()).item() if array is not None and array.size == 1 else None

    def producer(self, name: str, op: str | None = None) -> Node | None:
        """The node that makes `name`, if it exists and is of operator `op`."""
        node = self.producers.get(name)
        return node if node is not None and op in (None, node.op) else None

    def only_consumer(self, name: str) -> Node | None:
        """The single reader of `name`; None when it is read twice or is an output."""
        readers = self.consumers.get(name, [])
        if len(readers) != 1 or name in self.graph.outputs:
            return None
        return readers[0] if readers[0].inputs.count(name) == 1 else None

    def value(self, name: str) -> Value:
        """Shape and dtype of an old value."""
        return self.values[name]

    # --- writing ---

    def new(self, name: str) -> Any:
        """The new expression of an old value (constants are copied at first use)."""
        if name not in self.env:
            self.env[name] = self.builder.constant(self.graph.constants[name])
        return self.env[name]

    def const(self, array: np.ndarray) -> Any:
        """A new constant."""
        return self.builder.constant(array)

    def emit(
        self, op: str, inputs: Sequence[Any], attrs: Mapping[str, Any] | None = None, origin: Origin | None = None
    ) -> Any:
        """A new node; `inputs` are new expressions."""
        return self.builder.emit(op, inputs, attrs, origin)

    def copy(self, node: Node) -> Any:
        """Keep `node` with its inputs renamed."""
        return copy_node(self.builder, node, [self.new(name) for name in node.inputs])

    def finish(self, outputs: Sequence[Any] | None = None, attrs: Mapping[str, Any] | None = None) -> Any:
        """The new module: `outputs` are new expressions, by default those of the old outputs; `attrs` are added."""
        made = [self.new(name) for name in self.graph.outputs] if outputs is None else outputs
        return self.builder.finish(made, {**own_attrs(self.graph), **(attrs or {})})


def rewrite(module: Any, handler: Handler, attrs: Mapping[str, Any] | None = None) -> Any:
    """Rebuild ``main`` of `module` with `handler`; the function's attributes stay, `attrs` are added to them.

    Where the handler kept every node and none was dead, `module` itself comes back: a list of passes that is repeated
    until nothing changes sees that by identity.
    """
    state = Rewriter(module)
    changed = bool(attrs) or len(state.graph.nodes) != state.nodes_before
    for node in state.graph.nodes:
        # What runs on the host is nothing that a pass over kernels understands.
        expr = None if node.op in OPS and OPS[node.op].kind == "host" else handler(state, node)
        changed = changed or expr is not None
        state.env[node.output.name] = expr if expr is not None else state.copy(node)
    if not changed:
        return module
    return state.finish(attrs=attrs)
