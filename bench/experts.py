"""Hard experts and output layers beside torch and onnxruntime.

    python bench/experts.py [--row experts|words|levels] [--classes 224] [--tokens 1,32,256] [--blocks N]
                            [--quantize none|int8-dynamic|int4]

One thread each, taking turns in blocks; processor time (other work on the machine counts less), ratios of medians. The
results are compared first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxruntime import OrtValue
from onnxruntime.quantization import quantize_dynamic
from turns import measure

import dlc
from dlc import functions
from dlc.bench import onnxruntime_session

Engine = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Row:
    """A line of the table: engines by name, ours first, and the exact result."""

    label: str
    engines: dict[str, Engine]
    exact: np.ndarray


def model_of(
    function: Any,
    inputs: dict[str, np.ndarray],
    weights: dict[str, np.ndarray],
    order: Sequence[str],
    outputs: Sequence[int] = (),
) -> Any:
    """A model that is one call of a function; the first dimension of its inputs and of its output is symbolic."""
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in inputs.items()}
    graph = helper.make_graph(
        [helper.make_node(function.name, list(order), ["y"], "call", domain=functions.DOMAIN)], "g",
        [helper.make_tensor_value_info(n, kinds[n], ["T", *a.shape[1:]]) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["T", *outputs])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(functions.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def onnxruntime_engine(model: Any, feed: dict[str, np.ndarray]) -> Engine:
    """One thread, no spinning; inputs are bound to their places, which is its fastest call."""
    session = onnxruntime_session(model.SerializeToString())
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
    for value in session.get_outputs():
        binding.bind_output(value.name)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy())

    return run


def dlc_engine(session: Any, feed: dict[str, np.ndarray]) -> Engine:
    """A loaded package, inputs and outputs bound to their places."""
    bound = session.bind(feed)
    result, execute = bound.outputs[session.outputs[0].name], bound.run

    def run() -> np.ndarray:
        execute()
        return np.asarray(result)

    return run


# --- experts ---------------------------------------------------------------------------------------------------------


class SparseExperts(torch.nn.Module):
    """The chosen experts alone, one after the other: torch's best form on one core."""

    def __init__(self, weights: dict[str, np.ndarray], integer: bool) -> None:
        super().__init__()
        self.router = torch.from_numpy(weights["router"])
        parts = zip(*(weights[n] for n in ("w1", "b1", "w2", "b2")), strict=True)
        self.experts = torch.nn.ModuleList(self.expert(*part, integer) for part in parts)

    @staticmethod
    def expert(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, b2: np.ndarray, integer: bool) -> torch.nn.Module:
        """One expert, its products perhaps with int8 weights and a scale of the input that is chosen at run time."""
        layers = torch.nn.Sequential(torch.nn.Linear(*w1.shape), torch.nn.ReLU(), torch.nn.Linear(*w2.shape))
        for layer, weight, bias in ((layers[0], w1, b1), (layers[2], w2, b2)):
            layer.weight.data, layer.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias.reshape(-1))
        if not integer:
            return layers
        return torch.ao.quantization.quantize_dynamic(layers, {torch.nn.Linear}, dtype=torch.qint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best, chosen = torch.softmax(x @ self.router, -1).max(-1)
        y = torch.empty_like(x)
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero()[:, 0]
            y[rows] = self.experts[number](x[rows]) * best[rows, None]
        return y


def torch_engine(module: torch.nn.Module, *inputs: np.ndarray) -> Engine:
    """A module without gradients."""
    tensors = [torch.from_numpy(a) for a in inputs]

    def run() -> np.ndarray:
        with torch.inference_mode():
            return module(*tensors).numpy()

    return run


def expert_rows(
    quantize: str, counts: Sequence[int], shape: Sequence[int] = (16, 512, 2048), dense: int = 32
) -> list[Row]:
    """Experts of which the best one is taken for each token; a row for every count of tokens.

    Args:
        shape: experts, width of a token, width between an expert's two layers.
        dense: tokens up to which onnxruntime is there, which computes all experts.
    """
    rng, (experts, inputs, hidden) = np.random.default_rng(0), shape
    shapes = {
        "router": (inputs, experts), "w1": (experts, inputs, hidden), "b1": (experts, 1, hidden),
        "w2": (experts, hidden, inputs), "b2": (experts, 1, inputs),
    }  # fmt: skip
    weights = {n: (rng.standard_normal(s) / max(s[-2], 1) ** 0.5).astype(np.float32) for n, s in shapes.items()}
    function = functions.hard_experts()
    x = rng.standard_normal((256, inputs)).astype(np.float32)
    model = model_of(function, {"x": x}, weights, ["x", *weights], [inputs])
    session = dlc.load(dlc.compile(model, quantize=quantize))
    integer = quantize != "none"
    fp32, module = SparseExperts(weights, False), SparseExperts(weights, integer)
    rows = []
    for tokens in counts:
        given = x[:tokens]
        engines = {"dlc": dlc_engine(session, {"x": given})}
        engines["torch, sparse" + (", dynamic int8" if integer else "")] = torch_engine(module, given)
        if tokens <= dense:
            engines["onnxruntime, dense fp32"] = onnxruntime_engine(model, {"x": given})
        rows.append(Row(f"{tokens} tokens", engines, torch_engine(fp32, given)()))
    return rows


# --- output layers ---------------------------------------------------------------------------------------------------


class ClassSoftmax(torch.nn.Module):
    """p(word) in two levels."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.weights = {n: torch.from_numpy(a) for n, a in weights.items()}

    def forward(self, x: torch.Tensor, classes: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        w, rows = self.weights, torch.arange(len(x))
        first = torch.log_softmax(torch.addmm(w["class_bias"], x, w["class_weight"]), -1)[rows, classes]
        parts = []
        for row, number in enumerate(classes.tolist()):
            parts.append(torch.addmm(w["word_bias"][number], x[row : row + 1], w["word_weight"][number]))
        return first + torch.log_softmax(torch.cat(parts), -1)[rows, words]


class TreeSoftmax(torch.nn.Module):
    """p(word) along the path to a leaf."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.weights = {n: torch.from_numpy(a) for n, a in weights.items()}

    def forward(self, x: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        w = self.weights
        path, sign = w["paths"][word], w["signs"][word]
        logits = torch.bmm(w["weight"][path], x[:, :, None])[:, :, 0] + w["bias"][path]
        return (torch.nn.functional.logsigmoid(logits * sign) * sign.abs()).sum(1)


FEATURES = 512


def word_rows(quantize: str, classes: int) -> list[Row]:
    """Output layers: one word in two levels and along a path of 16, the best one of all and of two levels."""
    (row,), weights = level_rows(quantize, classes)
    return [row, tree_row(quantize), full_row(quantize), _best_row(quantize, weights)]


def _features() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, FEATURES)).astype(np.float32)


def level_rows(quantize: str, classes: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    """log p of one word of `classes` squared, in two levels; and the weights."""
    rng, (words, features) = np.random.default_rng(0), (classes, FEATURES)
    shapes = {
        "class_weight": (features, classes), "class_bias": (classes,), "word_weight": (classes, features, words),
        "word_bias": (classes, words),
    }  # fmt: skip
    weights = {n: (rng.standard_normal(s) / features**0.5).astype(np.float32) for n, s in shapes.items()}
    x = rng.standard_normal((1, features)).astype(np.float32)
    given = {"x": x, "class": rng.integers(0, classes, 1), "word": rng.integers(0, words, 1)}
    model = model_of(functions.class_softmax(), given, weights, ["x", *weights, "class", "word"])
    session = dlc.load(dlc.compile(model, quantize=quantize))
    peer = torch_engine(ClassSoftmax(weights), *given.values())
    engines = {"dlc": dlc_engine(session, given), "torch": peer, "onnxruntime": onnxruntime_engine(model, given)}
    return [Row(f"two levels of {classes}", engines, peer())], weights


def _best_row(quantize: str, weights: dict[str, np.ndarray]) -> Row:
    """The most probable word in two levels, best first; the classes as sharply chosen as by a trained model."""
    x, function, sharp = (
        _features(),
        functions.class_best(),
        {n: a * 8 if n == "class_weight" else a for n, a in weights.items()},
    )
    model = model_of(function, {"x": x}, sharp, ["x", *sharp])
    del model.graph.output[:], model.graph.node[0].output[:]
    model.graph.node[0].output.extend(["class", "word", "y"])
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["T"]))
    session, tensors = (
        dlc.load(dlc.compile(model, quantize=quantize)),
        {n: torch.from_numpy(a) for n, a in sharp.items()},
    )

    def every() -> np.ndarray:
        with torch.inference_mode():
            row = torch.from_numpy(x)
            classes = torch.log_softmax(torch.addmm(tensors["class_bias"], row, tensors["class_weight"]), -1)
            logits = torch.matmul(row[:, None], tensors["word_weight"])[:, 0] + tensors["word_bias"]
            return (classes[0, :, None] + torch.log_softmax(logits, -1)).amax().reshape(1).numpy()

    engines = {
        "dlc": dlc_engine(session, {"x": x}),
        "torch, all words": every,
        "onnxruntime": onnxruntime_engine(model, {"x": x}),
    }
    return Row("the best word in two levels", engines, every())


def tree_row(quantize: str) -> Row:
    """log p of one of 65,536 words along a path of a binary tree."""
    x, rng, depth, features = _features(), np.random.default_rng(1), 16, FEATURES
    count = 1 << depth
    # A complete tree: the inner nodes are a heap, and a word's number in binary is its path.
    bits = (np.arange(count)[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    heap = np.concatenate([np.ones((count, 1), np.int64), bits], 1)
    for step in range(1, depth + 1):
        heap[:, step] += 2 * heap[:, step - 1]
    weights = {
        "weight": (rng.standard_normal((count - 1, features)) / features**0.5).astype(np.float32),
        "bias": rng.standard_normal(count - 1).astype(np.float32),
        "paths": heap[:, :depth] - 1, "signs": (1 - 2 * bits).astype(np.float32),
    }  # fmt: skip
    given = {"x": x, "word": rng.integers(0, count, 1)}
    model = model_of(functions.tree_softmax(), given, weights, ["x", *weights, "word"])
    session = dlc.load(dlc.compile(model, quantize=quantize))
    peer = torch_engine(TreeSoftmax(weights), *given.values())
    engines = {"dlc": dlc_engine(session, given), "torch": peer, "onnxruntime": onnxruntime_engine(model, given)}
    return Row(f"a path of {depth}", engines, peer())


def full_row(quantize: str) -> Row:
    """The most probable of 50,176 words, from the whole softmax."""
    x, rng, words, features = _features(), np.random.default_rng(2), 50176, FEATURES
    weight = (rng.standard_normal((features, words)) / features**0.5).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["logits"], "logits"),
        helper.make_node("Softmax", ["logits"], ["p"], "p", axis=-1),
        helper.make_node("ArgMax", ["p"], ["y"], "y", axis=-1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["T", features])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["T"])],
        [numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session, module = dlc.load(dlc.compile(model, quantize=quantize)), torch.nn.Linear(features, words, False)
    module.weight.data = torch.from_numpy(weight.T.copy())
    name = "torch"
    if quantize != "none":
        module = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {torch.nn.Linear}, torch.qint8)
        name = "torch, dynamic int8"
    peer = torch_engine(torch.nn.Sequential(module, _Best()), x)
    engines = {"dlc": dlc_engine(session, {"x": x}), name: peer, "onnxruntime": onnxruntime_engine(model, {"x": x})}
    if quantize != "none":
        engines["onnxruntime, dynamic int8"] = onnxruntime_engine(_dynamic_int8(model), {"x": x})
    return Row("the best of a full softmax", engines, (x @ weight).argmax(-1))


def _dynamic_int8(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("model.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quantize_dynamic(*paths)
        return onnx.load(paths[1])


class _Best(torch.nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits, -1).argmax(-1)


# --- the table -------------------------------------------------------------------------------------------------------


ROWS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "experts": lambda options: expert_rows(options.quantize, options.tokens, options.shape, options.dense),
    "words": lambda options: word_rows(options.quantize, options.classes),
    "levels": lambda options: level_rows(options.quantize, options.classes)[0],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), default="experts")
    parser.add_argument("--classes", type=int, default=224, help="of a word, and words of a class")
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=[1, 32, 256])
    parser.add_argument("--shape", type=lambda s: [int(n) for n in s.split(",")], default=[16, 512, 2048])
    parser.add_argument("--dense", type=int, default=32, help="tokens up to which onnxruntime is measured")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--quantize", choices=["none", "int8-dynamic", "int4"], default="none")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for row in ROWS[options.row](options):
        noise = [np.square(run() - row.exact).sum() for run in row.engines.values()]
        power, times = np.square(row.exact).sum(), measure(row.engines, options.blocks, 0.02, time.process_time)
        ours = float(np.median(times["dlc"]))
        print(f"{row.label}, {options.quantize}")
        for (name, found), error in zip(times.items(), noise, strict=True):
            decibels = 10 * np.log10(power / max(error, 1e-30))
            print(f"  {np.median(found):9.4f} ms {np.median(found) / ours:8.2f} times ours {decibels:6.1f} dB  {name}")


if __name__ == "__main__":
    main()
