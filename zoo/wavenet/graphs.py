"""The networks as plain ONNX: the likelihood of given codes, and WaveNet's generation as one Loop.

Weights have their names from training (``layers.3.mix.weight``), so an ONNX file of the likelihood is all that is
needed to make the generation. A delay line of a layer of dilation d is a state (d, residual): the loop reads row
iteration mod d, which holds the layer's input of d iterations ago, by Gather and replaces it by ScatterND.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.zoo.graphs import Graph, Weights, info
from dlc.zoo.wavenet.data import HOP, INPUT, LEVELS, MEL_INPUT, SILENCE

OUTPUT = "logits"
UNIFORM, SAMPLES = "uniform", "samples"
_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def gate(graph: Graph, mixed: str, size: int) -> str:
    """tanh of the first half times sigmoid of the second."""
    a, b = graph.split(mixed, 2, size)
    return graph.op("Mul", [graph.op("Tanh", [a]), graph.op("Sigmoid", [b])])


# --- the likelihood of given codes


def likelihood(weights: Weights, dilations: Sequence[int]) -> ModelProto:
    """WaveNet: ``codes`` int64 (1, T), and ``mel`` float32 (1, bands, T) where it is conditioned, to ``logits`` float32
    (1, 256, T); those at t tell of code t + 1."""
    graph = Graph(weights)
    size = weights["embedding.weight"].shape[1]
    inputs = [info(INPUT, _INT64, [1, "T"])]
    if conditioned(weights):
        inputs.append(info(MEL_INPUT, _FLOAT, [1, weights["layers.0.condition.weight"].shape[1], "T"]))

    def convolution(x: str, name: str, **attributes: Any) -> str:
        bias = [graph.weight(f"{name}.bias")] if f"{name}.bias" in weights else []
        return graph.op("Conv", [x, graph.weight(f"{name}.weight"), *bias], **attributes)

    embedded = graph.op("Gather", [graph.weight("embedding.weight"), INPUT])
    x = graph.op("Transpose", [embedded], perm=[0, 2, 1])
    skips = []
    for number, dilation in enumerate(dilations):
        layer = f"layers.{number}"
        mixed = convolution(x, f"{layer}.mix", dilations=[dilation], pads=[dilation, 0])
        if conditioned(weights):
            mixed = graph.op("Add", [mixed, convolution(MEL_INPUT, f"{layer}.condition")])
        gated = gate(graph, mixed, size)
        skips.append(convolution(gated, f"{layer}.skip"))
        if number + 1 < len(dilations):  # nobody reads the last layer's residual output
            x = graph.op("Add", [x, convolution(gated, f"{layer}.res")])
    hidden = graph.op("Relu", [convolution(graph.op("Relu", [graph.total(skips)]), "head")])
    logits = convolution(hidden, "out")
    graph.op("Identity", [logits], [OUTPUT])
    return graph.model("wavenet", inputs, [info(OUTPUT, _FLOAT, [1, LEVELS, "T"])])


def recurrent(weights: Weights) -> ModelProto:
    """The LSTM: ``codes`` int64 (1, T) to ``logits`` float32 (1, 256, T)."""
    graph = Graph(weights)
    hidden = weights["lstm.weight_hh_l0"].shape[1]

    def gates(name: str) -> np.ndarray:
        """ONNX orders the gates i, o, f, c; torch i, f, c, o."""
        i, f, c, o = np.split(weights[name], 4)
        return np.concatenate([i, o, f, c])[None]

    bias = np.concatenate([gates("lstm.bias_ih_l0"), gates("lstm.bias_hh_l0")], 1)
    embedded = graph.op("Gather", [graph.weight("embedding.weight"), INPUT])
    steps = graph.op("Transpose", [embedded], perm=[1, 0, 2])
    matrices = [graph.constant(name, gates(name)) for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0")]
    states = graph.op("LSTM", [steps, *matrices, graph.constant("lstm.bias", bias)], hidden_size=hidden)
    flat = graph.op("Squeeze", [states, graph.integers(1)])
    product = graph.op("MatMul", [flat, graph.constant("out.weight", weights["out.weight"].T)])
    logits = graph.op("Add", [product, graph.weight("out.bias")])
    graph.op("Transpose", [logits], [OUTPUT], perm=[1, 2, 0])
    return graph.model("wavenet", [info(INPUT, _INT64, [1, "T"])], [info(OUTPUT, _FLOAT, [1, LEVELS, "T"])])


def conditioned(weights: Weights) -> bool:
    """Whether the network takes mel frames."""
    return "layers.0.condition.weight" in weights


def read_likelihood(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """The weights and the dilations of what `likelihood` made.

    Raises:
        DlcError: it is another model.
    """
    graph = onnx.load(path).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    mixing = [node for node in graph.node if len(node.input) > 1 and node.input[1].endswith(".mix.weight")]
    if not mixing:
        raise DlcError(f"{path} has no layers.N.mix.weight: it is no WaveNet of this family")
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in mixing]
    return weights, [int(found["dilations"][0]) for found in attributes]


# --- generation


def generator(weights: Weights, dilations: Sequence[int]) -> ModelProto:
    """The generation: ``uniform`` float32 (T,), numbers in 0..1 that the codes are drawn by, and ``mel`` float32
    (bands, F), a frame for each 80 samples, where it is conditioned, to ``samples`` int64 (T, 1)."""
    size = weights["embedding.weight"].shape[1]
    main, body = Graph(weights), Graph(weights, "step_")
    inputs = [info(UNIFORM, _FLOAT, ["T"])]
    if conditioned(weights):
        inputs.append(info(MEL_INPUT, _FLOAT, [weights["layers.0.condition.weight"].shape[1], "F"]))
        matrix = np.concatenate([weights[f"layers.{n}.condition.weight"][:, :, 0] for n in range(len(dilations))])
        frames = main.op("Transpose", [MEL_INPUT], perm=[1, 0])
        main.op("MatMul", [frames, main.constant("condition", matrix.T)], ["conditions"])
    code = _drawn(body, _step(body, dilations, size))
    body.op("Identity", [code], ["sample"])
    body.op("Identity", ["sample"], ["code_new"])
    body.op("Identity", ["going"], ["goes"])
    states = {f"line{n}": info(f"line{n}", _FLOAT, [d, size]) for n, d in enumerate(dilations)}
    start = {f"line{n}_start": np.zeros((d, size), np.float32) for n, d in enumerate(dilations)}
    states["code"] = info("code", _INT64, [1])
    start["code_start"] = np.array([SILENCE], np.int64)
    news = [info(f"{name}_new", v.type.tensor_type.elem_type, _extents(v)) for name, v in states.items()]
    step = helper.make_graph(
        body.nodes, "step", [info("i", _INT64, []), info("going", _BOOL, []), *states.values()],
        [info("goes", _BOOL, []), *news, info("sample", _INT64, [1])],
    )  # fmt: skip
    trips = main.op("Squeeze", [main.op("Shape", [UNIFORM])])
    main.op("Loop", [trips, "", *start], [*(f"{name}_end" for name in states), SAMPLES], body=step)
    return main.model("wavenet", inputs, [info(SAMPLES, _INT64, ["T", 1])], {**body.constants, **start})


def _step(body: Graph, dilations: Sequence[int], size: int) -> str:
    """The logits (1, 256) of one iteration."""
    weights = body.weights

    def dense(x: str, name: str) -> str:
        matrix = body.constant(f"{name}.matrix", weights[f"{name}.weight"][:, :, 0].T)
        return body.op("Gemm", [x, matrix, body.weight(f"{name}.bias")])

    x = body.op("Gather", [body.weight("embedding.weight"), "code"])
    places = {d: body.op("Mod", ["i", body.integers(d)]) for d in dict.fromkeys(dilations)}
    extra = []
    if conditioned(weights):
        frame = body.op("Gather", ["conditions", body.op("Div", ["i", body.integers(HOP)])])
        extra = body.split(frame, len(dilations), 2 * size)
    skips = []
    for number, dilation in enumerate(dilations):
        line, layer = f"line{number}", f"layers.{number}"
        older = body.op("Gather", [line, places[dilation]])
        place = body.op("Unsqueeze", [places[dilation], body.integers(1)])
        body.op("ScatterND", [line, place, x], [f"{line}_new"])
        kernel = weights[f"{layer}.mix.weight"]
        matrix = body.constant(f"{layer}.mix.matrix", np.concatenate([kernel[:, :, 0].T, kernel[:, :, 1].T]))
        both = body.op("Concat", [older, x], axis=1)
        mixed = body.op("Gemm", [both, matrix, body.weight(f"{layer}.mix.bias")])
        gated = gate(body, body.op("Add", [mixed, extra[number]]) if extra else mixed, size)
        skips.append(dense(gated, f"{layer}.skip"))
        if number + 1 < len(dilations):
            x = body.op("Add", [x, dense(gated, f"{layer}.res")])
    hidden = body.op("Relu", [dense(body.op("Relu", [body.total(skips)]), "head")])
    return dense(hidden, "out")


def _drawn(body: Graph, logits: str) -> str:
    """The code at which the distribution function passes the iteration's number, (1,)."""
    number = body.op("Gather", [UNIFORM, "i"])
    shares = body.op("Softmax", [logits], axis=1)
    cdf = body.op("CumSum", [shares, body.constant("one", np.array(1, np.int64))])
    below = body.op("Cast", [body.op("Less", [cdf, number])], to=_INT64)
    code = body.op("ReduceSum", [below, body.integers(1)], keepdims=0)
    return body.op("Min", [code, body.constant("highest", np.array(LEVELS - 1, np.int64))])


def _extents(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
