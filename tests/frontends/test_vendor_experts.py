"""MoE against onnxruntime, and against the operator's text in numpy where onnxruntime's CPU has no kernel for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import dlc
from dlc.errors import DlcError
from tests.frontends.build import graph_of, model, node, run
from tests.frontends.test_onnx_operators import runtime

IMPORTS = [helper.make_opsetid("com.microsoft", 1)]
HIDDEN, INNER, EXPERTS, TOKENS = 12, 20, 5, 9
NAMES = ["x", "r", "w1", "b1", "w2", "b2", "w3", "b3"]


def _values(seed: int, fused: int = 1, third: bool = False, bias: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"w1": (EXPERTS, fused * INNER, HIDDEN), "w2": (EXPERTS, HIDDEN, INNER)}
    if bias:
        shapes |= {"b1": (EXPERTS, fused * INNER), "b2": (EXPERTS, HIDDEN)}
    if third:
        shapes |= {"w3": (EXPERTS, INNER, HIDDEN), "b3": (EXPERTS, INNER)}
    return {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def _feed(seed: int, *lead: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + seed)
    tokens = int(np.prod(lead))
    feed = {"x": rng.standard_normal((*lead, HIDDEN)), "r": 2 * rng.standard_normal((tokens, EXPERTS))}
    return {name: array.astype(np.float32) for name, array in feed.items()}


def _model(feed: dict[str, np.ndarray], values: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    names = [n if n in feed or n in values else "" for n in NAMES]
    while not names[-1]:
        names.pop()
    one = node("MoE", names, ["y"], "experts", domain="com.microsoft", **attributes)
    inputs = {n: list(a.shape) for n, a in feed.items()}
    return model([one], inputs, ["y"], values, opset=17, imports=IMPORTS, ir_version=8)


def _hold(feed: dict[str, np.ndarray], values: dict[str, np.ndarray], **attributes: Any) -> None:
    proto = _model(feed, values, **attributes)
    (ours,), (theirs,) = run(graph_of(proto), *feed.values()), runtime(proto, **feed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalised", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_activations(activation: str, k: int, normalised: int) -> None:
    options = {"k": k, "activation_type": activation, "normalize_routing_weights": normalised}
    _hold(_feed(k, TOKENS), _values(k), **options)


def test_defaults_without_biases() -> None:
    _hold(_feed(7, TOKENS), _values(7, bias=False), k=1, activation_type="relu")


def test_batches_of_sequences() -> None:
    _hold(_feed(8, 3, 4), _values(8), k=2, activation_type="silu")


@pytest.mark.parametrize("more", [{}, {"activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 0.8}])
def test_interleaved_swiglu(more: dict[str, Any]) -> None:
    _hold(_feed(9, TOKENS), _values(9, 2), k=2, activation_type="swiglu", swiglu_fusion=1, **more)


def test_equal_scores() -> None:
    feed = _feed(10, TOKENS)
    feed["r"][:] = np.round(feed["r"] / 2)
    _hold(feed, _values(10), k=2, activation_type="relu")


def test_the_shapes_of_old_models() -> None:
    """They declare (E, hidden, inner) and (E, inner, hidden) for numbers that lie as today."""
    values = _values(11)
    old = {**values, "w1": values["w1"].reshape(EXPERTS, HIDDEN, INNER)}
    old["w2"] = values["w2"].reshape(EXPERTS, INNER, HIDDEN)
    feed = _feed(11, TOKENS)
    results = [run(graph_of(_model(feed, v, k=2)), *feed.values())[0] for v in (values, old)]
    np.testing.assert_array_equal(*results)


def _by_the_text(feed: dict[str, np.ndarray], v: dict[str, np.ndarray], k: int, fusion: int | None) -> np.ndarray:
    """Token by token; `fusion` None is silu times a third layer."""
    scores = np.exp(feed["r"].astype(np.float64))
    scores /= scores.sum(1, keepdims=True)
    result = np.zeros(feed["x"].shape)
    for token, x in enumerate(feed["x"].astype(np.float64)):
        for expert in np.argsort(scores[token])[-k:]:
            wide = v["w1"][expert] @ x + v["b1"][expert]
            gate, line = (wide[:INNER], wide[INNER:]) if fusion == 2 else (wide, v["w3"][expert] @ x + v["b3"][expert])
            inner = gate / (1 + np.exp(-gate)) * line
            result[token] += scores[token, expert] * (v["w2"][expert] @ inner + v["b2"][expert])
    return result


@pytest.mark.parametrize("fusion", [None, 0, 2])
def test_gates_that_onnxruntime_has_no_kernel_for(fusion: int | None) -> None:
    feed, values = _feed(12, TOKENS), _values(12, 2 if fusion == 2 else 1, third=fusion != 2)
    kind = {"activation_type": "silu"} if fusion is None else {"activation_type": "swiglu", "swiglu_fusion": fusion}
    (ours,) = run(graph_of(_model(feed, values, k=2, **kind)), *feed.values())
    np.testing.assert_allclose(ours, _by_the_text(feed, values, 2, fusion), rtol=1e-4, atol=1e-5)


def test_any_number_of_tokens_on_the_cpu() -> None:
    values, rng = _values(13), np.random.default_rng(0)
    proto = _model(_feed(13, 1), values, k=2, activation_type="gelu")
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "tokens"
    session = dlc.load(dlc.compile(proto))
    for tokens in (1, 6, 17):
        feed = _feed(int(rng.integers(99)), tokens)
        (wanted,) = runtime(proto, **feed)
        np.testing.assert_allclose(session.run(feed)["y"], wanted, rtol=1e-4, atol=1e-5)


def _quantised(
    values: dict[str, np.ndarray], bits: int, block: int, zeros: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(what QMoE takes, what its codes stand for)."""
    rng = np.random.default_rng(bits + block)
    given = {name: array for name, array in values.items() if name.startswith("b")}
    meant = dict(given)
    for number in "12":
        experts, rows, depth = values[f"w{number}"].shape
        size = block or depth
        codes = rng.integers(0, 1 << bits, (experts, rows, depth)).astype(np.uint8)
        steps = rng.uniform(0.01, 0.05, (experts, rows, depth // size)).astype(np.float32)
        shift = np.full(steps.shape, 1 << (bits - 1))
        if zeros:
            shift = rng.integers(0, 1 << bits, steps.shape)
            rowed = shift.astype(np.uint8) if block else shift[..., 0].astype(np.uint8)
            given[f"z{number}"] = _packed(rowed, bits)
        given |= {f"w{number}": _packed(codes, bits), f"s{number}": steps if block else steps[..., 0]}
        blocks = codes.reshape(experts, rows, -1, size)
        meant[f"w{number}"] = ((blocks - shift[..., None]) * steps[..., None]).reshape(codes.shape).astype(np.float32)
    return given, meant


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes in bytes, the first ones in the lowest bits."""
    parts = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % parts)])
    apart = padded.reshape(*padded.shape[:-1], -1, parts)
    return sum(apart[..., i] << (bits * i) for i in range(parts)).astype(np.uint8)


QNAMES = ["x", "r", "w1", "s1", "b1", "w2", "s2", "b2", "w3", "s3", "b3", "z1", "z2"]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_few_bits(bits: int, block: int, zeros: bool) -> None:
    rng, hidden, inner = np.random.default_rng(bits), 32, 48
    values = {
        "w1": np.empty((EXPERTS, 2 * inner, hidden)), "w2": np.empty((EXPERTS, hidden, inner)),
        "b1": rng.standard_normal((EXPERTS, 2 * inner)).astype(np.float32),
        "b2": rng.standard_normal((EXPERTS, hidden)).astype(np.float32),
    }  # fmt: skip
    given, meant = _quantised(values, bits, block, zeros)
    feed = {"x": rng.standard_normal((TOKENS, hidden)), "r": rng.standard_normal((TOKENS, EXPERTS))}
    feed = {name: array.astype(np.float32) for name, array in feed.items()}
    options = {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1}
    names = [n if n in feed or n in given else "" for n in QNAMES]
    more = {"expert_weight_bits": bits} | ({"block_size": block} if block else {})
    one = node("QMoE", names, ["y"], "experts", domain="com.microsoft", **options, **more)
    inputs = {n: list(a.shape) for n, a in feed.items()}
    proto = model([one], inputs, ["y"], given, opset=17, imports=IMPORTS, ir_version=8)
    (ours,) = run(graph_of(proto), *feed.values())
    (plain,) = run(graph_of(_model(feed, meant, **options)), *feed.values())
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    # onnxruntime rounds activations to 8 bits in places.
    (theirs,) = runtime(proto, **feed)
    assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"k": 6}, "6 of 5 experts"),
        ({"activation_type": "wave"}, "activation_type 'wave' is not known"),
        ({"activation_type": "swiglu"}, "activation_type 'swiglu' with swiglu_fusion 0 needs fc3_experts_weights"),
        ({"use_sparse_mixer": 1, "k": 2}, "attribute 'use_sparse_mixer' is not supported"),
    ],
)
def test_errors_name_the_node(attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(DlcError) as caught:
        graph_of(_model(_feed(0, TOKENS), _values(0), **attributes))
    assert str(caught.value) == f"model: node 'experts' (com.microsoft.MoE): {text}"
