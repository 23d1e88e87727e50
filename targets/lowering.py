"""From regions to a program: what every target that generates one kernel a region does alike.

A target's `Lowering` generates the kernel of a region and appends its call; places, shared constants and the order of
the calls are here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.ir.convert import view
from dlc.ir.dims import Symbols, symbols
from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS, block_matmul
from dlc.ir.ops.host import ITEM
from dlc.targets.program import Program, Ref

VIEW = "relax.reshape"


def canonical(body: Graph) -> Graph:
    """`body` with values renamed by position, so that equal regions are equal text."""
    names = {v.name: f"i{i}" for i, v in enumerate(body.inputs)}
    names |= {name: f"s{i}" for i, name in enumerate(body.constants)}
    names |= {node.output.name: f"v{i}" for i, node in enumerate(body.nodes)}
    nodes = tuple(
        replace(
            node,
            inputs=tuple(names[n] for n in node.inputs),
            outputs=(replace(node.output, name=names[node.output.name]),),
        )
        for node in body.nodes
    )
    inputs = tuple(replace(v, name=names[v.name]) for v in body.inputs)
    constants = {names[n]: a for n, a in body.constants.items()}
    return Graph("region", inputs, tuple(names[n] for n in body.outputs), nodes, constants, body.attrs)


def region_constants(graph: Graph, node: Node) -> dict[str, Any]:
    """The inputs of a region's body that are constants in ``main``."""
    assert node.body is not None
    pairs = zip(node.body.inputs, node.inputs, strict=True)
    return {v.name: graph.constants[name] for v, name in pairs if name in graph.constants}


def _short(op: str) -> str:
    return op.removeprefix("relax.").removeprefix("dlc.")


def _precision(body: Graph) -> str:
    if any(n.op == block_matmul.NAME for n in body.nodes):
        return "int4"
    dtypes = {n.output.dtype for n in body.nodes} | {v.dtype for v in body.inputs}
    values = body.values()
    weights = {values[n.inputs[1]].dtype for n in body.nodes if OPS[n.op].kind == "contraction"}
    if "bfloat16" in weights and body.nodes[0].output.dtype == "float32":
        short = any(values[n.inputs[0]].dtype == "bfloat16" for n in body.nodes if OPS[n.op].kind == "contraction")
        return "bf16 x bf16" if short else "bf16"
    return "int8" if dtypes & {"uint8", "int8"} else body.nodes[0].output.dtype


def region_row(node: Node, symbol: str) -> dict[str, Any]:
    """What `dlc explain` says of a region whatever the target is: where it comes from, what is in it, its kernel."""
    assert node.body is not None
    return {
        "node": node.origin.node or node.origin.value,
        "op": node.origin.op or _short(node.body.nodes[-1].op),
        "value": node.origin.value,
        "channels_last": node.origin.channels_last,
        "fused": [_short(n.op) for n in node.body.nodes],
        "precision": _precision(node.body),
        "symbol": symbol,
    }


class Lowering(ABC):
    """The state of one lowering.

    Attributes:
        graph: ``main``, with one variable a symbol.
        program: what has been lowered so far.
        known: what tells a kernel from others -> its symbol.
        fixed: the places of inputs and outputs, by the value whose memory they are.
        prefix: what the names of its kernels and workspace values begin with.
    """

    prefix = ""

    def __init__(self, module: Any) -> None:
        self.graph = Symbols().graph(view(module))
        self.values = self.graph.values()
        dims = [d for v in self.graph.inputs for d in v.shape]
        self.program = Program(self.graph.inputs, tuple(self.values[n] for n in self.graph.outputs), symbols(dims))
        self.known: dict[str, str] = {}
        self.fixed: dict[str, Ref] = {v.name: Ref("input", i) for i, v in enumerate(self.graph.inputs)}
        self._roots: dict[str, str] = {}
        self._constant_index: dict[str, int] = {}

    def _root(self, name: str) -> str:
        """The value whose memory `name` is."""
        return self._roots.get(name, name)

    def constant(self, array: np.ndarray) -> Ref:
        """The place of a constant; equal ones share it."""
        array = np.ascontiguousarray(array)
        key = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest() + str(array.dtype)
        if key not in self._constant_index:
            self._constant_index[key] = len(self.program.constants)
            self.program.constants.append(array)
        return Ref("constant", self._constant_index[key])

    def place(self, name: str) -> Ref:
        """Where a value of ``main`` lies."""
        name = self._root(name)
        if name in self.graph.constants:
            return self.constant(self.graph.constants[name])
        if name in self.fixed:
            return self.fixed[name]
        return Ref("workspace", name=self.prefix + name)

    @abstractmethod
    def region(self, node: Node) -> None:
        """Generate the kernel of one region call, unless an equal one exists, and call it.

        Raises:
            DlcError: the target has no kernel; names the node.
        """

    def node(self, node: Node) -> None:
        """Lower one node of ``main``."""
        self.region(node)

    def run(self) -> Program:
        """Lower every call of ``main``."""
        for node in self.graph.nodes:
            if node.op == VIEW:
                self._roots[node.output.name] = self._root(node.inputs[0])
        self.place_outputs()
        for node in self.graph.nodes:
            if node.op not in (VIEW, ITEM):
                self.node(node)
        return self.program

    def place_outputs(self) -> None:
        """Say where the outputs lie."""
        for index, output in enumerate(self.graph.outputs):
            self.fixed.setdefault(self._root(output), Ref("output", index))
