"""QDQ ONNX: ours in ONNX Runtime and back, models of others, and the accuracy of the embedded model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from dlc.options import Options
from dlc.passes.quantize import quantize_passes
from dlc.passes.quantize.write_qdq import quantize_onnx
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context
from dlc.zoo import model_path
from dlc.zoo.vision.data import normalise
from tests.passes.quantize.helpers import codes_by_name, quantized, run_checked, snr
from tests.property.graphs import inputs_of, quantizable_models


def ort(model: onnx.ModelProto, x: dict[str, np.ndarray], outputs: list[str] | None = None) -> list[np.ndarray]:
    """Run a model as it is written: fused integer kernels may round a tie of a bias otherwise."""
    if outputs:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs or None, x)


def integers_of(model: onnx.ModelProto, arithmetic: Any = "float") -> Any:
    """A QDQ model through our passes."""
    context = Context(Options(arithmetic=arithmetic))
    return run_checked(import_model(model), [*SIMPLIFY, *quantize_passes(context.options)], context), context


@cache
def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(model_path("vision").with_name(f"{name}.npz")) as data:
        return normalise(data["images"]), data["labels"]


def logits(module: Any, count: int) -> np.ndarray:
    x = images("test")[0][:count]
    graph = view(module)
    return np.concatenate([interpret(graph, {"image": x[i : i + 50]})[0] for i in range(0, len(x), 50)])


@cache
def fp32_logits() -> np.ndarray:
    x, _ = images("test")
    (y,) = onnxruntime.InferenceSession(str(model_path("vision"))).run(None, {"image": x})
    return np.asarray(y)


@pytest.mark.parametrize(
    ("arithmetic", "method", "least_snr", "count"),
    [("float", "minmax", 33, 1000), ("fixed", "minmax", 33, 200), ("float", "percentile", 30, 200),
     ("float", "mse", 30, 200), ("shift", "mse", 25, 1000)],
)  # fmt: skip
def test_int8_accuracy_of_the_embedded_model(arithmetic: str, method: str, least_snr: float, count: int) -> None:
    calibration, labels = images("calibration")[0], images("test")[1]
    samples = [{"image": calibration[i : i + 50]} for i in range(0, 200, 50)]
    result, context = quantized(import_model(model_path("vision")), arithmetic, method, samples)
    y, reference = logits(result, count), fp32_logits()[:count]
    exact, rounded = (int(np.sum(z.argmax(axis=1) == labels[:count])) for z in (reference, y))
    assert rounded >= exact - 3  # of 1,000 images that is 0.3 points
    assert snr(reference, y) > least_snr
    # The quantisation of the input, and the logits in float; shift cannot divide by the 49 elements of the mean.
    assert context.notes["quantization"]["float_nodes"] == (6 if arithmetic == "shift" else 3)
    assert len(context.declined) == (arithmetic == "shift")


def test_the_embedded_model_as_qdq_in_onnxruntime() -> None:
    calibration, labels = images("calibration")[0][:100], images("test")[1]
    model = quantize_onnx(model_path("vision"), {"image": calibration}, Options(quantize="int8"))
    assert len(model.SerializeToString()) < 0.45 * model_path("vision").stat().st_size
    x = images("test")[0][:200]
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    theirs = dict(zip(names, ort(model, {"image": x}, names), strict=True))
    result, context = integers_of(model)
    assert not context.declined
    ours = codes_by_name(view(result), {"image": x})
    # A pair around a reshape is a movement of codes here; every other pair is a value of the same name.
    assert set(names) - set(ours) <= {"/Flatten_output_0_quantized"}
    total = sum(theirs[n].size for n in ours if n in theirs)
    far = sum(int(np.sum(np.abs(theirs[n].astype(int) - ours[n]) > 1)) for n in ours if n in theirs)
    equal = sum(int(np.sum(theirs[n] == ours[n])) for n in ours if n in theirs)
    # What differs: onnxruntime adds a residual in float32 from rounded products, here the sum is exact up to the
    # requantisation; a value at a tie may then fall to the other side, and layers behind it see that one step.
    assert far / total < 1e-3
    assert equal / total > 0.995
    accuracy = float(np.mean(ort(model, {"image": images("test")[0]})[0].argmax(axis=1) == labels))
    assert accuracy >= float(np.mean(fp32_logits().argmax(axis=1) == labels)) - 0.003


def test_the_export_comes_back_as_the_same_integers() -> None:
    calibration = images("calibration")[0][:64]
    model = quantize_onnx(model_path("vision"), {"image": calibration}, Options(quantize="int8"))
    samples = [{"image": calibration[:32]}, {"image": calibration[32:]}]
    direct, _ = quantized(import_model(model_path("vision")), samples=samples)
    back, _ = integers_of(model)
    x = {"image": images("test")[0][:20]}
    for a, b in zip(interpret(view(direct), x), interpret(view(back), x), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(quantizable_models())
def test_random_exports_run_in_onnxruntime(drawn: tuple[onnx.ModelProto, int]) -> None:
    model, seed = drawn
    samples = [{"x": inputs_of(model, seed + i)} for i in range(3)]
    exported = quantize_onnx(model, samples, Options(quantize="int8"))
    onnx.checker.check_model(exported, full_check=True)
    result, _ = integers_of(exported)
    (theirs,), (ours,) = ort(exported, samples[0]), interpret(view(result), samples[0])
    span = float(np.ptp(theirs)) or 1.0
    assert np.mean(np.abs(theirs - ours) > 0.1 * span) < 0.05
    assert set(view(result).attrs["dlc.outputs"]) == {"y"}


def small_model(batch_norm: bool) -> onnx.ModelProto:
    """Convolution, optional batch normalisation, relu, dense layer over the mean."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(0, 0.3, (8, 3, 3, 3)), "g": rng.uniform(0.5, 2, 8), "b": rng.normal(0, 1, 8),
        "m": rng.normal(0, 1, 8), "v": rng.uniform(0.2, 2, 8), "d": rng.normal(0, 0.5, (8, 4)),
        "e": rng.normal(0, 1, 4),
    }  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4)]
    if batch_norm:
        nodes.append(helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], "norm"))
    nodes += [
        helper.make_node("Relu", ["n" if batch_norm else "c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "d", "e"], ["y"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items() if batch_norm or k not in "gbmv"],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)


def smooth(count: int, seed: int) -> np.ndarray:
    """Images with the falling spectrum of natural ones."""
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((count, 3, 10, 10)))
    frequency = np.sqrt(np.add.outer(np.fft.fftfreq(10) ** 2, np.fft.fftfreq(10) ** 2)) + 0.1
    return np.real(np.fft.ifft2(noise / frequency)).astype(np.float32)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_batch_norms_are_folded_and_old_opsets_raised(batch_norm: bool) -> None:
    model = small_model(batch_norm)
    exported = quantize_onnx(model, {"x": smooth(64, 0)}, Options(quantize="int8"))
    kinds = [n.op_type for n in exported.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("QuantizeLinear") == 4
    x = {"x": smooth(64, 1)}
    (reference,), (theirs,) = ort(model, x), ort(exported, x)
    result, context = integers_of(exported)
    (ours,) = interpret(view(result), x)
    assert not context.declined
    assert snr(reference, ours) > 25
    assert snr(reference, theirs) > 25
    assert np.mean(np.abs(theirs - ours) > 0.02) < 1e-3


def test_a_quantised_model_is_not_quantised_again() -> None:
    exported = quantize_onnx(small_model(False), {"x": smooth(8, 0)}, Options(quantize="int8"))
    with pytest.raises(DlcError, match="the model is quantised already"):
        quantize_onnx(exported, {"x": smooth(8, 0)}, Options(quantize="int8"))
    # Compiling it needs no calibration data, and keeps its scales.
    result, context = quantized(import_model(exported), samples=[])
    assert "calibration" not in context.notes
    assert context.notes["quantization"]["values"]
    assert any(n.op == "dlc.requantize" for n in view(result).nodes)


@pytest.mark.parametrize("activation", [TensorProto.INT8, TensorProto.UINT8])
@pytest.mark.parametrize("per_axis", [False, True])
def test_models_quantised_by_onnxruntime(activation: int, per_axis: bool, tmp_path: Any) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.data = iter([{"x": smooth(16, seed)} for seed in range(4)])

        def get_next(self) -> Any:
            return next(self.data, None)

    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    model = onnx.version_converter.convert_version(small_model(False), 17)
    onnx.save(model, source)
    kind = quantization.QuantType.QInt8 if activation == TensorProto.INT8 else quantization.QuantType.QUInt8
    quantization.quantize_static(
        source, target, Reader(), per_channel=per_axis, activation_type=kind, weight_type=quantization.QuantType.QInt8,
        quant_format=quantization.QuantFormat.QDQ,
    )  # fmt: skip
    foreign = onnx.load(target)
    result, context = integers_of(foreign)
    assert not [d for d in context.declined if d.origin.op in ("Conv", "Gemm")]
    assert sum(n.op in ("dlc.conv", "dlc.matmul") and n.output.dtype == "int32" for n in view(result).nodes) == 2
    x = {"x": smooth(32, 9)}
    (theirs,), (ours,) = ort(foreign, x), interpret(view(result), x)
    scale = float(np.ptp(theirs)) / 255
    assert np.mean(np.abs(theirs - ours) > 1.5 * scale) < 1e-2
    assert snr(ort(model, x)[0], ours) > 20
