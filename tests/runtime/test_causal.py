"""Causal attention and positions in parts give what the whole sequence gives, and the same tokens as recomputing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dlc
from dlc.bench import onnxruntime_session
from dlc.errors import DlcError
from dlc.explain import read
from dlc.frontends.torch import export_module
from dlc.runtime.stream import PAST
from tests.runtime.test_generate import CLASSES, LANGUAGE
from tests.runtime.test_stream import HEAD, constant

WIDTH, LONGEST = 8, 24
CONSTANTS = f"""{constant("table", CLASSES, WIDTH)}, {constant("places", LONGEST, WIDTH)},
   {constant("wq", WIDTH, WIDTH)}, {constant("wk", WIDTH, WIDTH)}, {constant("wu", WIDTH, WIDTH)},
   {constant("head", WIDTH, CLASSES)}, int64 zero = {{0}}, int64 one = {{1}}, int64[1] first = {{0}},
   int64[1] second = {{1}}, int64[1] third = {{2}}, float low = {{-10000.0}}, float unit = {{1.0}},
   float reach = {{-4.0}}, {constant("taps", WIDTH, WIDTH, 3)}, int64[4] parts = {{0, 0, 2, 4}},
   int64[4] twice = {{1, 2, 1, 1}}, int64[1] two = {{2}}, int64[1] minus = {{-1}}, int64[1] four = {{4}},
   int64[3] whole = {{0, 0, 8}}"""
BEGIN = """
    e = Gather (table, tokens)
    size = Shape (tokens)
    steps = Gather <axis = 0> (size, one)
    line = Range (zero, steps, one)
    across = Unsqueeze (line, first)
    down = Unsqueeze (line, second)
    steps1 = Unsqueeze (steps, first)
    square = Concat <axis = 0> (steps1, steps1)"""
PLAIN = "\n x = Identity (e)"
PLACED = "\n place = Gather (places, line)\n x = Add (e, place)"
CUT = "\n place = Slice (places, first, steps1)\n x = Add (e, place)"
SCORES = """
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    u = MatMul (x, wu)
    turned = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, turned)"""
END = "\n mixed = MatMul (shares, u)\n y = Add (x, mixed)\n logits = MatMul (y, head)"
CAUSAL = "\n seen = GreaterOrEqual (down, across)\n masked = Where (seen, scores, low)"
SOFTMAX = "\n shares = Softmax <axis = 2> (masked)"
PARTS_OF_SOFTMAX = """
    most = ReduceMax <keepdims = 1> (masked, third)
    less = Sub (masked, most)
    power = Exp (less)
    all = ReduceSum <keepdims = 1> (power, third)
    shares = Div (power, all)"""


def model(*parts: str, opset: int = 18) -> onnx.ModelProto:
    """A language model of tokens (rows, time) with the given body."""
    head = HEAD.replace('"" : 17', f'"" : {opset}').replace("ir_version: 8", "ir_version: 10")
    signature = f"g (int64[rows, time] tokens) => (float[rows, time, {CLASSES}] logits)"
    made = onnx.parser.parse_model(f"{head}{signature}\n  <{CONSTANTS}> {{{''.join(parts)}\n}}")
    used = {name for node in made.graph.node for name in node.input}
    kept = [weight for weight in made.graph.initializer if weight.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


MASKS = {
    "where, of comparisons": CAUSAL,
    "a sum": """
        hidden = Less (down, across)
        number = Cast <to = 1> (hidden)
        bias = Mul (number, low)
        masked = Add (scores, bias)""",
    "Trilu": """
        ones = Expand (unit, square)
        lower = Trilu <upper = 0> (ones)
        seen = Cast <to = 9> (lower)
        masked = Where (seen, scores, low)""",
    "a window, and a bias that grows with distance": """
        hidden = Less (down, across)
        apart = Sub (across, down)
        far = Cast <to = 1> (apart)
        old = Less (far, reach)
        out = Or (hidden, old)
        bent = Add (scores, far)
        masked = Where (out, low, bent)""",
}
ATTENTION = """
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    u = MatMul (x, wu)
    mixed = Attention <is_causal = 1, q_num_heads = 2, kv_num_heads = 2> (q, k, u)
    y = Add (x, mixed)
    logits = MatMul (y, head)"""
TURNING = """
    phase = Cast <to = 1> (down)
    c = Cos (phase)
    s = Sin (phase)
    qa, qb = Split <axis = 2, num_outputs = 2> (e)
    qac = Mul (qa, c)
    qbs = Mul (qb, s)
    qas = Mul (qa, s)
    qbc = Mul (qb, c)
    left = Sub (qac, qbs)
    right = Add (qas, qbc)
    x = Concat <axis = 2> (left, right)"""

SHARED = """
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    u = MatMul (x, wu)
    qs = Reshape (q, parts)
    ks = Reshape (k, parts)
    qh = Transpose <perm = [0, 2, 1, 3]> (qs)
    kh = Transpose <perm = [0, 2, 3, 1]> (ks)
    one_head = Slice (kh, first, second, second)
    both_heads = Expand (one_head, twice)
    rows_of_heads = Concat <axis = 0> (minus, steps1, four)
    columns_of_heads = Concat <axis = 0> (minus, four, steps1)
    qj = Reshape (qh, rows_of_heads)
    kj = Reshape (both_heads, columns_of_heads)
    products = MatMul (qj, kj)
    rows = Slice (size, first, second)
    shape = Concat <axis = 0> (rows, two, steps1, steps1)
    scores = Reshape (products, shape)
    seen = GreaterOrEqual (down, across)
    masked = Where (seen, scores, low)
    shares = Softmax <axis = 3> (masked)
    joined = Concat <axis = 0> (minus, steps1, steps1)
    sj = Reshape (shares, joined)
    us = Reshape (u, parts)
    uh = Transpose <perm = [0, 2, 1, 3]> (us)
    uj = Reshape (uh, rows_of_heads)
    mj = MatMul (sj, uj)
    wide = Concat <axis = 0> (rows, two, steps1, four)
    mh = Reshape (mj, wide)
    mt = Transpose <perm = [0, 2, 1, 3]> (mh)
    mixed = Reshape (mt, whole)
    y = Add (x, mixed)
    logits = MatMul (y, head)"""
FILTERED = """
    et = Transpose <perm = [0, 2, 1]> (e)
    ft = Conv <kernel_shape = [3], dilations = [2], pads = [4, 0]> (et, taps)
    f = Transpose <perm = [0, 2, 1]> (ft)
    size = Shape (f)
    steps = Gather <axis = 0> (size, one)
    line = Range (zero, steps, one)
    across = Unsqueeze (line, first)
    down = Unsqueeze (line, second)
    x = Identity (f)"""

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"mask: {n}": lambda m=m: model(BEGIN, PLACED, SCORES, m, SOFTMAX, END) for n, m in MASKS.items()},  # type: ignore[misc]
    "a table that is cut": lambda: model(BEGIN, CUT, SCORES, CAUSAL, SOFTMAX, END),
    "softmax in parts": lambda: model(BEGIN, PLAIN, SCORES, CAUSAL, PARTS_OF_SOFTMAX, END),
    "rotary": lambda: model(BEGIN, TURNING, SCORES, CAUSAL, SOFTMAX, END),
    "Attention": lambda: model(BEGIN, PLAIN, ATTENTION, opset=23),
    "one head of keys for two of queries": lambda: model(BEGIN, PLAIN, SHARED),
    "behind a convolution": lambda: model("\n e = Gather (table, tokens)", FILTERED, SCORES, CAUSAL, SOFTMAX, END),
    "LSTM": lambda: onnx.parser.parse_model(HEAD + LANGUAGE),
}


def tokens_of(session: Any, rows: int, steps: int) -> np.ndarray:
    classes = session.outputs[0].shape[-1]
    return np.random.default_rng(5).integers(0, classes, (rows, steps))


def in_parts(session: Any, tokens: np.ndarray, cuts: list[int], axis: int = 1) -> np.ndarray:
    stream, (given,) = session.stream(), session.inputs
    name = session.outputs[0].name
    return np.concatenate([stream.run({given.name: part})[name] for part in np.split(tokens, cuts, 1)], axis)


def agrees(source: onnx.ModelProto, target: str, rows: int = 2, axis: int = 1, **options: Any) -> Any:
    """Hold the streaming form to onnxruntime, given the tokens and generating them; returns the session."""
    session = dlc.load(dlc.compile(source, target=target, stream=True, **options))
    peer, (given,) = onnxruntime_session(source.SerializeToString()), session.inputs
    tokens = np.random.default_rng(5).integers(0, CLASSES, (rows, 11))
    (whole,) = peer.run(None, {given.name: tokens})[:1]
    for cuts in (list(range(1, 11)), [4, 5]):
        np.testing.assert_allclose(in_parts(session, tokens, cuts, axis), whole, rtol=1e-4, atol=1e-5)
    so_far = tokens[:, :3]
    for token in session.generate(so_far, 8).T:
        (scores,) = peer.run(None, {given.name: so_far})[:1]
        last = np.moveaxis(scores, axis, 0)[-1].reshape(rows, -1)
        np.testing.assert_array_equal(token, last.argmax(-1))
        so_far = np.concatenate([so_far, token[:, None]], axis=1)
    return session


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_steps_are_those_of_the_whole_sequence(name: str, target: str) -> None:
    agrees(MODELS[name](), target, max_length=LONGEST)


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("own", [True, False], ids=["its parts", "torch's own"])
def test_torch_decoders(own: bool, target: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from tests.frontends.torch_models import Gpt

    torch.manual_seed(0)
    axes = {"tokens": {0: "rows", 1: "time"}}
    given = torch.zeros(2, 7, dtype=torch.int64)
    source = export_module(Gpt(own).eval(), given, input_names=["tokens"], dynamic_axes=axes)
    session = agrees(source, target, max_length=40)
    assert session.package.manifest["stream_length"] == 40


def test_the_wavenet_of_the_zoo() -> None:
    source = onnx.load(Path(__file__).parents[2] / "zoo" / "wavenet" / "wavenet.onnx")
    session = agrees(source, "cpu", rows=1, axis=2)
    three = session.generate([[5, 6], [7, 8], [9, 1]], 4)  # the model takes one row: three streams
    for row, prompt in zip(three, ([[5, 6]], [[7, 8]], [[9, 1]]), strict=True):
        np.testing.assert_array_equal(session.generate(prompt, 4)[0], row)


@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic"])
def test_integers_are_the_same_in_parts(quantize: Any) -> None:
    source = MODELS["mask: Trilu"]()
    tokens = np.random.default_rng(6).integers(0, CLASSES, (2, 13))
    calibration = {"tokens": tokens[:, None]} if quantize == "int8" else None
    package = dlc.compile(source, quantize=quantize, calibration=calibration, stream=True, max_length=LONGEST)
    session = dlc.load(package)
    assert any(row["precision"] == "int8" for row in read(package.nested("stream")).nodes)
    whole = session.run({"tokens": tokens})["logits"]
    np.testing.assert_array_equal(in_parts(session, tokens, list(range(1, 13))), whole)


def test_caches_are_written_and_read_where_they_lie() -> None:
    package = dlc.compile(MODELS["a table that is cut"](), stream=True)
    inner = package.nested("stream")
    rows = [row for row in read(inner).nodes if row["fused"] == ["set_rows"]]
    assert len(rows) == 2 and all(row["kernel"].endswith(", in place") for row in rows)
    # The rows of a cache so far are read by the products: the only slices are those of tables of positions.
    assert sum(row["fused"] == ["strided_slice"] and row["op"] == "MatMul" for row in read(inner).nodes) == 0
    session = dlc.load(inner)
    states = {info.name: np.zeros((1, *info.shape[1:]), np.float32) for info in session.inputs[3:]}
    given = {"tokens": np.array([[3]]), "stream.first": np.asarray(True), PAST: np.empty(0, bool)}
    results = session.run({**given, **states})
    for name, array in states.items():
        assert results[name] is array and np.count_nonzero(array) == WIDTH
    with pytest.raises(DlcError, match=r"output 'stream\.0' is written over input 'stream\.0'"):
        session.run({**given, **states}, {"stream.0": np.empty_like(states["stream.0"])})


def test_streams_of_one_prompt_draw_for_themselves() -> None:
    session = dlc.load(dlc.compile(MODELS["rotary"](), target="reference", stream=True, max_length=LONGEST))
    drawn = session.generate([[1, 2], [3, 4]], 9, temperature=2.0, top_k=5, seed=8, streams=3)
    assert drawn.shape == (6, 9) and len(np.unique(drawn[:3], axis=0)) == 3
    rows = [[1, 2]] * 3 + [[3, 4]] * 3
    np.testing.assert_array_equal(session.generate(rows, 9, temperature=2.0, top_k=5, seed=8), drawn)


LOOKS_AHEAD = "\n seen = GreaterOrEqual (down, across)\n masked = Where (seen, low, scores)"
ONE_AHEAD = """
    next = Add (down, one)
    seen = GreaterOrEqual (next, across)
    masked = Where (seen, scores, low)"""
SHARE = """
    length = Cast <to = 1> (steps)
    step = Cast <to = 1> (down)
    part = Div (step, length)
    x = Add (e, part)"""
HIDDEN = "it is not causal: it reads scores of later steps that no mask is known to hide"
REFUSED = {
    "no mask": ((PLAIN, SCORES, "\n masked = Identity (scores)", SOFTMAX, END), f"node Softmax 'shares': {HIDDEN}"),
    "the other half": ((PLAIN, SCORES, LOOKS_AHEAD, SOFTMAX, END), f"node Softmax 'shares': {HIDDEN}"),
    "one step ahead": ((PLAIN, SCORES, ONE_AHEAD, SOFTMAX, END), f"node Softmax 'shares': {HIDDEN}"),
    "no softmax": (
        (PLAIN, SCORES, "\n shares = Tanh (scores)", END), f"node MatMul 'mixed': {HIDDEN}",
    ),
    "the length of the whole": (
        (SHARE, SCORES, CAUSAL, SOFTMAX, END), "node Div 'part': its values depend on how long the whole sequence is",
    ),
    "the mean of all steps": (
        (PLAIN, SCORES, CAUSAL, SOFTMAX, END.replace("y = Add (x, mixed)", """mean = ReduceMean (mixed, second)
            y = Add (x, mean)""")), "node ReduceMean 'mean': it works along time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_causal_is_refused_with_the_node(name: str) -> None:
    parts, reason = REFUSED[name]
    with pytest.raises(DlcError) as error:
        dlc.compile(model(BEGIN, *parts), target="reference", stream=True, max_length=LONGEST)
    assert str(error.value) == f"the model cannot be streamed: {reason}"


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, LONGEST - 1), st.integers(0, LONGEST - 1))
def test_every_element_of_a_mask_counts(step: int, key: int) -> None:
    """A triangle with one element turned over: still causal where that is not behind the step, which sees another."""
    table = np.tril(np.ones((LONGEST, LONGEST), bool))
    table[step, key] ^= True
    cut = "\n some = Slice (mask, first, steps1, first)\n seen = Slice (some, first, steps1, second)"
    source = model(BEGIN, PLAIN, SCORES, cut + "\n masked = Where (seen, scores, low)", SOFTMAX, END)
    source.graph.initializer.append(onnx.numpy_helper.from_array(table, "mask"))
    if key > step or step == 0:
        with pytest.raises(
            DlcError, match="scores of later steps" if key > step else "hides all positions from a step"
        ):
            dlc.compile(source, target="reference", stream=True)
        return
    session = dlc.load(dlc.compile(source, target="reference", stream=True))
    tokens = tokens_of(session, 1, LONGEST)
    whole = session.run({"tokens": tokens})["logits"]
    np.testing.assert_allclose(in_parts(session, tokens, [1, 7, 8, 20]), whole, rtol=1e-4, atol=1e-5)


def test_the_longest_sequence_must_be_known() -> None:
    with pytest.raises(DlcError) as error:
        dlc.compile(MODELS["mask: Trilu"](), target="reference", stream=True)
    text = "it depends on the positions of the steps: say how long a sequence may become (max_length)"
    assert str(error.value) == f"the model cannot be streamed: node Add 'x': {text}"
    with pytest.raises(DlcError, match="max_length is 25, the model takes 24 steps at most"):
        dlc.compile(MODELS["a table that is cut"](), target="reference", stream=True, max_length=25)
    with pytest.raises(DlcError) as error:
        dlc.compile(MODELS["mask: Trilu"](), target="reference", stream=True, max_length=25)
    assert "node Gather 'place': it cannot be computed for a sequence of 25 steps (max_length is 25)" in str(
        error.value
    )
    for options in ({"max_length": 5}, {"max_length": 0, "stream": True}):
        with pytest.raises(DlcError, match="it must be positive, and is of a model with stream"):
            dlc.compile(MODELS["rotary"](), **options)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_cache_that_is_full_says_so_and_stays(target: str) -> None:
    session = dlc.load(dlc.compile(MODELS["rotary"](), target=target, stream=True, max_length=6))
    stream, tokens = session.stream(), tokens_of(session, 1, 6)
    stream.run({"tokens": tokens[:, :4]})
    with pytest.raises(DlcError) as error:
        stream.run({"tokens": tokens[:, :3]})
    text = "the sequence would have 7 steps, and the model was compiled for 6 at most (max_length)"
    assert str(error.value) == f"input 'tokens': {text}"
    last = stream.run({"tokens": tokens[:, 4:]})["logits"]
    np.testing.assert_allclose(last, session.run({"tokens": tokens})["logits"][:, 4:], rtol=1e-5, atol=1e-6)
    assert session.generate(tokens[:, :3], 4).shape == (1, 4)  # the last token is not given back
    with pytest.raises(DlcError) as error:
        session.generate(tokens[:, :3], 5)
    text = "3 tokens of the prompt and 5 steps are too many: the model was compiled for sequences of 6 (max_length)"
    assert str(error.value) == text
    stream.reset()
    stream.run({"tokens": tokens})
