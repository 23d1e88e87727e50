"""From regions to kernels: each region call of ``main`` becomes one scheduled kernel and one launch of it.

Kernels are `Kernel` objects, a launch's operands may be constants that a generator packed, and constants lie in buffers
of their own on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.targets.gpu.kernels import contract, pointwise, reduce
from dlc.targets.gpu.source import Kernel
from dlc.targets.layout import Layout, simplify
from dlc.targets.lowering import VIEW, Lowering, canonical, region_constants, region_row
from dlc.targets.program import Call, Program

POSITIONS = 2**31  # kernels count elements in 32 bits


def no_kernel(node: Node) -> str | None:
    """Why no kernel computes an operator, whatever its operands are; None where one may."""
    anchor = OPS[node.op].kind in ("contraction", "reduction")
    known = anchor or node.op in pointwise.OPERATORS or node.op == VIEW
    return None if known else f"target gpu has no kernel for {node.op}"


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


class GpuLowering(Lowering):
    """The state of one lowering."""

    def region(self, node: Node) -> None:
        """See `Lowering.region`; kernels are told apart by their text."""
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


def explanation(node: Node, symbol: str, kernel: Kernel) -> dict[str, Any]:
    """The row of `dlc explain` for one launch."""
    return {
        **region_row(node, symbol),
        "kernel": kernel.kind,
        "tile": kernel.tile,
        "shared_bytes": kernel.shared,
        "why_not_better": kernel.note,
    }


def lower(module: Any) -> Program:
    """Schedule and write all kernels of `module`."""
    return GpuLowering(module).run()
