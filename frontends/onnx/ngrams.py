"""TfIdfVectorizer on integers: n-grams counted by comparing every window with every n-gram of the pool."""

from __future__ import annotations

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor

_MOST_OUTPUTS = 1 << 24


def _pools(c: Context) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each length n: the n-grams (count, n), and where their counts go in the output."""
    pool, starts = np.asarray(c.require("pool_int64s"), np.int64), [*c.require("ngram_counts")]
    indexes, result, seen = np.asarray(c.require("ngram_indexes"), np.int64), [], 0
    if not starts or starts[0] != 0:
        raise ConversionError(f"attribute 'ngram_counts' is {starts}, it must begin with 0")
    for length, (begin, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), start=1):
        if not begin <= end <= len(pool) or (end - begin) % length:
            raise ConversionError(f"attribute 'ngram_counts' {starts} does not divide a pool of {len(pool)}")
        grams = pool[begin:end].reshape(-1, length)
        result.append((grams, indexes[seen : seen + len(grams)]))
        seen += len(grams)
    if len(indexes) != seen or not seen or min(indexes) < 0 or max(indexes) >= _MOST_OUTPUTS:
        raise ConversionError(f"attribute 'ngram_indexes' {indexes.tolist()} does not place {seen} n-grams")
    return result


def _matches(c: Context, x: Tensor, grams: np.ndarray, step: int) -> Tensor | None:
    """How often each n-gram occurs in each row with `step` between its elements: (rows, n-grams) float32."""
    count, length = x.shape[1], grams.shape[1]
    windows = count - (length - 1) * step
    if windows < 1:
        return None
    places = np.arange(windows)[:, None] + np.arange(length) * step
    cut = c.emit("take", x, c.constant(places.astype(np.int64)), axis=1)
    cut = c.reshape(cut, (x.shape[0], windows, 1, length))
    same = c.cast(c.emit("equal", cut, c.constant(grams[None, None])), "uint8")
    whole = c.reduce("min", same, (3,), keepdims=False)
    return c.reduce("sum", c.cast(whole, "float32"), (1,), keepdims=False)


@converter("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(c: Context, x: Tensor) -> Tensor:
    """Counts of n-grams, cut to 1 (IDF), times weights (IDF, TFIDF)."""
    if "pool_strings" in c.node.attrs:
        raise HostError("no kernel handles strings")
    lead = x.shape[:-1]
    if x.rank not in (1, 2) or not isinstance(x.shape[-1], int):
        raise ConversionError(f"n-grams of {x}: needs one or two dimensions, the last known when compiling")
    rows = c.reshape(c.cast(x, "int64"), (*(lead or (1,)), x.shape[-1]))
    shortest, longest, skips = c.require("min_gram_length"), c.require("max_gram_length"), c.require("max_skip_count")
    pools = _pools(c)
    size = max(c.require("ngram_indexes")) + 1
    total = c.broadcast(c.constant(np.zeros((), np.float32)), (rows.shape[0], size))
    for length, (grams, targets) in enumerate(pools, start=1):
        if not shortest <= length <= longest or not len(grams):
            continue
        placed = np.zeros((len(grams), size), np.float32)
        placed[np.arange(len(grams)), targets] = 1
        for step in range(1, 2 if length == 1 else skips + 2):  # a skip changes nothing for single elements
            found = _matches(c, rows, grams, step)
            if found is not None:
                total = c.emit("add", total, c.emit("dlc.matmul", found, c.constant(placed), out_dtype="float32"))
    mode, weights = c.require("mode"), c.attr("weights")
    if mode == "IDF":
        total = c.emit("minimum", total, 1)
    if mode != "TF" and weights:
        if len(weights) != len(c.require("ngram_indexes")):
            raise ConversionError(f"{len(weights)} weights for {len(c.require('ngram_indexes'))} n-grams")
        by_output = np.zeros(size, np.float32)
        by_output[np.asarray(c.require("ngram_indexes"))] = weights
        total = c.emit("multiply", total, c.constant(by_output))
    return c.reshape(total, (*lead, size))
