"""The tables of a back-off model as one hash table: the inputs of `dlc.functions.backoff_score`, and its ONNX model.

It is larger than the trie of `dlc.zoo.ngram.export` and faster: an n-gram is one read of a cache line, and no read
waits for another. With `quantised` the probabilities and weights of each order above 1 are of 256 numbers each, see
`dlc.ir.arithmetic.codebook`.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.functions import BACKOFF_SCORE, DOMAIN, backoff_score
from dlc.ir.arithmetic import codebook
from dlc.ir.ops.backoff_score import ROW, hashes
from dlc.zoo.ngram import data
from dlc.zoo.ngram.model import NgramModel

OUTPUT = "log10"
_ZERO = -99.0
_LOAD = 0.78  # of the slots
_Tables = dict[str, np.ndarray]


def tables(model: NgramModel, quantised: bool = False) -> tuple[_Tables, int]:
    """The function's inputs behind ``ngram``, by name and in their order, and how many rows it has to probe.

    Raises:
        DlcError: two of the model's n-grams have the same hashes.
    """
    words, log10, backoff = _listed(model, quantised)
    pairs = np.stack([log10, backoff], 1).astype(np.float32)
    bits, place = np.unique(pairs.view(np.int64).ravel(), return_inverse=True)
    values = bits.view(np.float32).reshape(-1, 2) if len(bits) else np.zeros((1, 2), np.float32)
    slots, probes = _slots(words, place)
    first_backoff = model.backoff[0] if model.order > 1 else np.zeros(model.vocabulary)
    found = {
        "log10_1": np.maximum(model.log10[0], _ZERO), "backoff_1": first_backoff, "slots": slots,
        "log10_all": values[:, 0], "backoff_all": values[:, 1],
    }  # fmt: skip
    return {n: np.ascontiguousarray(a, None if n == "slots" else np.float32) for n, a in found.items()}, probes


def build(model: NgramModel, quantised: bool = False) -> ModelProto:
    """The ONNX model: ``ngram`` int64 (N, order) to ``log10`` float32 (N,).

    Raises:
        DlcError: as of `tables`.
    """
    arrays, probes = tables(model, quantised)
    graph = helper.make_graph(
        [helper.make_node(BACKOFF_SCORE, [data.INPUT, *arrays], [OUTPUT], name="lookup", domain=DOMAIN)],
        "ngram",
        [helper.make_tensor_value_info(data.INPUT, TensorProto.INT64, ["N", model.order])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    functions: list[onnx.FunctionProto] = [backoff_score(model.order, probes)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8, producer_name="dlc")


def _listed(model: NgramModel, quantised: bool) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The words (m_k, k) of the n-grams of each order above 1, and log10 and weight of all of them, in that order."""
    words, log10, backoff = [np.arange(model.vocabulary, dtype=np.int32)[:, None]], [np.zeros(0)], [np.zeros(0)]
    for order, level in enumerate(model.levels, 2):
        words.append(np.concatenate([words[-1][level.parent], level.word[:, None].astype(np.int32)], 1))
        listed = np.maximum(model.log10[order - 1], _ZERO)
        weights = model.backoff[order - 1] if order < model.order else np.zeros(len(listed))
        log10.append(_coded(listed) if quantised else listed)
        backoff.append(_coded(weights) if quantised else weights)
    return words[1:], np.concatenate(log10), np.concatenate(backoff)


def _coded(values: np.ndarray) -> np.ndarray:
    """Values rounded to 256 numbers."""
    if not len(values):
        return values
    codes, numbers = codebook(values)
    return numbers[codes]


def _slots(words: list[np.ndarray], place: np.ndarray) -> tuple[np.ndarray, int]:
    """The table, and the most rows from an n-gram's own one to that where it is: both hashes decide the order."""
    pairs = [hashes(part) for part in words]
    first = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in pairs)])
    mark = np.concatenate([np.zeros(0, np.int64), *(b for _, b in pairs)])
    rows = max(int(np.ceil(len(first) / _LOAD / ROW)), 1)
    home = first * rows >> 31
    by = np.lexsort((mark, home))
    home, records = home[by], (mark[by] << 32) + place[by]
    if np.any((np.diff(home) == 0) & (np.diff(mark[by]) == 0)):
        raise DlcError("two n-grams of the model have the same hashes")
    count = np.arange(len(home))
    at = np.maximum.accumulate(home * ROW - count) + count if len(home) else count  # the next free slot
    probes = int((at // ROW - home).max()) + 1 if len(home) else 1
    slots = np.full((rows + probes - 1, ROW), -1, np.int64)
    slots.reshape(-1)[at] = records
    return slots, probes
