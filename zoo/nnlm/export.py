"""Export to ONNX, opset 18: the output layers are model-local functions.

The graph has the input ``ngram``, int64 (N, K), K - 1 words of context and the word asked for, and the output
``log10``, float32 (N,), as in the n-gram family. K is 6; for the LSTM, which starts from zero in each row, it is 33.
Embeddings and body are plain nodes; the rest is one node of a function in the domain ``dlc.functions``, whose body is
written in standard operators, so any ONNX runtime runs it. A compiler may recognise the function by domain, name and
inputs. Each takes ``features``, float32 (N, D), and ``word``, int64 (N,), beside float32 weights and int32 tables for a
vocabulary of V words, and gives ``log_p``, natural logarithms:

- ``FullLogProb(features, word, rows (V, D), bias (V,))``: a softmax over all words.
- ``ShortlistLogProb(features, word, rows (S + 1, D), bias (S + 1,), place (V,), within (V,))``: a softmax over S words
  and "another word"; ``place`` is a word's output, ``within`` the log of its share of that output.
- ``ClassLogProb(features, word, class_rows (C, D), class_bias (C,), rows (V, D), bias (V,), start (C,), size (C,),
  class_of (V,), slot (V,))``: a softmax over classes, and one over the words of the word's own class, whose rows,
  ``start`` to ``start + size``, are gathered and no others; ``slot`` is a word's place among them.
- `dlc.functions.tree_softmax` for the binary tree. (`class_softmax` there has all classes padded to the largest one's
  size, which would nearly double these rows.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from dlc import functions
from dlc.functions import DOMAIN
from dlc.zoo.exporting import run_exported, write_model
from dlc.zoo.nnlm import data
from dlc.zoo.nnlm.model import FeedForward, LanguageModel, Recurrent
from dlc.zoo.nnlm.output import BinarySoftmax, ClassSoftmax, FullSoftmax, ShortlistSoftmax
from dlc.zoo.nnlm.train import STREAM_STEPS, load_weights

OPSET = 18
OUTPUT = "log10"
_LOW = -1e4  # below any score: its share of a softmax is exactly 0 in float32
_TOLERANCE = 1e-4


def export(weights: Path, out: Path) -> str:
    """Write trained weights as ONNX; return one line on how far torch and ONNX agree.

    Raises:
        DlcError: the weights are not this family's, or torch and ONNX differ; nothing is written.
    """
    return f"torch and ONNX agree to {export_model(load_weights(weights)[0], out):.1e} in log10 P"


def export_model(model: LanguageModel, out: Path) -> float:
    """Write `model` as ONNX and return the largest difference of a log10 probability on seeded rows.

    Raises:
        DlcError: torch and ONNX differ by more than 1e-4; nothing is written.
    """
    proto = build(model)
    content = proto.SerializeToString(deterministic=True)
    return write_model(content, out, _difference(model, proto), _TOLERANCE, "log10 P", "from torch")


def build(model: LanguageModel) -> ModelProto:
    """The ONNX model. Equal weights give equal bytes."""
    graph = _Nodes()
    context = _context(model)
    words = graph.add("Gather", data.INPUT, graph.constant("context", np.arange(context)), axis=1)
    word = graph.add("Gather", data.INPUT, graph.constant("last", np.array(context)), axis=1)
    embedded = graph.add("Gather", graph.weight("embedding", model.body.embedding.weight), words)
    features = (_lstm if isinstance(model.body, Recurrent) else _dense)(graph, model.body, embedded)
    function, tables = _function(model.output)
    given = {"features": features, "x": features, "word": word}
    given |= {name: graph.array(name, array) for name, array in tables.items()}
    inputs = [given[name] for name in function.input]
    graph.nodes.append(helper.make_node(function.name, inputs, ["log_p"], name="output", domain=DOMAIN))
    scale = graph.array("log10_e", np.array(np.log10(np.e), np.float32))
    graph.nodes.append(helper.make_node("Mul", ["log_p", scale], [OUTPUT], name=OUTPUT))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "nnlm",
            [helper.make_tensor_value_info(data.INPUT, TensorProto.INT64, ["N", context + 1])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N"])],
            graph.tensors,
        ),
        opset_imports=opsets, functions=[function], ir_version=8, producer_name="dlc",
    )  # fmt: skip
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _Nodes:
    """Nodes being written down one after the other, with running names for what lies between them."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Add a node and return the name of its first output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [name, *(f"{name}_{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name

    def array(self, name: str, array: np.ndarray) -> str:
        """Add an initialiser of a graph."""
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, name: str, weight: torch.Tensor) -> str:
        """Add a trained weight."""
        return self.array(name, weight.detach().numpy())

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant node, which a function may have too."""
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name


def _context(model: LanguageModel) -> int:
    """The words before the one asked for."""
    return STREAM_STEPS if isinstance(model.body, Recurrent) else data.CONTEXT


# --- the bodies


def _linear(graph: _Nodes, name: str, layer: nn.Linear, x: str) -> str:
    weights = graph.weight(f"{name}.weight", layer.weight), graph.weight(f"{name}.bias", layer.bias)
    return graph.add("Gemm", x, *weights, transB=1)


def _dense(graph: _Nodes, body: FeedForward, embedded: str) -> str:
    hidden = graph.add("Relu", _linear(graph, "hidden", body.hidden, graph.add("Flatten", embedded)))
    return _linear(graph, "features", body.features, hidden)


def _lstm(graph: _Nodes, body: Recurrent, embedded: str) -> str:
    """torch orders the gates i, f, g, o; ONNX i, o, f, g."""
    size = body.lstm.hidden_size

    def gates(weight: torch.Tensor) -> np.ndarray:
        return weight.detach().numpy().reshape(4, size, -1)[[0, 3, 1, 2]].reshape(1, 4 * size, -1)

    bias = np.concatenate([gates(body.lstm.bias_ih_l0), gates(body.lstm.bias_hh_l0)], 1)[:, :, 0]
    steps = graph.add("Transpose", embedded, perm=[1, 0, 2])
    weights = (
        graph.array("lstm.w", gates(body.lstm.weight_ih_l0)),
        graph.array("lstm.r", gates(body.lstm.weight_hh_l0)),
        graph.array("lstm.bias", bias),
    )
    last = f"{graph.add('LSTM', steps, *weights, outputs=2, hidden_size=size)}_1"
    flat = graph.add("Squeeze", last, graph.constant("directions", np.array([0])))
    return _linear(graph, "features", body.features, flat)


# --- the functions


def _function(output: nn.Module) -> tuple[FunctionProto, dict[str, np.ndarray]]:
    """The function of an output layer, and its inputs besides the features and the word."""
    if isinstance(output, BinarySoftmax):
        tables = _arrays(output, "rows", "bias", "node", "sign")
        names = {"rows": "weight", "node": "paths", "sign": "signs"}
        return functions.tree_softmax(), {names.get(name, name): array for name, array in tables.items()}
    body = _Nodes()
    body.constant("one", np.array([1]))
    if isinstance(output, FullSoftmax):
        name, tables = "FullLogProb", _arrays(output, "rows", "bias")
        nats = _softmax_entry(body, _scores(body, "rows", "bias"), "word")
    elif isinstance(output, ShortlistSoftmax):
        name, tables = "ShortlistLogProb", _arrays(output, "rows", "bias", "place", "within")
        listed = _softmax_entry(body, _scores(body, "rows", "bias"), body.add("Gather", "place", "word"))
        nats = body.add("Add", listed, body.add("Gather", "within", "word"))
    else:
        assert isinstance(output, ClassSoftmax)
        name = "ClassLogProb"
        tables = _arrays(output, "class_rows", "class_bias", "rows", "bias", "start", "size", "of", "slot")
        tables = {"class_of" if key == "of" else key: array for key, array in tables.items()}
        nats = _class_log_prob(body, output)
    body.nodes.append(helper.make_node("Identity", [nats], ["log_p"]))
    opsets = [helper.make_opsetid("", OPSET)]
    inputs = ["features", "word", *tables]
    return helper.make_function(DOMAIN, name, inputs, ["log_p"], body.nodes, opsets), tables


def _arrays(output: nn.Module, *names: str) -> dict[str, np.ndarray]:
    """Weights as they are, tables of integers in 32 bits."""
    arrays = {name: getattr(output, name).detach().numpy() for name in names}
    return {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in arrays.items()}


def _scores(body: _Nodes, rows: str, bias: str) -> str:
    return body.add("Gemm", "features", rows, bias, transB=1)


def _softmax_entry(body: _Nodes, scores: str, place: str) -> str:
    """The log-softmax of (N, k) scores at one place a row, (N,)."""
    log = body.add("LogSoftmax", scores, axis=1)
    entry = body.add("GatherElements", log, body.add("Unsqueeze", place, "one"), axis=1)
    return body.add("Squeeze", entry, "one")


def _gathered_scores(body: _Nodes, row: str) -> str:
    """The scores of the rows (N, k) of ``rows`` and ``bias``, (N, k)."""
    column = body.add("Unsqueeze", "features", body.constant("two", np.array([2])))
    product = body.add("MatMul", body.add("Gather", "rows", row), column)
    return body.add("Add", body.add("Squeeze", product, "two"), body.add("Gather", "bias", row))


def _class_log_prob(body: _Nodes, output: ClassSoftmax) -> str:
    chosen = body.add("Gather", "class_of", "word")
    of_class = _softmax_entry(body, _scores(body, "class_rows", "class_bias"), chosen)
    place = body.constant("places", np.arange(output.widest, dtype=np.int32))
    first = body.add("Unsqueeze", body.add("Gather", "start", chosen), "one")
    # Behind the last class there are no rows: the places beyond a class read any, and are masked.
    end = body.constant("end", np.array(len(output.rows) - 1, np.int32))
    scores = _gathered_scores(body, body.add("Min", body.add("Add", first, place), end))
    inside = body.add("Less", place, body.add("Unsqueeze", body.add("Gather", "size", chosen), "one"))
    masked = body.add("Where", inside, scores, body.constant("low", np.array(_LOW, np.float32)))
    return body.add("Add", of_class, _softmax_entry(body, masked, body.add("Gather", "slot", "word")))


def _difference(model: LanguageModel, proto: ModelProto) -> float:
    """The largest difference of a log10 probability on seeded rows."""
    vocabulary = model.body.embedding.num_embeddings
    rows = np.random.default_rng(0).integers(0, vocabulary, (64, _context(model) + 1))
    given = torch.from_numpy(rows)
    with torch.no_grad():
        if isinstance(model.body, Recurrent):
            model.body.reset()
            features = model.body(given[:, :-1]).unflatten(0, (len(rows), -1))[:, -1]
            expected = model.output.log_prob(features, given[:, -1])
        else:
            expected = model(given[:, :-1], given[:, -1])
    actual = run_exported(proto.SerializeToString(), OUTPUT, {data.INPUT: rows})
    return float(np.abs(expected.numpy() * np.log10(np.e) - actual).max())
