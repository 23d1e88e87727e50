"""``--quantize bf16``: weights in bfloat16, products in float32, on every target the numbers of the reference.

What levels that multiply bfloat16 by bfloat16 do to activations is in `tests/targets/cpu/test_short_activations.py`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.hardware import this_machine
from dlc.ir import arithmetic
from dlc.options import Options
from dlc.package import Package
from dlc.targets.cpu.isa import isa_by_name, levels_of
from tests import experts

LEVELS = [f"cpu:{isa.name}" for isa in levels_of(this_machine()) if not isa.bfloat16]
RNG = np.random.default_rng(17)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHT = normal(96, 130)
ROUNDED = arithmetic.as_bfloat16(WEIGHT)


def model(
    nodes: list[Any], x: list[int | str], y: list[int | str], kind: int = TensorProto.FLOAT, **constants: Any
) -> Any:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [c if isinstance(c, TensorProto) else numpy_helper.from_array(c, name) for name, c in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(weight: np.ndarray, rows: int | str = 3) -> Any:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    return model(nodes, [rows, weight.shape[0]], [rows, weight.shape[1]], w=weight)


def network() -> tuple[Any, np.ndarray]:
    """Convolutions: full, of two groups, depthwise; a layer of 1000 classes."""
    sizes = {
        "w0": (32, 32, 3, 3),
        "w1": (128, 16, 3, 3),
        "w2": (1024, 128, 1, 1),
        "w3": (1024, 1, 3, 3),
        "w4": (1000, 1024),
    }
    weights = {name: normal(*shape) * np.prod(shape[1:], dtype=np.float32) ** -0.5 for name, shape in sizes.items()}
    biases = {f"b{i}": normal(shape[0]) for i, shape in enumerate(sizes.values())}
    attrs: list[dict[str, Any]] = [
        {"pads": [1] * 4}, {"pads": [1] * 4, "group": 2, "strides": [2, 2]}, {}, {"pads": [1] * 4, "group": 1024},
    ]  # fmt: skip
    nodes, x = [], "x"
    for i, given in enumerate(attrs):
        nodes.append(helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", **given))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        x = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w4", "b4"], ["y"], "classes", transB=1))
    return model(nodes, [2, 32, 9, 7], [2, 1000], **weights, **biases), normal(2, 32, 9, 7)


def lstm() -> tuple[Any, np.ndarray]:
    weights = {"w": normal(2, 4 * 56, 40) / 8, "r": normal(2, 4 * 56, 56) / 8, "b": normal(2, 8 * 56) / 8}
    node = helper.make_node("LSTM", ["x", *weights], ["y"], "layer", hidden_size=56, direction="bidirectional")
    return model([node], [6, 2, 40], [6, 2, 2, 56], **weights), normal(6, 2, 40)


def mixture() -> tuple[Any, np.ndarray]:
    return experts.model(inputs=48, hidden=64, outputs=48), normal(20, 48)


def embedding() -> tuple[Any, np.ndarray]:
    """A table that is also the layer behind it, as language models tie them."""
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], "embedding"),
        helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], "logits"),
    ]
    return model(nodes, [5], [5, 301], TensorProto.INT64, table=normal(301, 48)), RNG.integers(0, 301, 5)


def run(package: Package, x: np.ndarray, threads: int = 1) -> np.ndarray:
    return np.asarray(next(iter(dlc.load(package, threads=threads).run({"x": x}).values())))


@functools.cache
def expected(make: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """A model, its input, and what the reference makes of it; what rounding costs is held to bounds here."""
    onnx_model, x = make()
    wanted, exact = (run(dlc.compile(onnx_model, target="reference", quantize=q), x) for q in ("bf16", "none"))
    noise = np.linalg.norm(wanted - exact) / np.linalg.norm(exact)
    assert 1e-4 < noise < 1e-2, "weights have eight bits of a significand"
    return onnx_model, x, wanted


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("make", [network, lstm, mixture, embedding], ids=lambda make: make.__name__)
def test_every_level_computes_what_the_reference_does(make: Any, target: str) -> None:
    onnx_model, x, wanted = expected(make)
    package = dlc.compile(onnx_model, target=target, quantize="bf16")
    np.testing.assert_allclose(run(package, x), wanted, rtol=2e-5, atol=2e-5)
    products = [row for row in read(package).nodes if {"conv", "matmul", "grouped_matmul"} & set(row.get("fused", ()))]
    small = {d["value"] for d in read(package).declined if d["pass"] == "bf16"}
    assert {row["precision"] for row in products if row["value"] not in small} == {"bf16"}


@pytest.mark.parametrize(("rows", "precision", "activation"), [(1, "bf16", "float32"), (3, "bf16 x bf16", "bfloat16")])
def test_tiles_leave_short_weights_to_vectors(rows: int, precision: str, activation: str) -> None:
    *_, row = read(dlc.compile(product(WEIGHT, rows), target="cpu:amx", quantize="bf16")).nodes
    assert row["precision"] == precision and row["kernel"] == "GEMM avx512_bf16"
    assert row["why_not_better"] == f"tiles multiply uint8 by int8, not {activation} by bfloat16"


def test_two_threads_make_the_same_bits() -> None:
    package, x = dlc.compile(product(normal(1024, 1024), 1), quantize="bf16"), normal(1, 1024)
    np.testing.assert_array_equal(run(package, x, threads=2), run(package, x))


@pytest.mark.parametrize("rows", [1, 3, "n"])
def test_the_reference_multiplies_rounded_weights_in_float32(rows: int | str) -> None:
    x = normal(3 if rows == "n" else rows, 96)
    package = dlc.compile(product(WEIGHT, rows), target="reference", quantize="bf16")
    np.testing.assert_array_equal(run(package, x), x @ ROUNDED)


def test_rounding_is_to_nearest_half_to_even() -> None:
    given = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 2**-130, 0.1], np.float32)
    nearest = np.array([1, 1, 1 + 2**-6, -1, 1 + 2**-7, 2**-130, 0.10009765625], np.float32)
    np.testing.assert_array_equal(arithmetic.as_bfloat16(given), nearest)


def test_packages_are_half_as_large(tmp_path: Path) -> None:
    sizes = {}
    for target in ("reference", "cpu"):
        for scheme in ("none", "bf16"):
            dlc.compile(product(normal(512, 512), 1), target=target, quantize=scheme).save(tmp_path / "p.dlc")
            sizes[target, scheme] = (tmp_path / "p.dlc").stat().st_size
        assert sizes[target, "bf16"] < 0.56 * sizes[target, "none"]


@pytest.mark.parametrize(
    ("nodes", "shapes", "weight", "reason"),
    [(["x", "w"], ([3, 40], [3, 8]), normal(40, 8),
      "40 x 8 numbers stay in the nearest cache, half the bytes would be read no faster"),
     (["w", "x"], ([40, 8], [300, 8]), normal(300, 40), "the constant is the left operand"),
     (["x", "x"], ([90, 90], [90, 90]), None, "both operands are activations"),
     (["x", "w"], ([3, 100], [3, 90]), np.full((100, 90), 3.4e38, np.float32),
      "the weight holds NaN or infinity, or what bfloat16 rounds to it")],
)  # fmt: skip
def test_weights_that_stay_float32_say_why(nodes: Any, shapes: Any, weight: Any, reason: str) -> None:
    constants = {} if weight is None else {"w": weight}
    package = dlc.compile(model([helper.make_node("MatMul", nodes, ["y"], "p")], *shapes, **constants), quantize="bf16")
    (declined,) = read(package).declined
    assert declined["pass"] == "bf16" and declined["node"] == "MatMul 'p'"
    assert declined["reason"] == f"weights stay float32: {reason}"
    assert {row["precision"] for row in read(package).nodes} == {"float32"}


@pytest.mark.parametrize("scheme", ["none", "int8-dynamic"])
@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16], ids=["bfloat16", "float16"])
def test_weights_that_arrive_in_bfloat16_stay_so(kind: int, scheme: str) -> None:
    """A model saved in short floats, with a cast in front of each product; only bfloat16 loses nothing."""
    dtype = ml_dtypes.bfloat16 if kind == TensorProto.BFLOAT16 else np.float16
    stored = WEIGHT.astype(dtype)
    weight = helper.make_tensor("w", kind, WEIGHT.shape, stored.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"], "product"),
    ]
    package, x = dlc.compile(model(nodes, [3, 96], [3, 130], w=weight), quantize=scheme), normal(3, 96)
    precision = {row["precision"] for row in read(package).nodes if "matmul" in row["fused"]}
    if scheme == "none":
        assert precision == {"bf16" if kind == TensorProto.BFLOAT16 else "float32"} and not read(package).declined
        np.testing.assert_allclose(run(package, x), x @ stored.astype(np.float32), rtol=1e-5, atol=1e-5)
    else:
        assert precision == {"int8"}


@pytest.mark.parametrize("target", [f"cpu:{isa.name}" for isa in levels_of(this_machine())])
def test_products_of_bfloat16_read_their_weights_as_they_are(target: str) -> None:
    weight = helper.make_tensor(
        "w", TensorProto.BFLOAT16, WEIGHT.shape, ROUNDED.astype(ml_dtypes.bfloat16).tobytes(), raw=True
    )
    onnx_model = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "p")], [3, 96], [3, 130], TensorProto.BFLOAT16, w=weight
    )
    onnx_model.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    package, x = dlc.compile(onnx_model, target=target), normal(3, 96).astype(ml_dtypes.bfloat16)
    (row,) = [row for row in read(package).nodes if "matmul" in row["fused"]]
    pairs = isa_by_name(target.removeprefix("cpu:")).bfloat16
    assert row["precision"] == ("bf16 x bf16" if pairs else "bf16") and row["kernel"].startswith("GEMM")
    assert [d["reason"] for d in read(package).declined] == ([] if pairs else ["bfloat16 is multiplied as float32"])
    exact = x.astype(np.float64) @ ROUNDED
    np.testing.assert_allclose(run(package, x).astype(np.float64), exact, rtol=2**-8, atol=2**-8)


def test_a_target_without_such_kernels_gets_the_same_numbers_in_float32() -> None:
    from dlc.compiler import common_passes, import_source
    from dlc.ir.convert import view
    from dlc.pipeline import Context, run_passes
    from dlc.runtime.ffi import import_tvm
    from dlc.targets.base import find_target

    import_tvm()
    options = Options(target="vta", quantize="bf16")
    module = import_source(product(WEIGHT), options)
    graph = view(run_passes(module, common_passes(options), Context(options, target=find_target("vta"))))
    (array,) = graph.constants.values()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, ROUNDED)
