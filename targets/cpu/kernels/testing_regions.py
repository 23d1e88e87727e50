"""Build region bodies, run kernels on them and compare with the interpreter: shared by the kernel tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from dlc.hardware import this_machine
from dlc.ir.graph import Graph, Node, Value
from dlc.ir.interpret import interpret
from dlc.targets.cpu.isa import Isa, levels_of
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

# The levels above avx512 differ from it in their integer products only.
LEVELS = [isa for isa in levels_of(this_machine()) if isa.dot in ("pmaddwd", "plain")]


class Body:
    """A region under construction."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def input(self, shape: Sequence[Any], dtype: str = "float32") -> str:
        """Declare an input; returns its name."""
        self.inputs.append(Value(f"i{len(self.inputs)}", tuple(shape), dtype))
        return self.inputs[-1].name

    def constant(self, value: Any, dtype: str = "float32", shape: Sequence[int] = ()) -> str:
        """Add a constant; returns its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.full(shape, value, dtype)
        return name

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[Any], /, dtype: str = "float32", **attrs: Any
    ) -> str:
        """Add a node (``relax.`` may be left out); returns the name of its output."""
        name = f"v{len(self.nodes)}"
        op = op if op.startswith("dlc.") else f"relax.{op}"
        if op == "relax.astype":
            attrs["dtype"] = dtype
        self.nodes.append(Node(op, tuple(inputs), (Value(name, tuple(shape), dtype),), attrs))
        return name

    def graph(self, *outputs: str) -> Graph:
        """The finished body."""
        return Graph("region", tuple(self.inputs), outputs, tuple(self.nodes), self.constants)


def concrete(shape: Sequence[Any], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with the symbols' sizes put in."""
    return tuple(d if isinstance(d, int) else sizes[str(d.name)] for d in shape)


def _buffer(layout: Layout, array: np.ndarray, full: Sequence[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """A padded buffer that holds `array`, and where; the halo holds what must not matter."""
    junk = 1 if array.dtype == bool else 0x5B
    buffer = np.full(int(np.prod(full, dtype=int)) * array.itemsize, junk, "uint8").view(array.dtype).reshape(full)
    inner = tuple(slice(b, b + n) for (b, _), n in zip(layout.halo, array.shape, strict=True))
    buffer[inner] = array
    return buffer, inner


def run_region(
    emit: Callable[..., Any],
    body: Graph,
    arrays: Sequence[np.ndarray],
    isa: Isa,
    halos: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    fill: Mapping[str, float] | None = None,
    name: str = "region",
) -> list[np.ndarray]:
    """Compile and run a region; checks guard zones, untouched inputs and filled halos; returns the outputs."""
    values, halos, fill = body.values(), halos or {}, fill or {}
    dims = {str(d.name): d for v in body.inputs for d in v.shape if not isinstance(d, int)}
    sizes = {
        str(d.name): n
        for v, array in zip(body.inputs, arrays, strict=True)
        for d, n in zip(v.shape, array.shape, strict=True)
        if not isinstance(d, int)
    }
    layouts = {
        n: Layout.padded(values[n].shape, halos.get(n, [(0, 0)] * len(values[n].shape)))
        for n in [v.name for v in body.inputs] + list(body.outputs)
    }
    expected = interpret(body, dict(zip((v.name for v in body.inputs), arrays, strict=True)), sizes=sizes)
    buffers, inners = [], []
    for label, array in [*zip((v.name for v in body.inputs), arrays, strict=True)] + [
        (o, np.zeros(e.shape, e.dtype)) for o, e in zip(body.outputs, expected, strict=True)
    ]:
        full = [n + b + a for n, (b, a) in zip(array.shape, layouts[label].halo, strict=True)]
        buffer, inner = _buffer(layouts[label], array, full)
        buffers.append(buffer)
        inners.append(inner)
    func = emit(name, body, layouts, isa, list(dims.values()), fill)
    compiled = Compiled(func, isa, len(buffers), len(dims))
    results = compiled.run(buffers, [sizes[d] for d in dims])
    count = len(body.inputs)
    for before, after in zip(buffers[:count], results[:count], strict=True):
        assert before.tobytes() == after.tobytes(), "an input was written"
    found = []
    for label, before, result, inner in zip(
        body.outputs, buffers[count:], results[count:], inners[count:], strict=True
    ):
        outside = np.ones(result.shape, bool)
        outside[inner] = False
        if label in fill:
            assert np.all(result[outside] == np.asarray(fill[label], result.dtype)), "halo not filled"
        else:
            assert result[outside].tobytes() == before[outside].tobytes(), "halo written"
        found.append(result[inner])
    return found


def check(
    emit: Callable[..., Any],
    body: Graph,
    arrays: Sequence[np.ndarray],
    isa: Isa,
    rtol: float = 0.0,
    atol: float = 0.0,
    **options: Any,
) -> None:
    """Run a region and compare with the interpreter: exactly, or within the given bounds for floats."""
    sizes = {
        str(d.name): n
        for v, array in zip(body.inputs, arrays, strict=True)
        for d, n in zip(v.shape, array.shape, strict=True)
        if not isinstance(d, int)
    }
    expected = interpret(body, dict(zip((v.name for v in body.inputs), arrays, strict=True)), sizes=sizes)
    results = run_region(emit, body, arrays, isa, **options)
    for result, right in zip(results, expected, strict=True):
        assert result.shape == right.shape and result.dtype == right.dtype, (result.shape, right.shape, result.dtype)
        exact = result.dtype.kind in "biu" or result.dtype == "float64"
        actual, wanted = (result, right) if exact else (result.astype("float32"), right.astype("float32"))
        if rtol or atol:
            np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(actual, wanted)


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Random numbers that exercise a dtype."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
    return (rng.standard_normal(shape) * 3).astype(kind)
