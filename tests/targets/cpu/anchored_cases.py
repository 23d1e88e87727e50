"""Run a region of an anchored kernel family against the interpreter: halos, symbolic extents, guard zones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dlc.hardware import this_machine
from dlc.ir.graph import Graph, Node, Value
from dlc.ir.interpret import interpret
from dlc.targets.cpu.isa import GENERIC, Isa, levels_of
from dlc.targets.cpu.kernels.builder import STORAGE, symbolic
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

# The best levels differ from avx512 in their integer products only. GENERIC runs on every machine.
LEVELS = [*(isa for isa in levels_of(this_machine()) if isa.dot == "pmaddwd"), GENERIC]
EPSILON = float(np.finfo("float32").eps)
Halo = Sequence[tuple[int, int]]


class Body:
    """Write a region's body node by node."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def input(self, shape: Sequence[Any], dtype: str) -> str:
        self.inputs.append(Value(f"i{len(self.inputs)}", tuple(shape), dtype))
        return self.inputs[-1].name

    def constant(self, value: Any, dtype: str) -> str:
        name = f"s{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[Any], dtype: str, /, **attrs: Any) -> str:
        attrs |= {"dtype": dtype} if op == "relax.astype" else {}
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, tuple(inputs), (Value(name, tuple(shape), dtype),), attrs))
        return name

    def graph(self) -> Graph:
        return Graph("region", tuple(self.inputs), (self.nodes[-1].output.name,), tuple(self.nodes), self.constants)


def _in_memory(array: np.ndarray, halo: Halo, fill: Any) -> np.ndarray:
    array = array.view(STORAGE.get(str(array.dtype), str(array.dtype)))
    return np.pad(array, halo, constant_values=np.asarray(fill).astype(array.dtype)) if array.ndim else array


def run_region(
    family: ModuleType,
    body: Graph,
    arrays: Sequence[np.ndarray],
    isa: Isa,
    halos: Mapping[str, Halo] | None = None,
    fill: float | None = None,
    wide: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(what the kernel made, what the interpreter makes; from float64 inputs if `wide`). `halos` by name.

    A symbolic extent is the first one of the first input.
    """
    halos = dict(halos or {})
    assert family.declines(body) is None, family.declines(body)
    values, out = body.values(), body.outputs[0]
    names = [*(value.name for value in body.inputs), out]
    layouts = {n: Layout.padded(values[n].shape, halos.get(n, [(0, 0)] * len(values[n].shape))) for n in names}
    dims = [d for d in dict.fromkeys(d for value in body.inputs for d in value.shape) if not isinstance(d, int)]
    func = family.emit("k", body, layouts, isa, dims, {} if fill is None else {out: fill})
    with np.errstate(all="ignore"):
        exact = [a.astype("float64") if wide and a.dtype.kind == "f" else a for a in arrays]
        (wanted,) = interpret(body, {v.name: a for v, a in zip(body.inputs, exact, strict=True)})
    halo = halos.get(out, [(0, 0)] * wanted.ndim)
    memory = [_in_memory(a, halos.get(v.name, [(0, 0)] * a.ndim), 77) for v, a in zip(body.inputs, arrays, strict=True)]
    room = _in_memory(np.full(wanted.shape, 99).astype(values[out].dtype), halo, 99)
    sizes = [arrays[0].shape[0]] if dims else []
    got = Compiled(func, isa, len(names), len(dims)).run([*memory, room], sizes)[-1].view(values[out].dtype)
    inside = tuple(slice(before, before + n) for (before, _), n in zip(halo, wanted.shape, strict=True))
    around = np.ones(got.shape, bool)
    around[inside] = False
    if fill is not None:
        assert np.all(got[around] == np.asarray(fill).astype(got.dtype)), "the halo does not hold its fill"
    return got[inside], wanted


def batch_symbol() -> Any:
    """A symbolic batch."""
    return symbolic("batch")
