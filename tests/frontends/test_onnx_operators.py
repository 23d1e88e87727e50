"""Operators that ONNX's node cases hold to few shapes: against onnxruntime, numpy and ml_dtypes over more of them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.frontends.build import FLOAT, graph_of, model, node, run


def runtime(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """ONNX Runtime's outputs; their declared types are left for it to infer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.output:
        value.ClearField("type")
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, feeds)]


def agree(nodes: list[onnx.NodeProto], outputs: list[str], opset: int = 20, bound: float = 1e-5, **feeds: Any) -> None:
    """Our outputs are onnxruntime's."""
    inputs = {n: (helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)) for n, a in feeds.items()}
    proto = model(nodes, inputs, outputs, opset=opset)
    for got, wanted in zip(run(graph_of(proto), *feeds.values()), runtime(proto, **feeds), strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=bound, atol=bound)


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode: str, padding: str, aligned: int) -> None:
    rng = np.random.default_rng(1)
    sample = node("GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=aligned)
    grid = rng.uniform(-1.7, 1.7, (2, 4, 5, 2)).astype(np.float32)
    agree([sample], ["y"], x=floats(rng, 2, 3, 6, 7), g=grid, bound=1e-4)


@pytest.mark.parametrize("opset", [10, 16])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("images", [1, 3])
def test_roi_align(images: int, mode: str, opset: int) -> None:
    rng = np.random.default_rng(2)
    corners = np.sort(rng.uniform(-4, 34, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    batch = rng.integers(0, images, 5)
    options = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5, "mode": mode}
    align = node("RoiAlign", ["x", "r", "b"], ["y"], **options)
    agree([align], ["y"], opset=opset, x=floats(rng, images, 2, 12, 15), r=corners, b=batch, bound=1e-4)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_max_pool_indices(dtype: Any, order: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-20, 20, (2, 3, 8, 9)).astype(dtype)  # with ties
    options = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2]}
    agree([node("MaxPool", ["x"], ["y", "i"], **options, storage_order=order)], ["y", "i"], opset=12, x=x)


def test_max_unpool_undoes() -> None:
    rng = np.random.default_rng(4)
    options = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [node("MaxPool", ["x"], ["y", "i"], **options), node("MaxUnpool", ["y", "i"], ["z"], **options)]
    agree(nodes, ["z"], opset=11, x=floats(rng, 2, 3, 6, 8))


def test_col2im_is_the_transpose_of_windows() -> None:
    """Columns of ones count the windows over each pixel: what a sum of windows scattered back must be."""
    rng = np.random.default_rng(5)
    windows = [3, 2]
    proto = model(
        [node("Col2Im", ["x", "s", "k"], ["y"], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[1, 2])],
        {"x": ["n", 2 * 6, 3 * 6]},
        ["y"],
        {"s": np.array([6, 7]), "k": np.array(windows)},
    )
    x = floats(rng, 2, 12, 18)
    (y,) = run(graph_of(proto), x)
    expected = np.zeros((2, 2, 7, 8), np.float32)
    columns = x.reshape(2, 2, 3, 2, 3, 6)
    for i in range(3):
        for j in range(2):
            expected[:, :, i : i + 5 : 2, 2 * j : 2 * j + 6] += columns[:, :, i, j]
    np.testing.assert_allclose(y, expected[:, :, 1:, :7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_deformable_convolution_without_offsets_is_a_convolution(groups: int) -> None:
    rng = np.random.default_rng(6)
    options = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2], "group": groups}
    x, w, b = floats(rng, 2, 4, 9, 8), floats(rng, 6, 4 // groups, 3, 2), floats(rng, 6)
    outs = [5, 8]
    shapes = {"x": list(x.shape), "w": list(w.shape), "o": [2, 2 * 6 * 2, *outs], "b": [6], "m": [2, 2 * 6, *outs]}
    deform = node("DeformConv", ["x", "w", "o", "b", "m"], ["y"], offset_group=2, **options)
    plain = node("Conv", ["x", "w", "b"], ["y"], **options)
    zero, ones = np.zeros(shapes["o"], np.float32), np.ones(shapes["m"], np.float32)
    (got,) = run(graph_of(model([deform], shapes, ["y"])), x, w, zero, b, ones)
    (wanted,) = run(graph_of(model([plain], {n: shapes[n] for n in "xwb"}, ["y"])), x, w, b)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 12, 1031, 1536, 2048])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_dft(length: int, parts: int, inverse: int) -> None:
    x = floats(np.random.default_rng(length), 2, length, parts)
    (y,) = run(graph_of(model([node("DFT", ["x"], ["y"], inverse=inverse)], {"x": [2, length, parts]}, ["y"])), x)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    wanted = (np.fft.ifft if inverse else np.fft.fft)(signal.astype(np.complex128), axis=1)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], wanted, rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize("length", [8, 9, 1030])
def test_dft_of_half_spectra(length: int) -> None:
    x = floats(np.random.default_rng(length), 3, length, 1)
    forward = model([node("DFT", ["x"], ["y"], onesided=1)], {"x": [3, length, 1]}, ["y"])
    (half,) = run(graph_of(forward), x)
    assert half.shape == (3, length // 2 + 1, 2)
    nodes = [node("DFT", ["h", "n"], ["y"], onesided=1, inverse=1)]
    (back,) = run(graph_of(model(nodes, {"h": list(half.shape)}, ["y"], {"n": np.array(length)})), half)
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int) -> None:
    rng = np.random.default_rng(8)
    values = {"step": np.array(5), "w": np.hanning(16).astype(np.float32)}
    proto = model([node("STFT", ["x", "step", "w"], ["y"], onesided=onesided)], {"x": [2, "n", 1]}, ["y"], values)
    x = floats(rng, 2, 60, 1)
    (y,) = run(graph_of(proto), x)
    frames = np.stack([x[:, i : i + 16, 0] * values["w"] for i in range(0, 45, 5)], axis=1)
    wanted = (np.fft.rfft if onesided else np.fft.fft)(frames, axis=2)
    np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], wanted, rtol=0, atol=1e-5)


def test_exponents_as_numbers() -> None:
    codes = np.arange(256, dtype=np.uint8)
    nodes = [
        node("BitCast", ["x"], ["e"], to=TensorProto.FLOAT8E8M0),
        node("Cast", ["e"], ["y"], to=FLOAT),
        node("Cast", ["y"], ["e2"], to=TensorProto.FLOAT8E8M0),
        node("BitCast", ["e2"], ["z"], to=TensorProto.UINT8),
    ]
    proto = model(nodes, {"x": (TensorProto.UINT8, [256])}, ["y", "z"], opset=26, ir_version=13)
    y, z = run(graph_of(proto), codes)
    np.testing.assert_array_equal(y, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert np.array_equal(z, codes)


@pytest.mark.parametrize(
    ("mode", "expected"), [("up", [1, 2, 2, 4]), ("down", [1, 1, 1, 2]), ("nearest", [1, 1, 2, 4])]
)
def test_exponents_are_rounded(mode: str, expected: list[float]) -> None:
    x = np.array([1.0, 1.25, 1.5, 3.0], np.float32)
    nodes = [
        node("Cast", ["x"], ["e"], to=TensorProto.FLOAT8E8M0, round_mode=mode),
        node("Cast", ["e"], ["y"], to=FLOAT),
    ]
    (y,) = run(graph_of(model(nodes, {"x": [4]}, ["y"], opset=26, ir_version=13)), x)
    assert y.tolist() == expected
