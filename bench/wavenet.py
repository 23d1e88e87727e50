"""WaveNet as ONNX: generation as one Loop, in two spellings of its delay lines, and the step that a host drives.

10 layers of dilations 1, 2, ... 512, three times over; kernel 2, 64 residual and 128 skip channels, mu-law codes of 256
levels; random weights. A delay line of a layer holds its last `dilation` inputs. Two spellings:

- ``rows``: a state (dilation, channels), read by Gather and written by ScatterND at the iteration modulo its length;
- ``shift``: a state (1, channels, dilation), moved on by Concat and Slice, read by a dilated convolution.

Modes: ``greedy`` (argmax is the next input), ``sampled`` (by given uniform numbers), ``forced`` (the inputs are given;
the result is the logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEVELS = 256
MODES, SPELLINGS = ("greedy", "sampled", "forced"), ("rows", "shift")
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Shape:
    """The network's size; `dilations` has an entry a layer."""

    dilations: tuple[int, ...] = tuple(1 << i for i in range(10)) * 3
    residual: int = 64
    skip: int = 128


class _Graph:
    """Collects nodes and constants; a constant is written once."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.prefix, self.count = prefix, 0

    def constant(self, name: str, array: np.ndarray) -> str:
        """The name of a constant."""
        self.constants[name] = array
        return name

    def op(self, kind: str, inputs: Sequence[str], output: str = "", **attrs: Any) -> str:
        """One node; returns its output."""
        self.count += 1
        output = output or f"{self.prefix}{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"{kind}_{output}", **attrs))
        return output

    def halves(self, x: str, axis: int, size: int) -> list[str]:
        """`x` split in two along `axis`."""
        self.count += 1
        outputs = [f"{self.prefix}half{self.count}{side}" for side in "ab"]
        both = self.constant(f"sizes{size}", np.array([size, size], np.int64))
        self.nodes.append(helper.make_node("Split", [x, both], outputs, f"Split_{self.count}", axis=axis))
        return outputs


def weights(shape: Shape = Shape(), seed: int = 0) -> dict[str, np.ndarray]:  # noqa: B008
    """Random weights as matrices (inputs, outputs): those of a layer's older tap come first."""
    rng = np.random.default_rng(seed)

    def draw(inputs: int, outputs: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((inputs, outputs)) * gain / np.sqrt(inputs)).astype(np.float32)

    r, s = shape.residual, shape.skip
    found = {"embedding": draw(LEVELS, r, 16.0)}
    for layer in range(len(shape.dilations)):
        for name, size in (("in", (2 * r, 2 * r)), ("skip", (r, s)), ("res", (r, r))):
            found[f"{name}{layer}"] = draw(*size, gain=1.0)
            found[f"{name}{layer}_bias"] = (rng.standard_normal(size[1]) * 0.1).astype(np.float32)
    for name, size in (("head", (s, s)), ("out", (s, LEVELS))):
        found[name] = draw(*size, gain=2.0)
        found[f"{name}_bias"] = (rng.standard_normal(size[1]) * 0.1).astype(np.float32)
    return found


class _Network:
    """Writes one step of the network into a graph; `spelling` decides how layers are written."""

    def __init__(self, graph: _Graph, shape: Shape, values: dict[str, np.ndarray], spelling: str) -> None:
        self.graph, self.shape, self.values, self.shift = graph, shape, values, spelling == "shift"

    def dense(self, x: str, name: str) -> str:
        """A linear layer: Gemm, or a convolution of one position."""
        bias = self.graph.constant(f"{name}_bias", self.values[f"{name}_bias"])
        if not self.shift:
            return self.graph.op("Gemm", [x, self.graph.constant(name, self.values[name]), bias])
        kernel = np.ascontiguousarray(self.values[name].T[:, :, None])
        return self.graph.op("Conv", [x, self.graph.constant(name, kernel), bias])

    def taps(self, name: str) -> np.ndarray:
        """A layer's input matrix as the kernel of a convolution: (outputs, channels, 2)."""
        matrix = self.values[name]
        return np.ascontiguousarray(matrix.reshape(2, -1, matrix.shape[1]).transpose(2, 1, 0))

    def embed(self, code: str) -> str:
        """The embedding of a code (1,)."""
        table = self.graph.constant("embedding", self.values["embedding"])
        x = self.graph.op("Gather", [table, code])
        axis = self.graph.constant("last", np.array([2], np.int64))
        return self.graph.op("Unsqueeze", [x, axis]) if self.shift else x

    def layer(self, number: int, mixed: str, x: str) -> tuple[str, str]:
        """(output, skip) of a layer whose two taps have been mixed."""
        a, b = self.graph.halves(mixed, 1, self.shape.residual)
        gate = self.graph.op("Mul", [self.graph.op("Tanh", [a]), self.graph.op("Sigmoid", [b])])
        skip = self.dense(gate, f"skip{number}")
        return self.graph.op("Add", [self.dense(gate, f"res{number}"), x]), skip

    def head(self, skips: Sequence[str]) -> str:
        """The logits (1, LEVELS)."""
        total = skips[0]
        for skip in skips[1:]:
            total = self.graph.op("Add", [total, skip])
        hidden = self.graph.op("Relu", [self.dense(self.graph.op("Relu", [total]), "head")])
        logits = self.dense(hidden, "out")
        shape = self.graph.constant("row", np.array([1, LEVELS], np.int64))
        return self.graph.op("Reshape", [logits, shape]) if self.shift else logits

    def rows_step(self, x: str, read: Any, write: Any) -> str:
        """All layers; `read(layer)` gives the older tap (1, residual), `write(layer, x)` takes the newer one."""
        skips = []
        for layer in range(len(self.shape.dilations)):
            both = self.graph.op("Concat", [read(layer), x], axis=1)
            write(layer, x)
            x, skip = self.layer(layer, self.dense(both, f"in{layer}"), x)
            skips.append(skip)
        return self.head(skips)

    def shift_step(self, x: str) -> str:
        """All layers over the states of the shift spelling."""
        ends = self.graph.constant("end", np.array([1 << 40], np.int64))
        one = self.graph.constant("one", np.array([1], np.int64))
        axis = self.graph.constant("last", np.array([2], np.int64))
        skips = []
        for layer, dilation in enumerate(self.shape.dilations):
            line = self.graph.op("Concat", [f"state{layer}", x], axis=2)
            self.graph.op("Slice", [line, one, ends, axis], f"state{layer}_new")
            kernel = self.graph.constant(f"in{layer}", self.taps(f"in{layer}"))
            bias = self.graph.constant(f"in{layer}_bias", self.values[f"in{layer}_bias"])
            mixed = self.graph.op("Conv", [line, kernel, bias], dilations=[dilation])
            x, skip = self.layer(layer, mixed, x)
            skips.append(skip)
        return self.head(skips)


def _rows_states(graph: _Graph, network: _Network, x: str) -> str:
    """The network over states that are read and written at the iteration modulo their length."""
    places: dict[int, str] = {}
    for dilation in dict.fromkeys(network.shape.dilations):
        period = graph.constant(f"period{dilation}", np.array([dilation], np.int64))
        places[dilation] = graph.op("Mod", ["i", period])
    axis = graph.constant("last", np.array([1], np.int64))

    def read(layer: int) -> str:
        return graph.op("Gather", [f"state{layer}", places[network.shape.dilations[layer]]])

    def write(layer: int, value: str) -> None:
        place = graph.op("Unsqueeze", [places[network.shape.dilations[layer]], axis])
        graph.op("ScatterND", [f"state{layer}", place, value], f"state{layer}_new")

    return network.rows_step(x, read, write)


def _drawn(graph: _Graph, logits: str) -> str:
    """The code at which the distribution function passes the iteration's uniform number."""
    number = graph.op("Gather", ["uniform", "i"])
    mass = graph.op("Softmax", [logits], axis=1)
    cdf = graph.op("CumSum", [mass, graph.constant("column", np.array(1, np.int64))])
    below = graph.op("Cast", [graph.op("Less", [cdf, number])], to=_INT64)
    axis = graph.constant("columns", np.array([1], np.int64))
    code = graph.op("ReduceSum", [below, axis], keepdims=0)
    return graph.op("Min", [code, graph.constant("highest", np.array(LEVELS - 1, np.int64))])


def _info(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _model(nodes: Any, inputs: Any, outputs: Any, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "wavenet", list(inputs), list(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def generator(mode: str, spelling: str, steps: int, shape: Shape = Shape(), seed: int = 0) -> onnx.ModelProto:  # noqa: B008
    """The whole generation as one Loop.

    Inputs: none of mode greedy, which makes `steps` samples; ``uniform`` (t,) of mode sampled; ``codes`` (t, 1) of mode
    forced. Output: ``samples`` (t, 1) int64, or ``logits`` (t, 1, LEVELS) of mode forced.
    """
    body = _Graph("b_")
    network = _Network(body, shape, weights(shape, seed), spelling)
    forced = mode == "forced"
    x = network.embed(body.op("Gather", ["codes", "i"]) if forced else "last_code")
    logits = network.shift_step(x) if spelling == "shift" else _rows_states(body, network, x)
    body.op("Identity", ["going"], "goes")
    if forced:
        result = _info(body.op("Identity", [logits], "step_logits"), _FLOAT, [1, LEVELS])
    else:
        code = _drawn(body, logits) if mode == "sampled" else body.op("ArgMax", [logits], axis=1, keepdims=0)
        result = _info(body.op("Identity", [code], "sample"), _INT64, [1])
    lines = {f"state{n}": [1, shape.residual, d] if spelling == "shift" else [d, shape.residual]
             for n, d in enumerate(shape.dilations)}  # fmt: skip
    states = {name: _info(name, _FLOAT, extents) for name, extents in lines.items()}
    start = {f"{name}_start": np.zeros(extents, np.float32) for name, extents in lines.items()}
    if not forced:
        states["last_code"] = _info("last_code", _INT64, [1])
        start["last_code_start"] = np.array([LEVELS // 2], np.int64)
    news = [_info(f"{name}_new", _FLOAT, lines[name]) for name in lines]
    if not forced:
        news.append(_info(body.op("Identity", ["sample"], "last_code_new"), _INT64, [1]))
    graph = helper.make_graph(
        body.nodes, "step", [_info("i", _INT64, []), _info("going", _BOOL, []), *states.values()],
        [_info("goes", _BOOL, []), *news, result],
    )  # fmt: skip
    given = {"sampled": _info("uniform", _FLOAT, ["t"]), "forced": _info("codes", _INT64, ["t", 1])}
    main, name = _Graph(), "logits" if forced else "samples"
    trips = main.constant("steps", np.array(steps, np.int64))
    if mode in given:
        trips = main.op("Squeeze", [main.op("Shape", [given[mode].name], end=1)])
    main.op("Loop", [trips, "", *start], f"end_{next(iter(states))}", body=graph)
    main.nodes[-1].output[:] = [*(f"end_{state}" for state in states), name]
    extents = [d.dim_value for d in result.type.tensor_type.shape.dim]
    count = "t" if mode in given else steps
    output = _info(name, result.type.tensor_type.elem_type, [count, *extents])
    constants = {**main.constants, **body.constants, **start}
    return _model(main.nodes, [given[mode]] if mode in given else [], [output], constants)


def step(shape: Shape = Shape(), seed: int = 0) -> onnx.ModelProto:  # noqa: B008
    """One step for a host that keeps the delay lines: ``code`` (1,) and ``old`` (layers, residual) to ``logits`` (1,
    LEVELS) and ``new`` (layers, residual), the rows to keep."""
    graph = _Graph()
    layers, kept = len(shape.dilations), []
    network = _Network(graph, shape, weights(shape, seed), "rows")
    graph.op("Split", ["old"], "old0", axis=0)
    graph.nodes[-1].output[:] = [f"old{n}" for n in range(layers)]
    graph.op("Identity", [network.rows_step(network.embed("code"), lambda n: f"old{n}", lambda n, x: kept.append(x))],
             "logits")  # fmt: skip
    graph.op("Concat", kept, "new", axis=0)
    lines = [layers, shape.residual]
    inputs = [_info("code", _INT64, [1]), _info("old", _FLOAT, lines)]
    return _model(
        graph.nodes, inputs, [_info("logits", _FLOAT, [1, LEVELS]), _info("new", _FLOAT, lines)], graph.constants
    )
