"""Models of single operators on the CPU target against the reference: what the kernels' own tests do not reach."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx

import dlc
from dlc.compiler import compile_module
from dlc.ir.convert import FunctionBuilder
from dlc.options import Options
from dlc.package import Package
from dlc.pipeline import Context
from dlc.targets.base import find_target

Shape = Sequence[int | str]


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[int, Shape]], constants: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    output.type.tensor_type.elem_type = TensorProto.FLOAT
    output.type.tensor_type.shape.SetInParent()  # the checker wants the fields, and does not look inside
    weights = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    graph = helper.make_graph(list(nodes), "g", infos, [output], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def both(source: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, Package]:
    """(the CPU's result, the reference's, the CPU's package)."""
    package = dlc.compile(source, target="cpu")
    got = next(iter(dlc.load(package).run(feed).values()))
    wanted = next(iter(dlc.load(dlc.compile(source, target="reference")).run(feed).values()))
    return got, wanted, package


def rows(package: Package) -> list[dict[str, Any]]:
    return json.loads(bytes(package.member("explain.json")))["nodes"]


def node(op: str, inputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, ["y"], **attrs)


def test_extents_of_a_symbolic_shape() -> None:
    got, wanted, _ = both(model([node("Shape", ["x"])], {"x": (TensorProto.FLOAT, ["n", 3])}, {}), {
        "x": np.ones((5, 3), "float32")
    })  # fmt: skip
    assert got.tolist() == wanted.tolist() == [5, 3]


def test_a_range_up_to_a_symbolic_extent() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        node("Range", ["zero", "n", "one"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1)}
    got, _, _ = both(model(nodes, {"x": (TensorProto.FLOAT, ["n", 3])}, constants), {"x": np.ones((6, 3), "float32")})
    assert got.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("step", [-1, -2, -3])
def test_reversed_slices(step: int) -> None:
    x = np.arange(7 * 4, dtype="float32").reshape(7, 4)
    nodes = [helper.make_node("Slice", ["x", "start", "end", "axis", "step"], ["r"]), node("Neg", ["r"])]
    constants = {"start": [-1], "end": [-(2**31)], "axis": [0], "step": [step]}
    source = model(nodes, {"x": (TensorProto.FLOAT, [7, 4])}, {k: np.array(v) for k, v in constants.items()})
    got, _, _ = both(source, {"x": x})
    np.testing.assert_array_equal(got, -x[::step])


def test_resize_between_convolutions_stays_channels_last() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="linear"),
        node("Conv", ["b", "v"], pads=[1] * 4),
    ]
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype("float32"),
        "v": rng.standard_normal((2, 4, 3, 3)).astype("float32"),
        "scales": np.array([1, 1, 2, 2], "float32"),
    }
    source = model(nodes, {"x": (TensorProto.FLOAT, [1, 3, "h", 8])}, constants)
    got, wanted, package = both(source, {"x": rng.standard_normal((1, 3, 6, 8)).astype("float32")})
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
    (row,) = [r for r in rows(package) if r["op"] == "Resize"]
    assert row["channels_last"] and row["kernel"].startswith("resize ") and row["why_not_better"] == ""


def test_a_computed_weight_runs_as_plain_loops_and_says_so() -> None:
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, Shape]] = {
        "x": (TensorProto.FLOAT, [1, 3, 6, 8]),
        "w": (TensorProto.FLOAT, [4, 3, 3, 3]),
    }
    feed = {name: rng.standard_normal(shape).astype("float32") for name, (_, shape) in shapes.items()}  # type: ignore[arg-type]
    got, wanted, package = both(model([node("Conv", ["x", "w"], pads=[1] * 4)], shapes, {}), feed)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    (row,) = [r for r in rows(package) if r["op"] == "Conv"]
    assert row["kernel"].startswith("plain loops ")
    assert row["why_not_better"] == "the weight of a convolution is not a constant"


def test_a_zero_point_of_the_second_operand_is_subtracted() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(0, 255, (4, 9)).astype("uint8")
    constants = {
        "b": rng.integers(-128, 127, (9, 6)).astype("int8"), "az": np.array(7, "uint8"), "bz": np.array(-5, "int8")
    }  # fmt: skip
    source = model([node("MatMulInteger", ["x", "b", "az", "bz"])], {"x": (TensorProto.UINT8, [4, 9])}, constants)
    got, _, _ = both(source, {"x": a})
    np.testing.assert_array_equal(got, (a.astype(int) - 7) @ (constants["b"].astype(int) + 5))


@pytest.mark.parametrize(("a", "b"), [((7,), (7,)), ((7,), (2, 7, 3)), ((2, 3, 7), (7,))], ids=str)
def test_matmul_of_vectors(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    feed = {"x": rng.standard_normal(a).astype("float32"), "w": rng.standard_normal(b).astype("float32")}
    inputs: dict[str, tuple[int, Shape]] = {"x": (TensorProto.FLOAT, a), "w": (TensorProto.FLOAT, b)}
    got, wanted, _ = both(model([node("MatMul", ["x", "w"])], inputs, {}), feed)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_short_floats_are_multiplied_as_float32() -> None:
    rng = np.random.default_rng(4)
    w = rng.standard_normal((9, 6)).astype("float16")
    x = rng.standard_normal((4, 9)).astype("float16")
    got, _, package = both(
        model([node("MatMul", ["x", "w"])], {"x": (TensorProto.FLOAT16, [4, 9])}, {"w": w}), {"x": x}
    )
    exact = x.astype("float64") @ w.astype("float64")
    assert np.all(np.abs(got - exact) <= 2.0**-11 * np.abs(exact) + 2.0**-24 * 20 * np.abs(x) @ np.abs(w))
    declined = json.loads(bytes(package.member("explain.json")))["declined"]
    assert [d["reason"] for d in declined if d["pass"] == "widen"] == ["float16 is multiplied as float32"]
    assert any(r["kernel"].startswith("GEMM ") for r in rows(package))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_of_float64_is_computed_in_float64(op: str) -> None:
    x = np.random.default_rng(5).standard_normal((3, 17))
    got, wanted, _ = both(model([node(op, ["x"], axis=1)], {"x": (TensorProto.DOUBLE, [3, 17])}, {}), {"x": x})
    np.testing.assert_allclose(got, wanted, rtol=1e-14)


def test_a_constant_weight_below_an_inner_extent_known_only_when_running() -> None:
    """Packing needs the extent, so plain loops take it."""
    target = find_target("cpu")
    weight = np.random.default_rng(0).standard_normal((4, 19)).astype(np.float32)
    builder = FunctionBuilder()
    x = builder.input("x", (3, tirx.Var("k", "int64")), "float32")
    y = builder.emit("dlc.matmul", [x, builder.constant(weight)], {"out_dtype": "float32"})
    package = compile_module(builder.finish([y]), Context(Options("cpu"), target=target))
    a = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    (result,) = dlc.load(package).run({"x": a}).values()
    np.testing.assert_allclose(result, a @ weight, rtol=1e-5, atol=1e-6)
    (row,) = rows(package)
    assert "an inner extent k known only when running" in row["why_not_better"]
