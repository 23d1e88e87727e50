"""Graphs of integer operators for the accelerator, written directly, and running them on the simulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node, Origin, Value
from dlc.ir.interpret import interpret
from dlc.ir.ops.windows import output_extents
from dlc.targets.vta.config import Config
from dlc.targets.vta.program import Program, compile_layers
from dlc.targets.vta.select import Selection, select
from dlc.targets.vta.simulator import Simulator


@dataclass
class Net:
    """A graph under construction over images ``x`` of (1, C, H, W) codes."""

    shape: tuple[int, ...]
    seed: int = 0
    shifts: bool = False
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.values = {"x": Value("x", (1, *self.shape), "uint8")}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        self.values[name] = Value(name, self.constants[name].shape, str(self.constants[name].dtype))
        return name

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], dtype: str, /, **attrs: Any) -> str:
        value = Value(f"v{len(self.nodes)}", shape, dtype)
        origin = Origin(op.rsplit(".", 1)[-1], value.name, value.name)
        self.nodes.append(Node(op, tuple(inputs), (value,), attrs, origin))
        self.values[value.name] = value
        return value.name

    def weight(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def conv(
        self, x: str, out: int, kernel: tuple[int, int], strides: tuple[int, int] = (1, 1), pads: Any = (0,) * 4,
        dilations: tuple[int, int] = (1, 1), groups: int = 1, zero: int = 0, bias: bool = True,
    ) -> str:  # fmt: skip
        shape = self.values[x].shape
        attrs = {"strides": strides, "pads": pads, "dilations": dilations}
        extents = output_extents(shape[2:], kernel, attrs)
        weight = self.constant(self.weight(out, shape[1] // groups, *kernel))
        result = self.node(
            "dlc.conv", [x, weight], (1, out, *extents), "int32", groups=groups, layout="channels_first",
            out_dtype="int32", x_zero_point=zero, **attrs,
        )  # fmt: skip
        return self.biased(result, (out, 1, 1)) if bias else result

    def biased(self, x: str, shape: tuple[int, ...]) -> str:
        bias = self.constant(self.rng.integers(-20000, 20000, shape).astype(np.int32))
        return self.node("relax.add", [x, bias], self.values[x].shape, "int32")

    def dense(self, x: str, out: int, zero: int = 0) -> str:
        weight = self.constant(self.weight(self.values[x].shape[1], out))
        attrs = {"a_zero_point": zero, "b_zero_point": 0, "out_dtype": "int32"}
        return self.biased(self.node("dlc.matmul", [x, weight], (1, out), "int32", **attrs), (out,))

    def pool(self, x: str, mode: str, kernel: Any, strides: Any, pads: Any = (0,) * 4, zero: int = 0) -> str:
        shape = self.values[x].shape
        attrs = {"strides": strides, "pads": pads, "dilations": (1, 1), "ceil_mode": False, "count_include_pad": False}
        extents = output_extents(shape[2:], kernel, attrs)
        dtype = "uint8" if mode == "max" else "int32"
        more = {"x_zero_point": zero} if mode == "sum" else {}
        return self.node(
            "dlc.pool", [x], (*shape[:2], *extents), dtype, mode=mode, kernel=kernel, layout="channels_first",
            out_dtype=dtype, **attrs, **more,
        )  # fmt: skip

    def requantize(
        self, terms: list[str], zeros: list[int], spread: int, zero: int, lo: int, hi: int, channel: bool
    ) -> str:
        """`spread`: the magnitude of the first term, which becomes about 100 steps."""
        value = self.values[terms[0]]
        rest = (1,) * (len(value.shape) - 2)
        shape = (value.shape[1], *rest) if channel else ()
        count = len(terms)
        if self.shifts:
            shift = np.full(shape, max(0, int(np.log2(max(spread, 1) / 100))), np.int32)
            shift = np.maximum(shift + self.rng.integers(-1, 2, shape).astype(np.int32), 0)
            residual = np.left_shift(1, np.maximum(shift - 1, 0))
            multipliers = [np.ones(shape), residual][:count]
        else:
            bits = 31 - (count > 1)
            first = self.rng.integers(2 ** (bits - 1), 2**bits, shape)
            shift = np.asarray(
                np.maximum(bits - np.log2(100 / max(spread, 1)), 1).astype(np.int32) * np.ones(shape, np.int32)
            )
            second = np.minimum(np.exp2(shift) * 0.4, 2**bits - 1)
            multipliers = [first, second][:count]
        names = [self.constant(np.asarray(m).astype(np.int32)) for m in multipliers]
        names.append(self.constant(np.asarray(shift, np.int32)))
        return self.node(
            "dlc.requantize", [*terms, *names], value.shape, "uint8", terms=count, mode="fixed",
            term_zero_points=tuple(zeros), zero_point=zero, lo=lo, hi=hi, out_dtype="uint8",
        )  # fmt: skip

    def graph(self, *outputs: str) -> Graph:
        return Graph("main", (self.values["x"],), outputs, tuple(self.nodes), self.constants)


def run(graph: Graph, config: Config, seed: int = 0) -> tuple[dict[str, np.ndarray], Selection, Program]:
    """Run everything that the accelerator takes of a graph, checked layer by layer against the interpreter."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, graph.inputs[0].shape).astype(np.uint8)
    expected: dict[str, np.ndarray] = {}
    interpret(graph, {"x": x}, lambda node, result: expected.__setitem__(node.output.name, result))
    selection = select(graph, config)
    layers = [match.layer for match in selection.matches.values()]
    program = compile_layers(layers, ["x"], config)
    arena = program.image()
    for place in program.inputs["x"]:
        tensor = program.tensors[place]
        tensor.write(arena, x[0].reshape(tensor.patches.shape if tensor.patches else tensor.shape))
    Simulator(config, arena).run(program.instructions)
    for layer in layers:
        actual = program.tensors[layer.output].read(arena)
        np.testing.assert_array_equal(actual, expected[layer.output].reshape(layer.shape), err_msg=layer.output)
    return expected, selection, program
