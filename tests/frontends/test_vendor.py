"""Operators of the domain com.microsoft against onnxruntime, over random inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from tests.frontends.build import graph_of, model, node, run
from tests.frontends.test_onnx_operators import runtime

IMPORTS = [helper.make_opsetid("com.microsoft", 1)]
SEEDS = pytest.mark.parametrize("seed", range(3))
TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.int8])


def both(
    operator: str,
    names: list[str],
    feeds: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    outputs: tuple[str, ...] = ("y",),
    **attributes: Any,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Our outputs, each beside onnxruntime's."""
    inputs = {n: (helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)) for n, a in feeds.items()}
    one = node(operator, names, list(outputs), "n", domain="com.microsoft", **attributes)
    proto = model([one], inputs, [o for o in outputs if o], constants or {}, opset=17, imports=IMPORTS, ir_version=8)
    ours, theirs = run(graph_of(proto), *feeds.values()), runtime(proto, **feeds)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
    return list(zip(ours, theirs, strict=True))


def close(pairs: list[tuple[np.ndarray, np.ndarray]], bound: float = 2e-5) -> None:
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound)


def within_a_step(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for ours, theirs in pairs:
        assert np.abs(ours.astype(np.int32) - theirs.astype(np.int32)).max() <= 1


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def codes(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def scale(rng: np.random.Generator, low: float = 0.01, high: float = 0.1) -> np.ndarray:
    return np.asarray(rng.uniform(low, high), np.float32)


@SEEDS
@TYPES
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
def test_qlinear_binary(operator: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"as": scale(rng), "az": codes(rng, dtype), "bs": scale(rng), "bz": codes(rng, dtype)}
    values |= {"ys": scale(rng, 0.05, 0.3), "yz": codes(rng, dtype)}
    feeds = {"a": codes(rng, dtype, 3, 1, 40), "b": codes(rng, dtype, 5, 40)}
    within_a_step(both(operator, ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], feeds, values))


@SEEDS
@TYPES
@pytest.mark.parametrize("operator", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_qlinear_unary(operator: str, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"xs": scale(rng), "xz": codes(rng, dtype), "ys": scale(rng, 0.004, 0.1), "yz": codes(rng, dtype)}
    attributes = {"alpha": 0.2} if operator == "QLinearLeakyRelu" else {}
    x = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    within_a_step(both(operator, ["x", "xs", "xz", "ys", "yz"], {"x": x}, values, **attributes))


@SEEDS
@pytest.mark.parametrize("last", [0, 1])
def test_qlinear_global_average_pool(last: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"xs": scale(rng), "xz": codes(rng, np.uint8), "ys": scale(rng, 0.005, 0.05), "yz": codes(rng, np.uint8)}
    feeds = {"x": codes(rng, np.uint8, 2, 5, 6, 7)}
    names = ["x", "xs", "xz", "ys", "yz"]
    within_a_step(both("QLinearGlobalAveragePool", names, feeds, values, channels_last=last))


@SEEDS
@pytest.mark.parametrize("counted", [0, 1])
def test_qlinear_average_pool(counted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"xs": scale(rng), "xz": codes(rng, np.uint8), "ys": scale(rng), "yz": codes(rng, np.uint8)}
    options = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "count_include_pad": counted}
    names = ["x", "xs", "xz", "ys", "yz"]
    within_a_step(both("QLinearAveragePool", names, {"x": codes(rng, np.uint8, 2, 3, 8, 7)}, values, **options))


@SEEDS
@TYPES
def test_qlinear_concat(dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"ys": scale(rng), "yz": codes(rng, dtype), "as": scale(rng), "az": codes(rng, dtype)}
    feeds = {"a": codes(rng, dtype, 2, 9), "b": codes(rng, dtype, 2, 5)}
    within_a_step(both("QLinearConcat", ["ys", "yz", "a", "as", "az", "b", "ys", "yz"], feeds, values, axis=1))


@SEEDS
@pytest.mark.parametrize("quantised", [False, True])
def test_qgemm(quantised: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"as": scale(rng), "az": codes(rng, np.uint8), "b": rng.integers(-64, 64, (6, 20)).astype(np.int8)}
    values |= {"bs": scale(rng), "bz": np.zeros((), np.int8), "c": rng.integers(-999, 999, 6).astype(np.int32)}
    values |= {"ys": scale(rng, 1, 3), "yz": codes(rng, np.uint8)}
    names = ["a", "as", "az", "b", "bs", "bz", "c"] + (["ys", "yz"] if quantised else [])
    pairs = both("QGemm", names, {"a": codes(rng, np.uint8, 4, 20)}, {n: values[n] for n in names[1:]}, transB=1)
    if quantised:  # one integer term: equal
        np.testing.assert_array_equal(*pairs[0])
    else:
        close(pairs)


@SEEDS
def test_dynamic_quantize_matmul(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"b": rng.integers(-64, 64, (24, 6)).astype(np.int8), "bs": rng.uniform(0.01, 0.02, 6).astype(np.float32)}
    values |= {"bz": np.zeros(6, np.int8), "c": floats(rng, 6)}
    close(both("DynamicQuantizeMatMul", ["a", "b", "bs", "bz", "c"], {"a": floats(rng, 3, 24)}, values), 1e-4)


@SEEDS
def test_matmul_integer_to_float(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {"b": rng.integers(-64, 64, (24, 6)).astype(np.int8), "as": scale(rng), "bs": scale(rng)}
    values |= {"az": codes(rng, np.uint8), "bz": np.zeros((), np.int8), "c": floats(rng, 6)}
    names = ["a", "b", "as", "bs", "az", "bz", "c"]
    close(both("MatMulIntegerToFloat", names, {"a": codes(rng, np.uint8, 3, 24)}, values), 1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("depth", [64, 80])
def test_matmul_nbits(depth: int, zeros: bool, bits: int) -> None:
    rng, width, block = np.random.default_rng(depth), 7, 32
    blocks = -(-depth // block)
    values = {
        "b": codes(rng, np.uint8, width, blocks, block * bits // 8),
        "s": rng.uniform(0.01, 0.1, width * blocks).astype(np.float32),
        "z": codes(rng, np.uint8, width * -(-blocks * bits // 8)),
    }
    names = ["a", "b", "s"] + (["z"] if zeros else [])
    options = {"K": depth, "N": width, "bits": bits, "block_size": block}
    pairs = both("MatMulNBits", names, {"a": floats(rng, 2, 3, depth)}, {n: values[n] for n in names[1:]}, **options)
    close(pairs, 1e-3)


@SEEDS
def test_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = floats(rng, 2, 6, 4), floats(rng, 2, 5, 6)
    close(both("FusedMatMul", ["a", "b"], {"a": a, "b": b}, transA=1, transB=1, alpha=0.5))
    feeds = {"a": floats(rng, 4, 6), "b": floats(rng, 6, 5), "c": floats(rng, 5)}
    for activation in ("Relu", "Tanh", "Sigmoid"):
        close(both("FusedGemm", ["a", "b", "c"], feeds, activation=activation))
    close(both("FusedGemm", ["a", "b", "c"], feeds, activation="LeakyRelu", activation_alpha=0.2))


@SEEDS
def test_fused_conv(seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = {"x": floats(rng, 1, 4, 7, 7)}
    values = {"w": floats(rng, 6, 4, 3, 3), "b": floats(rng, 6)}
    close(both("FusedConv", ["x", "w", "b"], feeds, values, activation="Relu", pads=[1, 1, 1, 1]))
    clip = {"activation": "Clip", "activation_params": [0.0, 6.0]}
    close(both("FusedConv", ["x", "w", "b"], feeds, values, strides=[2, 2], **clip))


@SEEDS
def test_activations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, bias = 3 * floats(rng, 2, 5, 16), floats(rng, 16)
    close(both("Gelu", ["x"], {"x": x}))
    close(both("BiasGelu", ["x", "b"], {"x": x, "b": bias}))
    close(both("FastGelu", ["x", "b"], {"x": x, "b": bias}))
    close(both("QuickGelu", ["x"], {"x": x}, alpha=1.5))


@SEEDS
def test_normalisations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = {"x": floats(rng, 2, 3, 16), "s": floats(rng, 2, 3, 16), "g": floats(rng, 16), "b": floats(rng, 16)}
    outputs = ("y", "", "", "sum")
    close(both("SkipLayerNormalization", ["x", "s", "g", "b"], feeds, outputs=outputs, epsilon=1e-5))
    plain = {n: feeds[n] for n in "xsg"}
    close(both("SkipSimplifiedLayerNormalization", ["x", "s", "g"], plain, outputs=outputs, epsilon=1e-5))


def test_embed_layer_normalisation() -> None:
    rng = np.random.default_rng(0)
    ids = {n: rng.integers(0, 7, (2, 5)).astype(np.int32) for n in "ws"}
    ids["s"] %= 2
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    values = {"wt": floats(rng, 7, 8), "pt": floats(rng, 9, 8), "st": floats(rng, 2, 8), "g": floats(rng, 8)}
    values["b"] = floats(rng, 8)
    names = ["w", "s", "wt", "pt", "st", "g", "b", "m"]
    close(both("EmbedLayerNormalization", names, {**ids, "m": mask}, values, outputs=("y", "count")))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 6, (10, 4))
    values = {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)}
    places = {"p": np.array([[0, 3, 9], [1, 2, 4]])}
    names = ["x", "p", "c", "s"]
    close(both("RotaryEmbedding", names, {"x": floats(rng, 2, 3, 16), **places}, values, interleaved=interleaved))
    close(both("RotaryEmbedding", names, {"x": floats(rng, 2, 2, 3, 8), **places}, values, interleaved=interleaved))


@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention(causal: int) -> None:
    rng = np.random.default_rng(0)
    feeds = {n: floats(rng, 2, 5, 12) for n in ("q", "k", "v")}
    options = {"num_heads": 3, "unidirectional": causal}
    close(both("MultiHeadAttention", ["q", "k", "v"], feeds, **options))
    feeds |= {"b": floats(rng, 36), "a": floats(rng, 1, 3, 5, 5)}
    close(both("MultiHeadAttention", ["q", "k", "v", "b", "", "a"], feeds, **options))


def test_multi_head_attention_with_a_past() -> None:
    rng = np.random.default_rng(1)
    feeds = {n: floats(rng, 2, 1, 12) for n in ("q", "k", "v")} | {n: floats(rng, 2, 3, 4, 4) for n in ("pk", "pv")}
    names = ["q", "k", "v", "", "", "", "pk", "pv"]
    close(both("MultiHeadAttention", names, feeds, outputs=("y", "nk", "nv"), num_heads=3))


@pytest.mark.parametrize("causal", [0, 1])
def test_attention(causal: int) -> None:
    rng = np.random.default_rng(2)
    feeds = {"x": floats(rng, 2, 5, 8), "m": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)}
    values = {"w": floats(rng, 8, 36), "b": floats(rng, 36)}
    close(both("Attention", ["x", "w", "b", "m"], feeds, values, num_heads=3, unidirectional=causal))


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    nodes = [
        node("Inverse", ["x"], ["a"], "first", domain="com.microsoft"),
        node("Irfft", ["a"], ["y"], "second", domain="com.microsoft"),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, {"x": [2, 2]}, ["y"], imports=IMPORTS), str(path))
    with pytest.raises(DlcError) as caught:
        import_model(path)
    assert str(caught.value) == (
        f"{path}: operators that are not supported: Inverse of domain 'com.microsoft' in 'first'; "
        "Irfft of domain 'com.microsoft' in 'second'"
    )
