"""Random operators: right in distribution, and the same bytes every time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.frontends.build import graph_of, model, node, run

COUNT = 100_000
# The Kolmogorov-Smirnov statistic of COUNT samples is above this by chance once in a million.
LIMIT = 2.7 / math.sqrt(COUNT)


def drawn(operator: str, **attributes: Any) -> np.ndarray:
    proto = model([node(operator, [], ["y"], "draw", shape=[COUNT], **attributes)], {}, ["y"])
    return run(graph_of(proto))[0]


def distance(samples: np.ndarray, cumulative: Any) -> float:
    """The Kolmogorov-Smirnov statistic."""
    places = np.sort(samples.astype(np.float64))
    theory = np.array([cumulative(v) for v in places])
    steps = np.arange(len(places) + 1) / len(places)
    return float(max(np.max(theory - steps[:-1]), np.max(steps[1:] - theory)))


def test_uniform() -> None:
    y = drawn("RandomUniform", low=-1.0, high=3.0)
    assert y.dtype == np.float32 and y.min() >= -1 and y.max() < 3
    assert distance(y, lambda v: (v + 1) / 4) < LIMIT
    assert abs(y.mean() - 1) < 5 * (4 / math.sqrt(12)) / math.sqrt(COUNT)
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 5 / math.sqrt(COUNT)


def test_normal() -> None:
    y = drawn("RandomNormal", mean=2.0, scale=0.5, dtype=TensorProto.DOUBLE)
    assert y.dtype == np.float64
    assert distance(y, lambda v: 0.5 * (1 + math.erf((v - 2) / 0.5 / math.sqrt(2)))) < LIMIT
    assert abs(y.mean() - 2) < 5 * 0.5 / math.sqrt(COUNT)
    assert abs(y.var() / 0.25 - 1) < 5 * math.sqrt(2 / COUNT)


def test_seeds_and_names_decide() -> None:
    def named(name: str, **attributes: Any) -> np.ndarray:
        return run(graph_of(model([node("RandomUniform", [], ["y"], name, shape=[8], **attributes)], {}, ["y"])))[0]

    assert np.array_equal(named("a"), named("a"))
    assert not np.array_equal(named("a"), named("b"))
    assert np.array_equal(named("a", seed=0.5), named("b", seed=0.5))
    assert not np.array_equal(named("a", seed=0.5), named("a", seed=0.25))


def test_bernoulli() -> None:
    x = np.repeat(np.array([0.0, 0.25, 0.9, 1.0], np.float32), COUNT).reshape(4, COUNT)
    proto = model([node("Bernoulli", ["x"], ["y"], dtype=TensorProto.INT32)], {"x": [4, COUNT]}, ["y"])
    (y,) = run(graph_of(proto), x)
    assert y.dtype == np.int32 and set(np.unique(y)) == {0, 1}
    assert np.all(np.abs(y.mean(axis=1) - x[:, 0]) <= 5 * np.sqrt(x[:, 0] * (1 - x[:, 0]) / COUNT))


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
def test_multinomial(dtype: int) -> None:
    chances = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    x = (np.log(chances) + np.array([[1.0], [-2.0]])).astype(np.float32)
    proto = model([node("Multinomial", ["x"], ["y"], dtype=dtype, sample_size=COUNT)], {"x": [2, 4]}, ["y"])
    (y,) = run(graph_of(proto), x)
    assert y.dtype == onnx.helper.tensor_dtype_to_np_dtype(dtype)
    seen = np.stack([np.bincount(row, minlength=4) for row in y]) / COUNT
    assert np.all(np.abs(seen - chances) < 5 * np.sqrt(chances * (1 - chances) / COUNT))


def test_dropout_in_training_mode() -> None:
    x = np.linspace(1, 2, COUNT, dtype=np.float32)
    values = {"ratio": np.float32(0.3), "training": np.array(True)}
    proto = model([node("Dropout", ["x", "ratio", "training"], ["y", "mask"])], {"x": [COUNT]}, ["y", "mask"], values)
    y, mask = run(graph_of(proto), x)
    assert mask.dtype == np.bool_ and abs(mask.mean() - 0.7) < 5 * math.sqrt(0.21 / COUNT)
    np.testing.assert_allclose(y, np.where(mask, x / np.float32(0.7), 0), rtol=1e-6)


@pytest.mark.parametrize("on", [False, True])
def test_dropout_whose_mode_is_known_when_running(on: bool) -> None:
    proto = model(
        [node("Dropout", ["x", "", "training"], ["y"])], {"x": [100], "training": (TensorProto.BOOL, [])}, ["y"]
    )
    x = np.ones(100, np.float32)
    (y,) = run(graph_of(proto), x, np.array(on))
    assert set(np.unique(y)) == ({0.0, 2.0} if on else {1.0})
