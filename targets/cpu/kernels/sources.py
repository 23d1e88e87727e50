"""Operators without inputs: `dlc.extents` and `dlc.positions`, whose numbers come from the shapes of the call."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Region, emitter, why_not
from dlc.targets.cpu.kernels.builder import let
from dlc.targets.cpu.kernels.contract_loops import loop, whole_index
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    return why_not(body, ["dlc.extents", "dlc.positions"])


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    return "scalar loop: a vector as short as a shape" if body.nodes[0].op == "dlc.extents" else "scalar loop"


def _write(region: Region) -> None:
    node = region.anchor
    if node.op == "dlc.extents":
        for i, extent in enumerate(node.attrs["shape"]):
            region.finish((i,), whole_index(extent), 1)
        return
    with loop(node.attrs["shape"][0]) as i:
        value = v.convert(let(T.int64(0) + i), compute_dtype(node.output.dtype))
        region.finish((i,), round_trip(value, node.output.dtype), 1)


emit = emitter(_write)
