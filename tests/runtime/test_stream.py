"""A sequence in parts gives what the whole sequence gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import dlc
from dlc.errors import DlcError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
RNG = np.random.default_rng(41)


def numbers(*shape: int) -> str:
    array = RNG.standard_normal(shape).astype(np.float32) * 0.5
    return f"float[{', '.join(map(str, shape))}] NAME = {{{', '.join(repr(float(v)) for v in array.reshape(-1))}}}"


def constant(name: str, *shape: int) -> str:
    return numbers(*shape).replace("NAME", name)


LAYERS = f"""g (float[batch, time, 5] x) => (float[batch, time, 3] y, float[1, batch, 4] last)
  <{constant("w", 1, 16, 5)}, {constant("r", 1, 16, 4)}, {constant("b", 1, 32)}, {constant("v", 4, 3)},
   {constant("w2", 1, 12, 3)}, {constant("r2", 1, 12, 4)}, {constant("u", 4, 3)}> {{
    a = Transpose <perm = [1, 0, 2]> (x)
    h = LSTM <hidden_size = 4> (a, w, r, b)
    s = Squeeze (h, one)
    p = MatMul (s, v)
    q = Tanh (p)
    k, last = GRU <hidden_size = 4> (q, w2, r2)
    m = Squeeze (k, one)
    o = MatMul (m, u)
    y = Transpose <perm = [1, 0, 2]> (o)
}}""".replace("h = LSTM", "one = Constant <value_ints = [1]> ()\n    h = LSTM")

CAUSAL = f"""g (float[1, 2, time] x) => (float[1, 3, time] y)
  <{constant("w", 4, 2, 3)}, {constant("v", 3, 4, 2)}> {{
    a = Conv <kernel_shape = [3], dilations = [2], pads = [4, 0]> (x, w)
    c = Relu (a)
    y = Conv <kernel_shape = [2], pads = [1, 0]> (c, v)
}}"""


def parts(session: Any, x: np.ndarray, axis: int, cuts: list[int]) -> list[dict[str, np.ndarray]]:
    stream = session.stream()
    pieces = np.split(x, cuts, axis)
    return [stream.run({"x": piece}) for piece in pieces]


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize(("text", "shape", "axis"), [(LAYERS, (2, 11, 5), 1), (CAUSAL, (1, 2, 11), 2)])
def test_parts_give_what_the_whole_gives(text: str, shape: tuple[int, ...], axis: int, target: str) -> None:
    session = dlc.load(dlc.compile(onnx.parser.parse_model(HEAD + text), target=target, stream=True))
    x = RNG.standard_normal(shape).astype(np.float32)
    whole = session.run({"x": x})
    for cuts in ([1, 2, 7], [5], list(range(1, 11))):
        done = parts(session, x, axis, cuts)
        joined = np.concatenate([part["y"] for part in done], axis)
        np.testing.assert_allclose(joined, whole["y"], rtol=1e-5, atol=1e-6)
        if "last" in whole:
            np.testing.assert_allclose(done[-1]["last"], whole["last"], rtol=1e-5, atol=1e-6)


def test_integers_are_the_same_in_parts() -> None:
    model = onnx.parser.parse_model(HEAD + CAUSAL)
    samples = {"x": RNG.standard_normal((4, 1, 2, 11)).astype(np.float32)}
    session = dlc.load(dlc.compile(model, quantize="int8", calibration=samples, stream=True))
    x = samples["x"][0]
    joined = np.concatenate([part["y"] for part in parts(session, x, 2, [3, 4])], 2)
    np.testing.assert_array_equal(joined, session.run({"x": x})["y"])


def test_streams_are_independent_and_begin_again() -> None:
    session = dlc.load(dlc.compile(onnx.parser.parse_model(HEAD + LAYERS), stream=True))
    x, z = RNG.standard_normal((2, 1, 6, 5)).astype(np.float32)
    first, second = session.stream(), session.stream()
    begun = first.run({"x": x[:, :3]})
    second.run({"x": z})
    np.testing.assert_allclose(first.run({"x": x[:, 3:]})["y"], session.run({"x": x})["y"][:, 3:], rtol=1e-5, atol=1e-6)
    first.reset()
    np.testing.assert_array_equal(first.run({"x": x[:, :3]})["y"], begun["y"])
    with pytest.raises(DlcError, match=r"'stream\.0' is a state, which the stream keeps by itself"):
        first.run({"x": x, "stream.0": x})


REFUSED = {
    "reverse": (
        LAYERS.replace("LSTM <hidden_size = 4>", 'LSTM <hidden_size = 4, direction = "reverse">'),
        "node LSTM '': it works along time",
    ),
    "looks ahead": (
        CAUSAL.replace("pads = [4, 0]", "pads = [2, 2]"),
        "node Conv 'a': it is not causal: it looks back 4 steps, and is padded by 2",
    ),
    "normalises over time": (
        CAUSAL.replace("c = Relu (a)", "c = Softmax <axis = 2> (a)"), "node Softmax 'c': it works along time",
    ),
    "no sequence": (
        "g (float[3] x) => (float[3] y) { y = Relu (x) }",
        "node Relu 'y': no loop, causal convolution or attention runs over an axis of an input",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_local_is_refused_with_the_node(name: str) -> None:
    text, reason = REFUSED[name]
    with pytest.raises(DlcError) as error:
        dlc.compile(onnx.parser.parse_model(HEAD + text), stream=True)
    assert str(error.value) == f"the model cannot be streamed: {reason}"


def test_a_package_without_the_form_says_how_to_get_it() -> None:
    session = dlc.load(dlc.compile(onnx.parser.parse_model(HEAD + CAUSAL), target="reference"))
    with pytest.raises(DlcError, match="the package has no streaming form; compile it with --stream"):
        session.stream()
