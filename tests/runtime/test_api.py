"""`dlc.compile` and its calibration data in every form, and the comparison that `dlc check` rests on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.check import Tolerance, compare, input_shapes, random_inputs
from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.session import TensorInfo

DATA = np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32)


def model(batch: int | str = "n") -> onnx.ModelProto:
    weights = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x:0", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x:0", TensorProto.FLOAT, [batch, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 6])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised(calibration: Any, batch: int | str = "n") -> Package:
    return dlc.compile(model(batch), "reference", "int8", calibration)


def test_version() -> None:
    assert dlc.__version__ == version("dlc")


def test_compile_a_proto() -> None:
    seen: list[str] = []
    package = dlc.compile(model(), "reference", progress=lambda stage, done, total: seen.append(stage))
    outputs = dlc.load(package).run({"x:0": DATA})
    expected = np.maximum(DATA @ numpy_helper.to_array(model().graph.initializer[0]), 0)
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-5, atol=1e-5)
    assert seen[0] == "frontend" and seen[-1] == "build" and "simplify" in seen


def test_shapes_are_fixed() -> None:
    package = dlc.compile(model(), "reference", shapes={"x:0": (4, 6)})
    assert package.manifest["inputs"][0]["shape"] == [4, 6]
    with pytest.raises(DlcError, match="there is no input 'z' to give a shape to"):
        dlc.compile(model(), "reference", shapes={"z": (1,)})


def test_every_form_of_calibration_gives_the_same_package(tmp_path: Any) -> None:
    np.savez(tmp_path / "data.npz", **{"x:0": DATA})
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "1.npz", **{"x:0": DATA[:20]})
    np.savez(tmp_path / "folder" / "2.npz", **{"x:0": DATA[20:]})

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for begin in range(0, 48, 16):
            yield {"x:0": DATA[begin : begin + 16]}

    forms: list[Any] = [tmp_path / "data.npz", str(tmp_path / "data.npz"), tmp_path / "folder", {"x:0": DATA}]
    forms += [{"x:0": DATA[:, None]}, stream(), list(stream())]
    made = [bytes(quantised(form).member("constants.safetensors")) for form in forms]
    assert all(each == made[0] for each in made)


def test_fixed_batches() -> None:
    whole, cut = quantised({"x:0": DATA}, 16), quantised({"x:0": DATA[:40]}, 16)
    less = quantised({"x:0": DATA[:32]}, 16)
    assert whole.manifest["notes"]["calibration"]["samples"] == 3
    assert bytes(cut.member("constants.safetensors")) == bytes(less.member("constants.safetensors"))


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        ({}, "calibration: no array for input 'x:0'; it has none"),
        ({"x:0": DATA, "z": DATA}, "calibration: array 'z' is no input; the inputs are x:0"),
        ({"x:0": DATA.astype(np.float64)}, "calibration: array 'x:0' is float64, but the input is float32"),
        ({"x:0": DATA[:, :3]}, r"calibration: array 'x:0' has shape \[48, 3\], but the input has shape \[n, 6\]"),
        ([DATA], "calibration: a sample is a ndarray, expected a dict of arrays"),
        ([{"z": DATA}], "calibration: sample 1 has no array for input"),
        (7, "calibration is a int; expected a path"),
        ("random:x", "calibration 'random:x': the seed must be a whole number"),
        (None, "int8 quantisation of this model needs calibration data"),
        ([], "the calibration data holds no samples"),
    ],
)
def test_bad_calibration(calibration: Any, text: str) -> None:
    with pytest.raises(DlcError, match=text):
        quantised(calibration)


def test_batch_that_is_not_filled() -> None:
    with pytest.raises(DlcError, match="5 samples do not fill the batch of 16 of 'x:0'"):
        quantised({"x:0": DATA[:5]}, 16)


def test_bad_options() -> None:
    for keywords, text in (
        ({"quantize": "int3"}, "unknown quantize 'int3'"),
        ({"arithmetic": "roman"}, "unknown arithmetic 'roman'"),
        ({"calibration_method": "guess"}, "unknown calibration_method 'guess'"),
        ({"target": "nonsense"}, "unknown target 'nonsense'; known: "),
    ):
        with pytest.raises(DlcError, match=text):
            dlc.compile(model(), **{"target": "reference", **keywords})  # type: ignore[arg-type]


def test_compiling_does_not_import_torch(tmp_path: Any) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    code = "import sys, dlc; dlc.compile(sys.argv[1], 'reference'); print('tvm' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True False"


# --- comparing -------------------------------------------------------------------------------------------------------


def agrees(actual: Any, expected: Any, **tolerance: Any) -> bool:
    return compare("v", np.asarray(actual), np.asarray(expected), Tolerance(**tolerance)).agrees


def test_compare_floats() -> None:
    one = np.float32(1)
    assert agrees([one, 1000.5], [one, 1000.0]) and not agrees([one, 1002.0], [one, 1000.0])
    assert not agrees([one], [one, one]) and not agrees(np.ones(2), np.ones(2, np.float32))
    nan, inf = np.nan, np.inf
    assert agrees([nan, inf, -inf, 1.0], [nan, inf, -inf, 1.0])
    assert not agrees([nan], [1.0]) and not agrees([1.0], [nan])
    assert not agrees([inf], [-inf]) and not agrees([1.0], [inf]) and not agrees([inf], [1.0])
    assert agrees(np.empty((0, 3)), np.empty((0, 3)))


def test_compare_integers_exactly() -> None:
    assert agrees([5000], [5000]) and not agrees([5001], [5000])
    assert agrees([5001], [5000], atol=1)
    assert agrees([True], [True]) and not agrees([True], [False])


def test_compare_by_noise() -> None:
    signal = np.sin(np.arange(1000.0))
    assert agrees(signal * 1.01, signal, snr=39) and not agrees(signal * 1.01, signal, snr=41)
    assert agrees(signal, signal, snr=500) and agrees([0.0], [0.0], snr=15)
    assert not agrees([1.0], [0.0], snr=15) and not agrees([np.nan, 1.0], [1.0, 1.0], snr=15)


def test_random_inputs() -> None:
    infos = [TensorInfo("a", ("n", 3), "float32"), TensorInfo("b", ("2*n",), "int64"), TensorInfo("c", (), "uint8")]
    first, again = (random_inputs(infos, {"a": (5, 3)}, 1) for _ in range(2))
    assert {k: v.shape for k, v in first.items()} == {"a": (5, 3), "b": (10,), "c": ()}
    assert all(np.array_equal(first[k], again[k]) for k in first) and set(np.unique(first["b"])) <= {0, 1}
    assert input_shapes(infos, {}) == {"a": (1, 3), "b": (2,), "c": ()}
    with pytest.raises(DlcError, match=r"input 'a' has shape \[5, 4\], expected \[n, 3\]"):
        random_inputs(infos, {"a": (5, 4)})
    with pytest.raises(DlcError, match="the shape of input 'a' must be numbers here"):
        random_inputs(infos, {"a": ("m", 3)})
