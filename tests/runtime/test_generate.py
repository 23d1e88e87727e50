"""Generation: from sequence models and step models, the same tokens as recomputing everything."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import dlc
from dlc.errors import DlcError
from dlc.runtime.generate import Sampling
from tests.runtime.test_stream import HEAD, constant

CLASSES = 7
LANGUAGE = f"""g (int64[rows, time] tokens) => (float[rows, time, {CLASSES}] scores)
  <{constant("table", CLASSES, 5)}, {constant("w", 1, 16, 5)}, {constant("r", 1, 16, 4)},
   {constant("v", 4, CLASSES)}> {{
    e = Gather (table, tokens)
    a = Transpose <perm = [1, 0, 2]> (e)
    one = Constant <value_ints = [1]> ()
    h = LSTM <hidden_size = 4> (a, w, r)
    s = Squeeze (h, one)
    o = MatMul (s, v)
    scores = Transpose <perm = [1, 0, 2]> (o)
}}"""
WAVE = f"""g (float[1, {CLASSES}, time] x) => (float[1, {CLASSES}, time] y)
  <{constant("w", 6, CLASSES, 2)}, {constant("v", CLASSES, 6, 1)}> {{
    a = Conv <kernel_shape = [2], pads = [1, 0]> (x, w)
    c = Tanh (a)
    y = Conv <kernel_shape = [1]> (c, v)
}}"""
STEP = f"""g (int64[2] token, float[2, 4] h) => (float[2, {CLASSES}] scores, float[2, 4] h1)
  <{constant("table", CLASSES, 4)}, {constant("r", 4, 4)}, {constant("v", 4, CLASSES)}> {{
    e = Gather (table, token)
    p = MatMul (h, r)
    s = Add (e, p)
    h1 = Tanh (s)
    scores = MatMul (h1, v)
}}"""


def session(text: str, **options: object) -> dlc.Session:
    return dlc.load(dlc.compile(onnx.parser.parse_model(HEAD + text), **options))  # type: ignore[arg-type]


def test_greedy_tokens_are_those_of_the_whole_sequence() -> None:
    model = session(LANGUAGE, stream=True)
    prompt = np.array([[1, 2, 3], [4, 0, 6]])
    tokens = model.generate(prompt, 9)
    so_far = prompt
    for step in range(9):
        scores = model.run({"tokens": so_far})["scores"][:, -1]
        np.testing.assert_array_equal(tokens[:, step], scores.argmax(-1))
        so_far = np.concatenate([so_far, tokens[:, step : step + 1]], axis=1)


def test_one_hot_inputs() -> None:
    model = session(WAVE, stream=True)
    tokens = model.generate([[2, 5]], 6)
    so_far = [2, 5]
    for token in tokens[0]:
        x = np.ascontiguousarray(np.eye(CLASSES, dtype=np.float32)[so_far].T[None])
        assert token == model.run({"x": x})["y"][0, :, -1].argmax()
        so_far.append(int(token))


def test_step_models() -> None:
    model = session(STEP)
    tokens = model.generate([[1, 2], [3, 3]], 5, states={"h1": "h"})
    h = np.zeros((2, 4), np.float32)
    given = [np.array([1, 3]), np.array([2, 3]), *tokens.T]
    for step, token in enumerate(given[:-1]):
        result = model.run({"token": token, "h": h})
        h = result["h1"]
        if step >= 1:
            np.testing.assert_array_equal(result["scores"].argmax(-1), given[step + 1])


def test_draws_depend_on_seed_and_row_alone() -> None:
    model = session(LANGUAGE, stream=True)
    both = model.generate([[1, 2], [3, 4]], 20, temperature=1.5, seed=3)
    np.testing.assert_array_equal(model.generate([[1, 2]], 20, temperature=1.5, seed=3), both[:1])
    assert not np.array_equal(model.generate([[1, 2]], 20, temperature=1.5, seed=4), both[:1])


@pytest.mark.parametrize("top_k", [0, 2])
def test_draws_follow_the_distribution(top_k: int) -> None:
    logits = np.tile(np.array([0.0, 1.0, 2.0, -1.0]), (4000, 1))
    rows = [np.random.default_rng([5, row]) for row in range(4000)]
    chosen = Sampling(temperature=0.7, top_k=top_k).choose(logits, rows)
    weights = np.exp(np.array([0.0, 1.0, 2.0, -1.0]) / 0.7)
    if top_k:
        weights[[0, 3]] = 0
    expected = weights / weights.sum()
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 4000, expected, atol=0.03)


REFUSED = {
    "no prompt": ({"prompt": [[]]}, "the prompt must be integers (rows, steps), got float64[1, 0]"),
    "no steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "too many classes": (
        {"temperature": 1.0, "top_k": CLASSES + 1}, f"top_k is {CLASSES + 1}, and the model has {CLASSES} classes",
    ),
    "temperature": ({"temperature": -1.0}, "the temperature must be at least 0, got -1.0"),
    "unknown state": ({"states": {"h1": "g"}}, "the model has no input 'g'; it has token, h"),
    "other state": (
        {"states": {"scores": "h"}, "logits": "h1"},
        "state 'h' does not fit: the model takes h: float32[2, 4] and gives scores: float32[2, 7]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_fit_is_refused(name: str) -> None:
    changed, text = REFUSED[name]
    model = session(STEP, target="reference")
    arguments = {"prompt": [[1], [2]], "steps": 3, "states": {"h1": "h"}, **changed}
    with pytest.raises(DlcError) as error:
        model.generate(**arguments)  # type: ignore[arg-type]
    assert str(error.value) == text
