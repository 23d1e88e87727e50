"""Back-off scores from a hash table: kernel, interpreter, the function's body in ONNX, and a dictionary agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from anchored_cases import LEVELS, Body, run_region
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlc
from dlc.explain import read
from dlc.targets.cpu.kernels import backoff
from dlc.zoo.ngram import data, hashed
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import NgramModel
from dlc.zoo.ngram.smoothing import kneser_ney

Known = dict[tuple[int, ...], tuple[float, float]]


def _model(seed: int, order: int, words: int = 300, vocabulary: int = 12) -> NgramModel:
    rng = np.random.default_rng(seed)
    return kneser_ney(count([rng.integers(0, vocabulary, words).astype(np.int32)], vocabulary, order))


def _listed(model: NgramModel) -> Known:
    """Every listed n-gram with its log10 probability and back-off weight."""
    grams = [(w,) for w in range(model.vocabulary)]
    known: Known = {}
    for k in range(1, model.order + 1):
        if k > 1:
            level = model.levels[k - 2]
            grams = [(*grams[p], int(w)) for p, w in zip(level.parent, level.word, strict=True)]
        weights = model.backoff[k - 1] if k < model.order else np.zeros(len(grams))
        known |= {
            g: (max(float(p), -99.0), float(b)) for g, p, b in zip(grams, model.log10[k - 1], weights, strict=True)
        }
    return known


def _score(known: Known, gram: tuple[int, ...]) -> float:
    if gram in known:
        return known[gram][0]
    return known.get(gram[:-1], (0.0, 0.0))[1] + _score(known, gram[1:])


def _run(rows: np.ndarray, arrays: dict[str, np.ndarray], probes: int, level: Any) -> tuple[np.ndarray, np.ndarray]:
    body, inputs = Body(), [rows, *arrays.values()]
    names = [body.input(a.shape, str(a.dtype)) for a in inputs]
    body.node("dlc.backoff_score", names, (len(rows),), "float32", probes=probes)
    return run_region(backoff, body.graph(), inputs, level)


CASES = st.fixed_dictionaries(
    {
        "order": st.integers(1, 5), "queries": st.sampled_from([1, 5, 32, 33, 70]),
        "words": st.sampled_from([6, 50, 900]),
        "level": st.sampled_from(LEVELS), "seed": st.integers(0, 2**16),
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_scores_are_those_of_a_dictionary(case: dict[str, Any]) -> None:
    model = _model(case["seed"], case["order"], case["words"])
    rows = np.random.default_rng(case["seed"]).integers(0, model.vocabulary, (case["queries"], case["order"]))
    arrays, probes = hashed.tables(model)
    known = _listed(model)
    wanted = [_score(known, tuple(int(w) for w in row)) for row in rows]
    got, meaning = _run(rows, arrays, probes, case["level"])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(got, meaning)


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_tables_and_words_that_lie_are_read_inside(seed: int, probes: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = hashed.tables(_model(seed, 4))[0]
    slots = arrays["slots"]
    slots[:] = rng.integers(-(2**63), 2**63, slots.shape)  # full rows, places anywhere
    slots[0] = np.iinfo(np.int64).min
    slots[1:] = np.where(rng.random(slots[1:].shape) < 0.5, slots[1:] | 0xFFFFFFFF, np.iinfo(np.int64).max)
    rows = rng.integers(-(2**40), 2**40, (70, 4))
    rows[:35] = rng.integers(-3, 15, (35, 4))
    got, meaning = _run(rows, arrays, probes, LEVELS[0])
    np.testing.assert_array_equal(got, meaning)


def test_a_place_behind_the_values_is_pulled_in() -> None:
    model = _model(1, 3)
    arrays, probes = hashed.tables(model)
    listed = arrays["slots"] >= 0
    arrays["slots"][listed] |= 0xFFFFFFFF
    rows = np.random.default_rng(1).integers(0, model.vocabulary, (70, 3))
    got, meaning = _run(rows, arrays, probes, LEVELS[0])
    np.testing.assert_array_equal(got, meaning)
    assert (got == arrays["log10_all"][-1]).any()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_function_is_one_kernel_and_agrees_with_onnxruntime(order: int, quantised: bool) -> None:
    model = _model(7, order, 2000)
    proto = hashed.build(model, quantised)
    feed = {data.INPUT: np.random.default_rng(1).integers(0, model.vocabulary, (500, order))}
    package = dlc.compile(proto)
    (row,) = read(package).nodes
    assert row["kernel"].startswith("backoff_score")
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(dlc.load(package).run(feed)[hashed.OUTPUT], wanted)
    error = np.abs(wanted - np.maximum(model.score(feed[data.INPUT]), -99))
    assert error.max() < (0.2 if quantised else 1e-5)


def test_another_body_of_the_name_is_just_a_graph() -> None:
    proto = hashed.build(_model(5, 3))
    next(n for n in proto.functions[0].node if n.op_type == "Less").op_type = "LessOrEqual"
    package = dlc.compile(proto)
    assert not any("backoff_score" in row["kernel"] for row in read(package).nodes)
    feed = {data.INPUT: np.random.default_rng(1).integers(0, 12, (100, 3))}
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(dlc.load(package).run(feed)[hashed.OUTPUT], wanted)


def test_the_codes_of_an_order_are_256_at_most() -> None:
    arrays, _ = hashed.tables(_model(3, 2, 60_000, 300), quantised=True)
    assert len(np.unique(arrays["log10_all"])) <= 256


def test_ngrams_that_share_words_are_spread_over_the_table() -> None:
    shares = 1 / np.arange(1, 5001)
    text = np.random.default_rng(4).choice(5000, 60_000, p=shares / shares.sum()).astype(np.int32)
    _, probes = hashed.tables(kneser_ney(count([text], 5000, 5)))
    assert probes <= 12  # a hash that keeps the first words' differences out of its upper bits needs hundreds


def test_values_in_eight_bits_are_close() -> None:
    model = _model(6, 3, 40_000, 300)
    rows = np.random.default_rng(7).integers(0, 300, (2000, 3))
    results = []
    for quantised in (False, True):
        session = dlc.load(dlc.compile(hashed.build(model, quantised)))
        results.append(session.run({data.INPUT: rows})[hashed.OUTPUT])
    assert 0 < np.abs(results[1] - results[0]).max() < 0.3
    assert abs(results[1].mean() - results[0].mean()) < 0.005
