"""One thread an output element: elementwise chains, data movement, windows and the operators of `gather`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from dlc.ir.graph import Graph, Value
from dlc.ir.ops import OPS
from dlc.ir.serial import extent_text
from dlc.targets.gpu.kernels import gather, windows
from dlc.targets.gpu.kernels.evaluate import ELEMENTWISE, Evaluator, Follow, unsupported
from dlc.targets.gpu.kernels.injective import INJECTIVE, PAD_MODES
from dlc.targets.gpu.source import GridAxis, Kernel, Writer

THREADS = 256
FOLLOW: dict[str, Follow] = {**INJECTIVE, **windows.WINDOWS, **gather.GATHER}
OPERATORS = frozenset({*ELEMENTWISE, *FOLLOW, "dlc.table"})


def declines(body: Graph) -> str | None:
    """Why the region cannot be generated here; None when it can."""
    for node in body.nodes:
        if node.op == "relax.nn.pad" and node.attrs["mode"] not in PAD_MODES:
            return f"padding mode '{node.attrs['mode']}'"
        reason = windows.declines(node) if node.op in windows.WINDOWS else None
        if node.op in gather.GATHER:
            reason = gather.declines(node, [body.values()[n] for n in node.inputs])
        if reason is not None:
            return reason
    return unsupported(body, FOLLOW)


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return [str(d) for d in a] == [str(d) for d in b]


def flattened(body: Graph) -> Graph:
    """The body over one dimension where it is elementwise and its tensors have the output's shape or one element."""
    values = body.values()
    shape = values[body.outputs[0]].shape
    whole = {n: _same(v.shape, shape) for n, v in values.items()}
    tables = {node.inputs[1] for node in body.nodes if node.op == "dlc.table"}
    single = {n for n, v in values.items() if all(isinstance(d, int) and d == 1 for d in v.shape)} | tables
    plain = all(OPS[node.op].kind == "elementwise" for node in body.nodes)
    if len(shape) < 2 or not plain or not all(w or n in single for n, w in whole.items()):
        return body

    count = prod(shape) if all(isinstance(d, int) for d in shape) else Product(shape)

    def flat(value: Value) -> Value:
        if value.name in tables:
            return value
        return replace(value, shape=(count,) if whole[value.name] else (1,))

    nodes = tuple(
        replace(n, outputs=(flat(n.output),), attrs={**n.attrs, "axis": 0} if "axis" in n.attrs else n.attrs)
        for n in body.nodes
    )
    return replace(body, inputs=tuple(flat(v) for v in body.inputs), nodes=nodes)


class Product:
    """The number of elements of a shape, as one extent; only its text is asked for."""

    def __init__(self, shape: Sequence[Any]) -> None:
        self.shape = tuple(shape)

    def __str__(self) -> str:
        return " * ".join(f"({extent_text(d)})" for d in self.shape)


def emit(body: Graph) -> Kernel:
    """The kernel: neighbouring threads write neighbouring elements."""
    output = body.values()[body.outputs[0]]
    grid = GridAxis(tuple(extent_text(d) for d in output.shape), THREADS)
    w = Writer(output.name, output.dtype)
    flat = flattened(body)
    ev = Evaluator(w, flat, FOLLOW)
    place = flat.values()[output.name]
    total = " * ".join(ev.extents(place.shape)) or "1"
    w.line(f"const int p = BLOCK(0) * {THREADS} + THREAD;")
    w.line(f"if (p >= {total}) return;")
    w.line(f"out[p] = {ev.at(output.name, ev.unflatten('p', place.shape))};")
    return w.finish([grid], THREADS, kind="one thread an element", tile=f"{THREADS} threads")
