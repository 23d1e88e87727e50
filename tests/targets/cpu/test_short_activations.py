"""``--quantize bf16`` on levels that multiply bfloat16 by bfloat16: rounded activations, in the IR and in kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.compiler import module_at
from dlc.explain import read
from dlc.hardware import this_machine
from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Graph
from dlc.ir.interpret import interpret
from dlc.ir.rewrite import live_nodes
from dlc.options import Options
from dlc.targets.cpu.isa import isa_by_name, levels_of
from tests.passes.quantize import test_short_weights as short_weights

LEVEL = isa_by_name("avx512_bf16")
TARGET = f"cpu:{LEVEL.name}"
RNG = np.random.default_rng(29)
on_the_level = pytest.mark.skipif(LEVEL not in levels_of(this_machine()), reason="the processor has no AVX512_BF16")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes: list[Any], x: list[int | str], y: list[int | str], weights: dict[str, np.ndarray], *more: Any) -> Any:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y), *more],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(rows: int | str, k: int, n: int) -> Any:
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], [rows, k], [rows, n], {"w": normal(k, n)})


def network(height: int | str = 11) -> Any:
    """Convolutions of 3 and of 33 channels a group, padded, strided, dilated; a residual, a pool, a layer of rows."""
    shapes = {"w0": (64, 3, 7, 7), "w1": (33, 64, 3, 3), "w2": (66, 33, 3, 3), "w3": (66, 33, 3, 3), "w4": (66, 130)}
    weights = {n: normal(*shape) * np.prod(shape[1:], dtype=np.float32) ** -0.5 for n, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "first", pads=[3] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("MaxPool", ["r0"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["p", "w1"], ["c1"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c1"], ["s1"]),
        helper.make_node("Conv", ["s1", "w2"], ["c2"], "third", pads=[2] * 4, dilations=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "groups", group=2, pads=[1] * 4),
        helper.make_node("Add", ["c3", "r2"], ["a3"]),
        helper.make_node("Transpose", ["a3"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "w4"], ["y"], "rows"),
    ]
    sizes: list[int | str] = [2, 3, height, 9]
    return model(nodes, sizes, [2, "h", "v", 130], weights)


def rounded(onnx_model: Any) -> Graph:
    """The graph behind the pass."""
    return view(module_at(onnx_model, Options(target=TARGET, quantize="bf16"), "short-activations"))


def declined(onnx_model: Any) -> list[tuple[str, str]]:
    found = read(dlc.compile(onnx_model, target=TARGET, quantize="bf16")).declined
    return [(row["node"], row["reason"]) for row in found]


def casts(graph: Graph) -> list[str]:
    """What makes the values that are rounded."""
    makers = {node.output.name: node.op for node in graph.nodes}
    return [makers.get(n.inputs[0], "input") for n in graph.nodes if n.attrs.get("dtype") == "bfloat16"]


def test_the_interpreter_computes_what_the_level_means() -> None:
    onnx_model, x = product(3, 96, 130), normal(3, 96)
    weight = numpy_helper.to_array(onnx_model.graph.initializer[0])
    (result,) = interpret(rounded(onnx_model), {"x": x})
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, arithmetic.as_bfloat16(x) @ arithmetic.as_bfloat16(weight))


@on_the_level
@pytest.mark.parametrize("height", [11, "height"])
def test_networks_compute_what_the_interpreter_does(height: int | str) -> None:
    onnx_model, x = network(height), normal(2, 3, 11, 9)
    package = dlc.compile(onnx_model, target=TARGET, quantize="bf16")
    result = dlc.load(package).run({"x": x})["y"]
    (wanted,) = interpret(rounded(onnx_model), {"x": x}, sizes={} if height == 11 else {"height": 11})
    (exact,) = dlc.load(dlc.compile(onnx_model, target="reference")).run({"x": x}).values()
    # Sums in another order may round an activation to its other neighbour, which all that follows reads.
    assert np.linalg.norm(result - wanted) <= 2e-3 * np.linalg.norm(wanted)
    noise = np.linalg.norm(wanted - exact) / np.linalg.norm(exact)
    assert 1e-3 < noise < 10 ** (-45 / 20)
    products = [row for row in read(package).nodes if {"conv", "matmul"} & set(row["fused"])]
    assert [row["precision"] for row in products] == ["bf16 x bf16"] * 5


@on_the_level
@pytest.mark.parametrize("make", [short_weights.lstm, short_weights.mixture, short_weights.embedding],
                         ids=lambda make: make.__name__)  # fmt: skip
def test_loops_and_experts_are_as_near_as_rounding_lets_them(make: Any) -> None:
    onnx_model, x, wanted = short_weights.expected(make)
    result = short_weights.run(dlc.compile(onnx_model, target=TARGET, quantize="bf16"), x)
    assert np.linalg.norm(result - wanted) <= 1e-2 * np.linalg.norm(wanted)


@on_the_level
@pytest.mark.parametrize("k", [96, 97, 1023])
@pytest.mark.parametrize("rows", [2, 33, "n"])
def test_a_product_is_within_the_bound_of_its_float_sums(rows: int | str, k: int) -> None:
    onnx_model, x = product(rows, k, 86), normal(33 if rows == "n" else int(rows), k)
    weight = arithmetic.as_bfloat16(numpy_helper.to_array(onnx_model.graph.initializer[0]))
    result = dlc.load(dlc.compile(onnx_model, target=TARGET, quantize="bf16")).run({"x": x})["y"]
    left, right = arithmetic.as_bfloat16(x).astype(np.float64), weight.astype(np.float64)
    assert np.all(abs(result - left @ right) <= (k + 1) * 2.0**-24 * (abs(left) @ abs(right)))
    original = numpy_helper.to_array(onnx_model.graph.initializer[0]).astype(np.float64)
    wanted = x.astype(np.float64) @ original
    assert np.all(abs(result - wanted) <= 2.02 * 2.0**-8 * (abs(x.astype(np.float64)) @ abs(original)))
    assert 20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(result - wanted)) > 50


def test_a_cast_stands_where_the_value_is_made_and_serves_all_who_read_it() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["a"]),
        helper.make_node("MatMul", ["f", "v"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=-1),
    ]
    weights = {"w": normal(96, 90), "v": normal(96, 90), "shape": np.array([24, 96])}
    graph = rounded(model(nodes, [4, 96, 6], [24, 180], weights))
    assert casts(graph) == ["relax.reshape"], "two products read it, of one cast"
    weights = {"w": normal(96, 90), "shape": np.array([24, 96])}
    nodes = [*nodes[:3], helper.make_node("MatMul", ["f", "w"], ["y"])]
    assert casts(rounded(model(nodes, [4, 96, 6], [24, 90], weights))) == ["relax.nn.relu"]


def test_a_maximum_is_taken_of_rounded_values_where_nothing_else_reads_it() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], "first", pads=[1] * 4),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w1"], ["y"], "second", pads=[1] * 4),
    ]
    weights = {"w0": normal(32, 32, 3, 3) / 17, "w1": normal(32, 32, 3, 3) / 17}
    onnx_model, x = model(nodes, [1, 32, 8, 6], [1, 32, 4, 3], weights), normal(1, 32, 8, 6)
    graph = rounded(onnx_model)
    assert casts(graph) == ["input", "dlc.conv"]
    (pool,) = [node for node in live_nodes(graph) if node.op == "dlc.pool"]
    assert pool.output.dtype == "bfloat16"
    if LEVEL in levels_of(this_machine()):
        result = dlc.load(dlc.compile(onnx_model, target=TARGET, quantize="bf16")).run({"x": x})["y"]
        (wanted,) = interpret(graph, {"x": x})
        assert np.linalg.norm(result - wanted) <= 2e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("onnx_model", "wanted"),
    [
        (product(1, 96, 130), [("MatMul 'product'", "of one row, reading the weight is what costs")]),
        (
            model([helper.make_node("Conv", ["x", "w"], ["y"], "depth", group=1024, pads=[1] * 4)],
                  [1, 1024, 8, 8], [1, 1024, 8, 8], {"w": normal(1024, 1, 3, 3)}),
            [("Conv 'depth'", "a depthwise convolution has no channels to make pairs of")],
        ),
        (
            model([helper.make_node("MatMul", ["x", "w"], ["y"], "batch")], [4, 5, 60], [4, 5, 50],
                  {"w": normal(4, 60, 50)}),
            [("MatMul 'batch'", "the weight is a batch of matrices, which are not packed")],
        ),
    ],
    ids=["one row", "depthwise", "a batch"],
)  # fmt: skip
def test_what_keeps_its_activations_says_why(onnx_model: Any, wanted: list[tuple[str, str]]) -> None:
    assert declined(onnx_model) == [(node, f"activations stay float32: {reason}") for node, reason in wanted]
    assert not casts(rounded(onnx_model))


def test_other_levels_and_schemes_round_no_activation() -> None:
    onnx_model = product(3, 96, 130)
    for target, scheme in (("cpu:avx512_vnni", "bf16"), (TARGET, "none")):
        graph = view(module_at(onnx_model, Options(target=target, quantize=scheme), "short-activations"))  # type: ignore[arg-type]
        assert not casts(graph)


def test_a_package_of_all_levels_rounds_where_the_level_multiplies_bfloat16() -> None:
    rows = read(dlc.compile(product(3, 96, 130), target="cpu:portable", quantize="bf16")).nodes
    found = {row["part"]: row["precision"] for row in rows if "matmul" in row["fused"]}
    assert found == {
        "amx": "bf16 x bf16", "avx512_bf16": "bf16 x bf16", "avx512_vnni": "bf16", "avx512": "bf16", "avx2": "bf16",
    }  # fmt: skip


@on_the_level
def test_two_threads_make_the_same_bits() -> None:
    package, x = dlc.compile(product(64, 512, 512), target=TARGET, quantize="bf16"), normal(64, 512)
    one, two = (dlc.load(package, threads=threads).run({"x": x})["y"] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
