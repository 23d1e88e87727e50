"""A region that is attention (`passes/partition/attention.py`): what it reads, and whether one kernel takes it.

How it is cut is chosen in `kernels/attention_cost.py`, its code is written in `kernels/attention.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.hardware import Machine
from dlc.ir.graph import Graph, Node
from dlc.passes.partition.attention import TRANSPOSE, keeps_last, products
from dlc.passes.partition.hidden import Band, Step
from dlc.passes.simplify.match import same_shape
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import attention_cost
from dlc.targets.cpu.kernels.attention import Emitter
from dlc.targets.cpu.kernels.attention_cost import LINE, MOST_SCRATCH, Sizes, scratch_bytes
from dlc.targets.cpu.kernels.builder import Expr, kernel
from dlc.targets.cpu.kernels.halo import fill_halo
from dlc.targets.layout import Layout

KIND = "attention"
_SHARED_MICROSECONDS = 10.0  # predicted time from which on a kernel is shared out


def unfit(body: Graph) -> str | None:
    """Why attention is better left to three kernels; None where one is faster."""
    values = body.values()
    scores, _, mixed = products(body)
    types = {values[name].dtype for name in (*scores.inputs, *mixed.inputs, scores.output.name, mixed.output.name)}
    if types != {"float32"}:
        return f"the kernel of attention is for float32, not {', '.join(sorted(types - {'float32'}))}"
    ranks = [len(values[name].shape) for name in (*scores.inputs, mixed.inputs[1])]
    if min(ranks) < 2 or not same_shape(mixed.output.shape[:-2], scores.output.shape[:-2]):
        return "the values have batch dimensions that the scores do not have"
    sizes = Sizes.of(body)
    if not isinstance(sizes.depth, int) or not isinstance(sizes.width, int):
        return "the size of a key or of a value is known only when running"
    known = [n for n in (sizes.places, sizes.queries, sizes.keys, sizes.depth, sizes.width) if isinstance(n, int)]
    if 0 in known:
        return "it is empty"
    if scratch_bytes(sizes, 1, LINE) > MOST_SCRATCH:
        return f"keys of {sizes.depth} and values of {sizes.width} numbers are more than the stack takes"
    other = _other_than_rows(body)
    return f"{other} changes single weights, which are known only behind all keys" if other else None


def _other_than_rows(body: Graph) -> str | None:
    """The first node behind softmax that does not leave each row as it is, or make it zero; None where all do so.

    Weights are divided by their sum at the very end, a row at a time.
    """
    _, softmax, mixed = products(body)
    values, rows, flags = body.values(), {softmax.output.name}, set[str]()

    def of_row(name: str) -> bool:
        shape = values[name].shape
        return name in flags or not shape or (isinstance(shape[-1], int) and shape[-1] == 1)

    def stays(name: str) -> bool:
        array = body.constants.get(name)
        return name in rows or (array is not None and not array.any())

    for node in body.nodes:
        if node is mixed or not (rows | flags) & set(node.inputs):
            continue
        if node.op == "relax.isnan" and node.inputs[0] in rows:
            flags.add(node.output.name)
        elif node.op == "relax.where" and of_row(node.inputs[0]) and all(map(stays, node.inputs[1:])):
            rows.add(node.output.name)
        else:
            return node.op.removeprefix("relax.").removeprefix("dlc.")
    return None


class AttentionRegion:
    """One attention with its epilogue; the interface is that of `ContractionRegion`."""

    def __init__(
        self, body: Graph, layouts: Mapping[str, Layout], constants: Mapping[str, np.ndarray], isa: Isa
    ) -> None:
        self.body, self.layouts, self.constants, self.isa = body, dict(layouts), constants, isa
        self.values, self.producers, self.sizes = body.values(), body.producers(), Sizes.of(body)
        self.scores, self.softmax, self.mixed = products(body)
        self.q, self.k = self.scores.inputs
        self.weights, self.v = self.mixed.inputs
        self.band = Band(*body.attrs.get("dlc.band", ()))
        # Masks that are computed from the places of their elements, and not read.
        self.steps = {name: Step(*step) for name, step in body.attrs.get("dlc.steps", {}).items()}
        self.init = None
        self.lanes = isa.lanes()

    # --- choices ---

    def choose(self, machine: Machine) -> dict[str, Any]:
        """See `attention_cost.choose`."""
        return attention_cost.choose(self, machine)

    def q_step(self) -> Expr:
        """Elements from one query to the next, where they are read: in place, or copied because they are computed."""
        direct = self.direct(self.q)
        return self.sizes.depth_stride() if direct is None else direct[1].strides[-2]

    def direct(self, name: str) -> tuple[str, Layout] | None:
        """(input, layout) of an operand that lies in memory as it is, perhaps transposed; None where it is computed."""
        node = self.producers.get(name)
        if node is None:
            return name, self.layouts[name]
        if node.op == TRANSPOSE and keeps_last(node) and node.inputs[0] not in self.producers:
            return node.inputs[0], _permuted(self.layouts[node.inputs[0]], node)
        return None

    # --- operands ---

    def operands(self, schedule: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
        """The kernel's inputs in order: (body input name, constant or None)."""
        read = [value.name for value in self.body.inputs if value.name not in self.steps]
        return [(name, self.constants.get(name)) for name in read]

    # --- code ---

    def emit(
        self,
        name: str,
        schedule: Mapping[str, Any],
        operands: Sequence[tuple[str, np.ndarray | None]],
        dims: Sequence[Any],
        halo_fill: float | None,
    ) -> Any:
        """Generate the kernel over `operands` (what `operands` gave) and, last, the output."""
        out = self.body.outputs[0]
        params = [(f"x{i}", self.values[n].dtype, self.layouts[n]) for i, (n, _) in enumerate(operands)]
        params.append(("y", self.values[out].dtype, self.layouts[out]))
        long = schedule["predicted_us"] >= _SHARED_MICROSECONDS
        with kernel(name, params, dims, shared=long) as k:
            if halo_fill is not None:
                fill_halo(k.operands[-1], halo_fill)
            named = {label: operand for (label, _), operand in zip(operands, k.operands[:-1], strict=True)}
            Emitter(self, schedule, named, k.operands[-1]).run(k.share)
        return k.func


def _permuted(layout: Layout, node: Node) -> Layout:
    """The layout of a transpose's result in the memory of its input."""
    axes = [axis % len(layout.shape) for axis in node.attrs["axes"]]
    shape, strides, halo = (tuple(of[a] for a in axes) for of in (layout.shape, layout.strides, layout.halo))
    return replace(layout, shape=shape, strides=strides, halo=halo)
