"""Export to ONNX: the model's tables and a look-up in standard operators, as model-local functions.

The graph of a model of order n is one node of the function ``NgramLogProb`` in the domain ``dlc.functions``. Its body
is written in standard operators and in calls of ``TrieStep`` (`dlc.functions.trie_step`), whose body is, so any ONNX
runtime runs it.

``NgramLogProb(ngram, log10_1, backoff_1, offsets_2, words_2, log10_2, backoff_2, ..., offsets_n, words_n, log10_n)``
gives ``log10``, float32 (N,): for each row of ``ngram``, int64 (N, n), log10 P(last word | the words before it).

For each order k there are m_k n-grams, numbered from 0; those of order 1 are the words. Number m_k stands for "none".

- ``log10_k``, float32 (m_k + 1,): the log10 probability of each; the last entry is 0 and never decides anything. A
  probability of 0 has -99, as in ARPA files.
- ``backoff_k``, float32 (m_k + 1,), k < n: log10 of each one's back-off weight; 0 for none.
- ``offsets_k``, int32 (m_(k-1) + 2,), k > 1: the n-grams of order k whose first k - 1 words are number p have the
  numbers from ``offsets_k[p]`` up to ``offsets_k[p + 1]``, without that; there are none for "none".
- ``words_k``, int16 (int32 where there are more than 32,768 words), (m_k + 1,), k > 1: the last word of each,
  ascending within a p; the last entry is -1.

``TrieStep(parent, word, offsets, words)`` gives ``entry``, int32 (N,): the number of the n-gram that continues number
``parent``, int32 (N,), by ``word``, int32 (N,), or "none". It is a binary search of a fixed number of halvings, enough
for the largest set of continuations in the model.

With e_k the entry of the last k words, and h_k that of the k words before the last, the result is built up from
r_1 = log10_1[w] by r_k = log10_k[e_k] if e_k is not "none", else backoff_(k-1)[h_(k-1)] + r_(k-1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dlc.functions import DOMAIN, TRIE_STEP, trie_step
from dlc.zoo.exporting import run_exported, write_model
from dlc.zoo.ngram import data
from dlc.zoo.ngram.arpa import MARKS, read_arpa
from dlc.zoo.ngram.model import NgramModel

OPSET = 17
LOOKUP = "NgramLogProb"
OUTPUT = "log10"
_ZERO = -99.0
_TOLERANCE = 1e-5


def export(weights: Path, out: Path) -> str:
    """Write an ARPA file as ONNX; return one line on how far the ONNX and the tables agree.

    Words have the numbers of the committed vocabulary if the file has those words, else the order of its 1-grams.

    Raises:
        DlcError: the file is no ARPA file, or the ONNX differs from it by more than 1e-5; nothing is written.
    """
    model, words = read_arpa(weights)
    if set(words) - set(MARKS) == set(data.load_words()):
        model, _ = read_arpa(weights, data.load_words())
    return f"tables and ONNX agree to {export_model(model, out):.1e} in log10 P"


def export_model(model: NgramModel, out: Path) -> float:
    """Write a model as ONNX and return the largest difference of a log10 probability from `NgramModel.score`.

    The comparison is over seeded rows, half of them from n-grams that are listed.

    Raises:
        DlcError: they differ by more than 1e-5; nothing is written.
    """
    proto = build(model)
    content = proto.SerializeToString(deterministic=True)
    return write_model(content, out, _difference(model, proto), _TOLERANCE, "log10 P")


def build(model: NgramModel) -> ModelProto:
    """The ONNX model: ``ngram`` int64 (N, order) to ``log10`` float32 (N,)."""
    arrays = tables(model)
    halvings = max((_halvings(arrays[f"offsets_{k}"]) for k in range(2, model.order + 1)), default=0)
    functions = [trie_step(halvings), _lookup_function(model.order)]
    node = helper.make_node(LOOKUP, [data.INPUT, *arrays], [OUTPUT], name="lookup", domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "ngram",
        [helper.make_tensor_value_info(data.INPUT, TensorProto.INT64, ["N", model.order])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8, producer_name="dlc")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def tables(model: NgramModel) -> dict[str, np.ndarray]:
    """The function's inputs behind ``ngram``, by name and in their order: see the module's text."""
    arrays: dict[str, np.ndarray] = {}
    word_type = np.int16 if model.vocabulary <= 1 << 15 else np.int32
    for order, log10 in enumerate(model.log10, 1):
        if order > 1:
            level = model.levels[order - 2]
            parents = np.arange(len(model.log10[order - 2]) + 2)
            arrays[f"offsets_{order}"] = np.searchsorted(level.parent, parents).astype(np.int32)
            arrays[f"words_{order}"] = np.append(level.word, -1).astype(word_type)
        arrays[f"log10_{order}"] = np.append(np.maximum(log10, _ZERO), 0).astype(np.float32)
        if order < model.order:
            arrays[f"backoff_{order}"] = np.append(model.backoff[order - 1], 0).astype(np.float32)
    return arrays


def _halvings(offsets: np.ndarray) -> int:
    """How often the largest set of continuations is halved until one is left."""
    return int(np.diff(offsets).max() - 1).bit_length() if len(offsets) > 1 and np.diff(offsets).max() > 0 else 0


def _constant(name: str, value: int, kind: type[np.generic] = np.int32) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, kind)))


def _lookup_function(order: int) -> FunctionProto:
    """``NgramLogProb``: word j of a row is ``word_j``; ``at_i_k`` is the entry of the words from i on, k of them."""
    node = helper.make_node
    nodes = [node("Cast", ["ngram"], ["words"], to=TensorProto.INT32)]
    inputs = ["ngram", "log10_1"]
    for j in range(order):
        nodes += [
            _constant(f"column_{j}", j, np.int64),
            node("Gather", ["words", f"column_{j}"], [f"word_{j}"], axis=1),
        ]
    last = f"word_{order - 1}"
    nodes.append(node("Gather", ["log10_1", last], ["result_1" if order > 1 else OUTPUT]))
    for k in range(2, order + 1):
        inputs += [f"backoff_{k - 1}", f"offsets_{k}", f"words_{k}", f"log10_{k}"]
        first = order - k
        history = f"word_{first}"
        for length in range(2, k + 1):
            entry = f"at_{first}_{length}"
            step = [history, f"word_{first + length - 1}", f"offsets_{length}", f"words_{length}"]
            nodes.append(node(TRIE_STEP, step, [entry], domain=DOMAIN))
            history, parent = entry, history
        nodes += [
            node("Gather", [f"backoff_{k - 1}", parent], [f"weight_{k}"]),
            node("Add", [f"weight_{k}", f"result_{k - 1}"], [f"backed_off_{k}"]),
            node("Gather", [f"log10_{k}", history], [f"listed_{k}"]),
            node("Size", [f"words_{k}"], [f"length_{k}"]),
            _constant(f"one_{k}", 1, np.int64),
            node("Sub", [f"length_{k}", f"one_{k}"], [f"none_{k}"]),
            node("Cast", [f"none_{k}"], [f"none_32_{k}"], to=TensorProto.INT32),
            node("Less", [history, f"none_32_{k}"], [f"found_{k}"]),
            node("Where", [f"found_{k}", f"listed_{k}", f"backed_off_{k}"], [f"result_{k}" if k < order else OUTPUT]),
        ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, LOOKUP, inputs, [OUTPUT], nodes, opsets)


def _difference(model: NgramModel, proto: ModelProto) -> float:
    """The largest difference of a log10 probability on seeded rows."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, model.vocabulary, (1000, model.order))
    entry = generator.integers(0, max(len(model.log10[-1]), 1), 500 if len(model.log10[-1]) else 0)
    listed = slice(len(entry))
    for order in range(model.order, 1, -1):  # the words of these entries, from the last to the first
        level = model.levels[order - 2]
        rows[listed, order - 1], entry = level.word[entry], level.parent[entry]
    rows[listed, 0] = entry
    actual = run_exported(proto.SerializeToString(), OUTPUT, {data.INPUT: rows})
    expected = np.maximum(model.score(rows), _ZERO)
    # Where a probability is 0, sums of back-off weights with -99 may be lower: that is 0 all the same.
    return float(np.abs(expected - np.maximum(actual, _ZERO)).max())
