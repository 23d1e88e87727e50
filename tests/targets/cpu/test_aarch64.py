"""AArch64: what is compiled on x86-64 gives, run by an emulator, what the reference gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from aarch64_emulator import INSTALLED, run_emulated
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.hardware import Machine, this_machine
from dlc.targets.cpu.isa import AARCH64_LEVELS, GENERIC, levels_of

LEVELS = [isa.name for isa in AARCH64_LEVELS]
RNG = np.random.default_rng(71)
needs_emulator = pytest.mark.skipif(
    not INSTALLED, reason="no qemu-user or gcc-aarch64-linux-gnu: scripts/install-system-packages.sh"
)


def held(model: Any, inputs: dict[str, np.ndarray], level: str, folder: Path, **options: Any) -> Any:
    """Pairs of outputs: the emulated processor's and the reference's."""
    wanted = list(dlc.load(dlc.compile(model, "reference", **options)).run(inputs).values())
    package = dlc.compile(model, f"cpu:{level}", **options)
    return zip(run_emulated(package, inputs, wanted, folder), wanted, strict=True)


def network() -> Any:
    """A strided convolution, a depthwise one, pooling, classes."""
    shapes = {"w": (20, 3, 3, 3), "b": (20,), "d": (20, 1, 3, 3), "v": (20, 11)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "d"], ["e"], group=20, pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["e"], ["m"], kernel_shape=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 11])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 11])
    arrays = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32) / 4, n) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@needs_emulator
@pytest.mark.parametrize("level", LEVELS)
def test_integers_are_those_of_the_reference(level: str, tmp_path: Path) -> None:
    inputs = {"x": RNG.standard_normal((3, 3, 9, 11)).astype(np.float32)}
    for result, wanted in held(network(), inputs, level, tmp_path, quantize="int8", calibration="random"):
        np.testing.assert_array_equal(result, wanted)


@needs_emulator
@pytest.mark.parametrize("level", LEVELS)
def test_products_over_the_whole_range(level: str, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (uint8[m, 67] a, int8[67, 37] b) => (int32[m, 37] y) { y = MatMulInteger (a, b) }"""
    model = onnx.parser.parse_model(text)
    weights = RNG.choice(np.array([-128, -127, 0, 1, 127], np.int8), (67, 37))
    model.graph.initializer.append(numpy_helper.from_array(weights, "b"))
    a = RNG.choice(np.array([0, 1, 127, 128, 255], np.uint8), (19, 67))
    for result, wanted in held(model, {"a": a}, level, tmp_path):
        np.testing.assert_array_equal(result, wanted)
        np.testing.assert_array_equal(result, a.astype(np.int32) @ weights.astype(np.int32))


@needs_emulator
def test_weights_of_four_bits(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[m, 64] x) => (float[m, 40] y) { y = MatMul (x, w) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal((64, 40)).astype(np.float32), "w"))
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    for result, wanted in held(model, {"x": x}, "aarch64-dot", tmp_path, quantize="int4"):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


@needs_emulator
def test_floats_are_within_bounds(tmp_path: Path) -> None:
    inputs = {"x": RNG.standard_normal((3, 3, 9, 11)).astype(np.float32)}
    for result, wanted in held(network(), inputs, "aarch64", tmp_path):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)


@needs_emulator
def test_functions_and_rounding(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 40] x) => (
        float[n, 40] e, float[n, 40] t, float[n, 40] s, float[n, 40] p, float[n, 40] r, int32[n, 40] c, float[n, 40] m
    ) {
        half = Constant <value_float = 0.5> ()
        e = Exp (x)
        t = Tanh (x)
        s = Sigmoid (x)
        p = Softmax (x)
        r = Round (x)
        q = IsNaN (x)
        k = Where (q, half, x)
        c = Cast <to = 6> (k)
        m = Max (x, half)
    }"""
    x = (RNG.standard_normal((5, 40)) * 8).astype(np.float32)
    x[0, :8] = [0.5, 1.5, -0.5, -2.5, 8388607.5, -0.0, 1e9, -60]
    x[4, 3] = np.nan
    pairs = list(held(onnx.parser.parse_model(text), {"x": x}, "aarch64", tmp_path))
    for result, wanted in pairs:
        np.testing.assert_allclose(result, wanted, rtol=3e-6, atol=1e-7)
    for result, wanted in pairs[4:]:
        np.testing.assert_array_equal(result, wanted)


@needs_emulator
def test_recurrence(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[time, batch, 5] x) => (float[time, 1, batch, 4] y, float[1, batch, 4] last) {
        y, last = GRU <hidden_size = 4> (x, w, r)
    }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w", (1, 12, 5)), ("r", (1, 12, 4))):
        model.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name))
    x = RNG.standard_normal((6, 2, 5)).astype(np.float32)
    for result, wanted in held(model, {"x": x}, "aarch64", tmp_path):
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


@needs_emulator
def test_threads(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[300, 400] x) => (float[300, 400] y) { e = Exp (x)
        y = Softmax (e) }"""
    x = RNG.standard_normal((300, 400)).astype(np.float32)
    package = dlc.compile(onnx.parser.parse_model(text), "cpu:aarch64")
    assert package.manifest["build"]["shared"]
    (one,), (three,) = (run_emulated(package, {"x": x}, [x], tmp_path, threads) for threads in (1, 3))
    wanted = np.exp(np.exp(x) - np.exp(x).max(1, keepdims=True))
    np.testing.assert_allclose(one, wanted / wanted.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(one, three)


def test_the_levels_of_a_machine() -> None:
    def names(*features: str) -> list[str]:
        return [isa.name for isa in levels_of(Machine("aarch64", "made up", frozenset(features), 1, 1, 1, 1))]

    assert names("asimd", "asimddp", "i8mm") == LEVELS
    assert names("asimd", "asimddp") == LEVELS[1:]
    assert names("asimd", "i8mm") == LEVELS[2:]
    assert names() == [GENERIC.name]


@pytest.mark.skipif(this_machine().arch == "aarch64", reason="this processor runs it")
def test_another_processor_refuses() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Relu (x) }'
    package = dlc.compile(onnx.parser.parse_model(text), "cpu:aarch64-dot")
    with pytest.raises(DlcError, match="the package is for aarch64 processors, and this machine is x86_64"):
        dlc.load(package)
