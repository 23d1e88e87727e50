"""From regions to kernels: each region call of ``main`` becomes one scheduled kernel and one launch of it.

The program, its places and the memory plan are those of the CPU target; here the kernels are `Kernel` objects, a
launch's operands may be constants that a generator packed, and constants lie in buffers of their own on the device.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.dims import Symbols, symbols
from dlc.ir.graph import Graph, Node
from dlc.targets.cpu.kernels.builder import Layout, simplify
from dlc.targets.cpu.lower import VIEW, canonical
from dlc.targets.cpu.program import Call, Program, Ref
from dlc.targets.cpu.schedule import region_constants
from dlc.targets.gpu.kernels import contract, pointwise, reduce
from dlc.targets.gpu.source import Kernel

POSITIONS = 2**31  # kernels count elements in 32 bits


def generate(kind: str, body: Graph, constants: dict[str, np.ndarray]) -> Kernel:
    """The kernel of a region; `constants` are those of the body's inputs that are known.

    Raises:
        DlcError: no kernel can be generated; the text is the reason alone.
    """
    note = ""
    if kind == "contraction":
        reason = contract.declines(body)
        if reason is not None:
            raise DlcError(reason)
        note = contract.is_direct(body, constants) or ""
        if not note:
            return contract.emit(body, constants)
    family = reduce if kind == "reduction" else pointwise
    reason = family.declines(body)
    if reason is not None:
        raise DlcError(reason)
    kernel = family.emit(body)
    kernel.note = note
    return kernel


class Lowering:
    """The state of one lowering."""

    def __init__(self, module: Any) -> None:
        self.graph = Symbols().graph(view(module))
        self.values = self.graph.values()
        dims = [d for v in self.graph.inputs for d in v.shape]
        self.program = Program(self.graph.inputs, tuple(self.values[n] for n in self.graph.outputs), symbols(dims))
        self.roots: dict[str, str] = {}
        self.known: dict[str, str] = {}  # text -> symbol
        self.constant_index: dict[str, int] = {}

    def root(self, name: str) -> str:
        """The value whose memory `name` is."""
        return self.roots.get(name, name)

    def constant(self, array: np.ndarray) -> Ref:
        """The place of a constant; equal ones share it."""
        array = np.ascontiguousarray(array)
        key = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest() + str(array.dtype)
        if key not in self.constant_index:
            self.constant_index[key] = len(self.program.constants)
            self.program.constants.append(array)
        return Ref("constant", self.constant_index[key])

    def place(self, name: str) -> Ref:
        """Where a value of ``main`` lies."""
        name = self.root(name)
        if name in self.graph.constants:
            return self.constant(self.graph.constants[name])
        for index, value in enumerate(self.graph.inputs):
            if value.name == name:
                return Ref("input", index)
        for index, output in enumerate(self.graph.outputs):
            if self.root(output) == name:
                return Ref("output", index)
        return Ref("workspace", name=name)

    def region(self, node: Node) -> None:
        """Generate the kernel of one region call, unless an equal one exists, and launch it."""
        assert node.body is not None
        body = canonical(node.body)
        names = {v.name: name for v, name in zip(body.inputs, node.inputs, strict=True)}
        known = region_constants(self.graph, node)
        constants = {v.name: known[old.name] for v, old in zip(body.inputs, node.body.inputs, strict=True)
                     if old.name in known}  # fmt: skip
        try:
            kernel = generate(node.attrs["dlc.kind"], body, constants)
        except DlcError as error:
            raise DlcError(f"node {node.origin}: target gpu has no kernel: {error}") from error
        self._check_positions(node)
        text = kernel.text("kernel")
        if text not in self.known:
            self.known[text] = node.body.name
            self.program.kernels[node.body.name] = kernel
        symbol = self.known[text]
        refs = [self.constant(o) if isinstance(o, np.ndarray) else self.place(names[o]) for o in kernel.operands]
        layout = Layout.dense(node.output.shape)
        output = self.place(node.output.name)
        if output.kind == "workspace":
            self.program.buffers[output.name] = simplify(layout.size * np.dtype(node.output.dtype).itemsize)
        row = explanation(node, symbol, kernel)
        dims = tuple(kernel.dims)
        self.program.calls.append(Call(symbol, tuple(refs), output, dims, node.output, layout, node.origin, row))

    def _check_positions(self, node: Node) -> None:
        for name in (*node.inputs, node.output.name):
            size = Layout.dense(self.values[name].shape).size
            if isinstance(size, int) and size >= POSITIONS:
                raise DlcError(f"node {node.origin}: target gpu has no kernel: a tensor of {size} elements, more than "
                               f"32 bits count")  # fmt: skip

    def run(self) -> Program:
        """Lower every call of ``main``."""
        for node in self.graph.nodes:
            if node.op == VIEW:
                self.roots[node.output.name] = self.root(node.inputs[0])
        for node in self.graph.nodes:
            if node.op != VIEW:
                self.region(node)
        return self.program


def _precision(node: Node) -> str:
    assert node.body is not None
    codes = {n.output.dtype for n in node.body.nodes} | {v.dtype for v in node.body.inputs}
    return "int8" if codes & {"uint8", "int8"} else str(node.body.nodes[0].output.dtype)


def explanation(node: Node, symbol: str, kernel: Kernel) -> dict[str, Any]:
    """The row of `dlc explain` for one launch."""
    assert node.body is not None
    return {
        "node": node.origin.node or node.origin.value,
        "op": node.origin.op or node.body.nodes[-1].op.removeprefix("relax.").removeprefix("dlc."),
        "value": node.origin.value,
        "channels_last": node.origin.channels_last,
        "fused": [n.op.removeprefix("relax.").removeprefix("dlc.") for n in node.body.nodes],
        "precision": _precision(node),
        "kernel": kernel.kind,
        "symbol": symbol,
        "tile": kernel.tile,
        "shared_bytes": kernel.shared,
        "why_not_better": kernel.note,
    }


def lower(module: Any) -> Program:
    """Schedule and write all kernels of `module`."""
    return Lowering(module).run()
