"""The integer operators that expressions of dequantised values become, and what stays float and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from tvm import tirx

from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node
from dlc.ir.interpret import apply
from dlc.options import Options
from dlc.passes.quantize import calibrate, cleanup, form_integers, mark, quantize_passes
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context
from tests.passes.quantize.helpers import Build, codes_by_name, ops, quantized, run, run_checked, samples_for, snr
from tests.property.graphs import inputs_of, quantizable_models

N = tirx.Var("N", "int64")
ARITHMETIC = ["float", "fixed", "shift"]


def formed(build: Callable[[Build, Any], Any], arithmetic: Any = "float", shape: Any = (N, 4, 8, 8)) -> tuple[Any, Any]:
    """A function of uint8-quantised x (scale 0.05, zero point 100) and what the integer passes make of it."""
    b = Build()
    x = b.pair(b.input("x", shape, "float32"), 0.05, 100)
    module = b.finish([build(b, x)])
    context = Context(Options(arithmetic=arithmetic))
    return module, (run_checked(module, [*SIMPLIFY, *quantize_passes(context.options)], context), context)


def agree(build: Callable[[Build, Any], Any], expected: list[str], arithmetic: Any = "float", **options: Any) -> Any:
    """The operators behind the quantisation of x are the expected ones, and the codes are within one step."""
    module, (result, context) = formed(build, arithmetic, **options)
    assert ops(result)[1:] == expected
    for sample in samples_for(module, 2):
        before, after = run(module, sample)[0], run(result, sample)[0]
        assert before.dtype == after.dtype
        if before.dtype == np.uint8:
            assert np.max(np.abs(before.astype(int) - after)) <= 1
            # Ties, which the two orders of rounding break differently, are the common difference.
            assert np.mean(before != after) < 0.1
        else:
            np.testing.assert_allclose(before, after, rtol=1e-4, atol=3e-4)  # half a step of the accumulator
    return view(result), context


def weight(b: Build, *shape: int, dtype: str = "int8", zero: int = 0, axis: int = 0, low: int = -127) -> Any:
    """A dequantised integer weight with one scale a channel."""
    codes = b.rng.integers(low, 128, shape).astype(np.int16) + zero
    scales = b.rng.uniform(0.001, 0.01, shape[axis])
    return b.dequantize(codes.astype(dtype), scales, np.full(shape[axis], zero, dtype), axis)


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_convolution_with_bias_residual_and_clip_is_one_requantisation(arithmetic: str) -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.conv(x, weight(b, 4, 4, 3, 3), b.normal(4), "c")
        y = b.op("relax.minimum", b.relu(b.op("relax.add", x, y)), np.float32(6), name="r")
        return b.quantize(y, 0.025, 3)

    graph, _ = agree(build, ["conv:int32", "add:int32", "requantize:uint8"], arithmetic)
    attrs = graph.nodes[-1].attrs
    assert (attrs["terms"], attrs["term_zero_points"], attrs["lo"], attrs["hi"]) == (2, (0, 100), 3, 243)
    assert graph.nodes[1].attrs["x_zero_point"] == 100


def test_a_difference_negates_its_second_term() -> None:
    def build(b: Build, x: Any) -> Any:
        return b.quantize(b.op("relax.subtract", b.conv(x, weight(b, 4, 4, 1, 1)), x, name="d"), 0.05, 120)

    graph, _ = agree(build, ["conv:int32", "astype:int32", "subtract:int32", "requantize:uint8"])
    assert graph.nodes[-1].attrs["term_zero_points"] == (0, 0)
    agree(
        lambda b, x: b.quantize(b.op("relax.subtract", x, b.conv(x, weight(b, 4, 4, 1, 1))), 0.05, 120),
        ["conv:int32", "negative:int32", "requantize:uint8"],
    )


FORMS: dict[str, tuple[Callable[[Build, Any], Any], list[str]]] = {
    "relu of codes": (lambda b, x: b.quantize(b.relu(x), 0.03, 0), ["requantize:uint8"]),
    "other parameters": (lambda b, x: b.quantize(x, 0.03, 7), ["requantize:uint8"]),
    "product": (
        lambda b, x: b.quantize(b.op("relax.multiply", x, b.op("relax.permute_dims", x, axes=(0, 1, 3, 2))), 0.1, 5),
        ["astype:int32", "subtract:int32", "permute_dims:uint8", "astype:int32", "subtract:int32", "multiply:int32",
         "requantize:uint8"],
    ),
    "average pooling": (
        lambda b, x: b.quantize(b.pool(x, "average"), 0.02, 128), ["pool:int32", "requantize:uint8"]
    ),
    "mean": (
        lambda b, x: b.quantize(b.op("relax.mean", x, axes=(2, 3), keepdims=True), 0.01, 128),
        ["astype:int32", "subtract:int32", "sum:int32", "requantize:uint8"],
    ),
    "maximum pooling": (lambda b, x: b.quantize(b.pool(x, "max"), 0.05, 100), ["pool:uint8"]),
    "maximum pooling to other parameters": (
        lambda b, x: b.quantize(b.pool(x, "max", pads=(1, 1, 1, 1)), 0.03, 0), ["pool:uint8", "requantize:uint8"]
    ),
    "movements": (
        lambda b, x: b.quantize(
            b.op("relax.nn.pad", b.op("relax.permute_dims", x, axes=(0, 2, 3, 1)), pad_width=(0, 0, 1, 2, 0, 0, 0, 1),
                 mode="constant", value=0.0), 0.05, 100),
        ["permute_dims:uint8", "nn.pad:uint8"],
    ),
    "concatenation": (
        lambda b, x: b.quantize(b.op("relax.concat", x, b.pair(b.relu(x), 0.02, 0), axis=1), 0.05, 100),
        ["requantize:uint8", "requantize:uint8", "concat:uint8"],
    ),
    "unary expression": (
        lambda b, x: b.quantize(b.op("relax.multiply", x, b.op("relax.sigmoid", x)), 0.03, 10), ["table:uint8"]
    ),
    "scale that is the table's identity": (
        lambda b, x: b.quantize(b.op("relax.multiply", x, np.float32(0.3)), 0.05 * 0.3, 100), []
    ),
    "scales a channel": (
        lambda b, x: b.quantize(
            b.relu(b.op("relax.add", b.op("relax.multiply", x, weight(b, 4, 1, 1)), b.normal(4, 1, 1))), 0.02, 0),
        ["astype:int32", "subtract:int32", "multiply:int32", "add:int32", "requantize:uint8"],
    ),
    "sum of two accumulators": (
        lambda b, x: b.quantize(
            b.op("relax.add", b.conv(x, weight(b, 4, 4, 1, 1)), b.conv(x, weight(b, 4, 4, 3, 3), b.normal(4))),
            0.05, 128),
        ["conv:int32", "conv:int32", "add:int32", "requantize:uint8"],
    ),
    "pair of equal parameters": (lambda b, x: b.quantize(b.pair(x, 0.05, 100), 0.05, 100), []),
    "matrix product as float": (
        lambda b, x: b.op(
            "relax.add", b.op("dlc.matmul", x, weight(b, 8, 5, axis=1), out_dtype="float32"), b.normal(5)),
        ["matmul:int32", "add:int32", "astype", "multiply"],
    ),
    "convolution read as codes and as float": (
        lambda b, x: b.op("relax.add", *(lambda y: (y, b.pair(y, 0.04, 128)))(b.conv(x, weight(b, 4, 4, 1, 1)))),
        ["conv:int32", "astype", "multiply", "requantize:uint8", "dequantize", "add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FORMS))
def test_form(name: str) -> None:
    build, expected = FORMS[name]
    agree(build, expected)


def test_the_bias_of_foreign_graphs_keeps_its_integers() -> None:
    codes = np.array([-(2**30), 12345, 7, 2**29], np.int32)

    def build(b: Build, x: Any) -> Any:
        w = weight(b, 4, 4, 1, 1)
        y = b.conv(x, w)
        bias = b.dequantize(codes, np.full(4, 1e-5), np.zeros(4, np.int32))
        return b.quantize(b.op("relax.add", y, b.op("relax.reshape", bias, shape=(4, 1, 1))), 60.0, 128)

    agree(build, ["conv:int32", "add:int32", "requantize:uint8"])


def test_shift_multipliers_are_powers_of_two() -> None:
    b = Build()
    x = b.input("x", (N, 4, 8, 8), "float32")
    y = b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c1"), "r1")
    y = b.relu(b.op("relax.add", b.conv(y, b.weight(4, 4), b.normal(4), "c2"), y, name="sum"), "r2")
    module = b.finish([b.conv(y, b.weight(3, 4, 1), name="end")])
    result, _ = quantized(module, "shift")
    graph = view(result)
    requantizations = [n for n in graph.nodes if n.op == "dlc.requantize"]
    assert [n.attrs["terms"] for n in requantizations] == [1, 2]
    for node in requantizations:
        terms = node.attrs["terms"]
        for name in node.inputs[terms : 2 * terms]:
            m = graph.constants[name]
            assert np.all((m > 0) & (m & (m - 1) == 0))
    sample = samples_for(module, 1, seed=3)[0]
    assert snr(run(module, sample)[0], run(result, sample)[0]) > 20


# --- what stays float ------------------------------------------------------------------------------------------------

AVERAGE = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1)}
REFUSED: dict[str, tuple[Callable[[Build, Any], Any], str]] = {
    "weight with a zero point": (
        lambda b, x: b.conv(x, weight(b, 4, 4, 1, 1, zero=1, low=-100), name="y"),
        "its weight has a zero point that is not 0: only int8 with zero point 0 has integer kernels",
    ),
    "scales along another axis": (
        lambda b, x: b.conv(
            x, b.dequantize(np.ones((4, 4, 1, 1), np.int8), np.ones(4), np.zeros(4, np.int8), 1), name="y"),
        "its weight's scales do not run along the output channels",
    ),
    "16-bit weight": (
        lambda b, x: b.conv(x, weight(b, 4, 4, 1, 1, dtype="int16"), name="y"),
        "its weight is int16: only int8 with zero point 0 has integer kernels",
    ),
    "two activations": (
        lambda b, x: b.op("dlc.matmul", x, x, out_dtype="float32", name="y"),
        "its weight is not a constant of integers",
    ),
    "float input": (
        lambda b, x: b.conv(b.op("relax.exp", x), weight(b, 4, 4, 1, 1), name="y"),
        "its input is not a dequantised uint8 with one scale",
    ),
    "16-bit input": (
        lambda b, x: b.conv(b.pair(x, 0.001, 0, "int16"), weight(b, 4, 4, 1, 1), name="y"),
        "its input is not a dequantised uint8 with one scale",
    ),
    "windows that differ": (
        lambda b, x: b.quantize(b.pool(x, "average", name="y", **AVERAGE), 0.02, 128),
        "its windows hold different numbers of elements",
    ),
    "a constant added to codes alone": (
        lambda b, x: b.quantize(b.op("relax.add", b.op("relax.add", x, b.normal(4, 1, 1)), x, name="y"), 0.02, 128),
        "it adds a constant to codes, which have too coarse a step for it",
    ),
    "a clip inside a sum": (
        lambda b, x: b.quantize(b.op("relax.add", b.relu(b.conv(x, weight(b, 4, 4, 1, 1))), x, name="y"), 0.02, 128),
        "an operand is clipped and not quantised before the sum",
    ),
    "too large a bias": (
        lambda b, x: b.quantize(b.conv(x, weight(b, 4, 4, 1, 1), np.full(4, 1e9, np.float32), "y"), 1e7, 0),
        "its sum with the bias can reach",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str) -> None:
    build, reason = REFUSED[name]
    module, (result, context) = formed(build)
    reasons = {(d.origin.value, d.reason.removeprefix("stays float: ").split(" 1")[0]) for d in context.declined}
    assert ("y", reason) in reasons, context.declined
    sample = samples_for(module, 1)[0]
    before, after = run(module, sample)[0], run(result, sample)[0]
    if before.dtype == np.uint8:
        assert np.max(np.abs(before.astype(int) - after)) <= 1
    else:
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-3)


def test_sums_beyond_int32_are_refused_with_the_numbers() -> None:
    def build(b: Build, x: Any) -> Any:
        w = b.dequantize(np.full((70_000, 2), 127, np.int8), np.float32(0.01), np.int8(0))
        return b.op("dlc.matmul", x, w, out_dtype="float32", name="y")

    b = Build()
    x = b.pair(b.input("x", (1, 70_000), "float32"), 0.05, 0)
    context = Context(Options())
    result = run_checked(b.finish([build(b, x)]), quantize_passes(context.options), context)
    assert ops(result) == ["quantize:uint8", "dequantize", "matmul"]
    assert [(d.origin.value, d.reason) for d in context.declined] == [
        ("y", f"stays float: its sums can reach {70_000 * 127 * 255}, beyond int32 (2147483647)")
    ]


def test_averages_of_49_have_no_shift() -> None:
    def build(b: Build, x: Any) -> Any:
        return b.quantize(b.op("relax.mean", x, axes=(2, 3), keepdims=True, name="m"), 0.5, 128)

    b = Build()
    x = b.pair(b.input("x", (1, 3, 7, 7), "float32"), 0.25, 0)
    context = Context(Options(arithmetic="shift"))
    result = run_checked(b.finish([build(b, x)]), quantize_passes(context.options), context)
    assert ops(result) == ["quantize:uint8", "dequantize", "mean", "quantize:uint8"]
    assert context.declined[0].reason == "stays float: no shift divides by the 49 elements of the average"


# --- int8 activations ------------------------------------------------------------------------------------------------


def int8_graph(dtype: str) -> Any:
    """The same reals with int8 or uint8 activations."""
    b, offset = Build(3), 0 if dtype == "int8" else 128
    x = b.pair(b.input("x", (2, 4, 8, 8), "float32"), 0.05, offset - 20, dtype)
    y = b.pair(b.relu(b.conv(x, weight(b, 4, 4, 3, 3, low=-128), b.normal(4), "c1")), 0.02, offset - 128, dtype)
    y = b.pair(b.op("relax.concat", b.pool(y, "max"), b.pool(y, "average"), axis=1), 0.02, offset - 128, dtype)
    z = b.pair(b.op("relax.tanh", b.op("relax.nn.pad", y, pad_width=(0, 0, 0, 0, 1, 1, 1, 1), mode="constant",
                                       value=0.0)), 1 / 64, offset, dtype)  # fmt: skip
    z = b.op("relax.add", b.conv(z, weight(b, 8, 8, 3, 3), pads=(0, 0, 0, 0)), y)
    return b.finish([b.quantize(z, 0.1, offset + 3, dtype), b.op("relax.exp", z)])


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_int8_activations_are_uint8_ones(arithmetic: Any) -> None:
    results = []
    for dtype in ("int8", "uint8"):
        context = Context(Options(arithmetic=arithmetic))
        module = int8_graph(dtype)
        result = run_checked(module, [*SIMPLIFY, *quantize_passes(context.options)], context)
        assert not context.declined
        results.append(result)
    signed, unsigned = results
    # One conversion: at the output.
    assert [o for o in ops(signed) if o not in ops(unsigned)] == ["bitwise_xor:uint8", "astype:int8"]
    sample = samples_for(signed, 1)[0]
    a, b = run(signed, sample), run(unsigned, sample)
    np.testing.assert_array_equal(a[0].view(np.uint8) ^ 0x80, b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_int8_inputs_and_readers_of_numbers_are_converted() -> None:
    b = Build()
    x = b.input("x", (2, 4), "int8")
    y = b.op("relax.reshape", x, shape=(8,))
    module = b.finish([b.dequantize(y, 0.5, np.int8(3)), b.op("relax.astype", y, dtype="int32"), y])
    context = Context(Options())
    result = run_checked(module, quantize_passes(context.options), context)
    sample = {"x": np.arange(-128, 128, 32, dtype=np.int8).reshape(2, 4)}
    for before, after in zip(run(module, sample), run(result, sample), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_transposed_integer_weights_are_settled() -> None:
    def build(b: Build, x: Any) -> Any:
        w = b.op("relax.permute_dims", weight(b, 5, 8), axes=(1, 0))
        return b.op("dlc.matmul", x, w, out_dtype="float32", name="y")

    agree(build, ["matmul:int32", "astype", "multiply"])


# --- random graphs ---------------------------------------------------------------------------------------------------


def _steps(node: Node, values: dict[str, np.ndarray]) -> float:
    """By how many codes a node may differ: a bias is rounded to a unit of the sum, which may be several codes."""
    unit = 0.0
    if node.op == "dlc.requantize" and node.attrs["mode"] == "float":
        unit = max(float(np.max(values[name])) for name in node.inputs[node.attrs["terms"] :])
    return 1 + unit / 2


def compare_each(graph: Graph, sample: Any, expected: dict[str, np.ndarray]) -> None:
    """Run the graph node by node, each from the expected codes, so that steps do not add up."""
    values: dict[str, np.ndarray] = {**graph.constants, **sample}
    for node in graph.nodes:
        made = apply(node, [values[name] for name in node.inputs], {})
        codes = expected.get(node.origin.value)
        if made.dtype == np.uint8 and codes is not None:
            assert codes.shape == made.shape
            assert np.max(np.abs(made.astype(int) - codes), initial=0) <= _steps(node, values), node.origin
            made = codes
        values[node.output.name] = made


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=quantizable_models())
def test_random_graphs(arithmetic: Any, drawn: tuple[onnx.ModelProto, int]) -> None:
    model, seed = drawn
    module = import_model(model)
    name = view(module).inputs[0].name
    samples = [{name: inputs_of(model, seed + i)} for i in range(3)]
    options = Options(quantize="int8", arithmetic=arithmetic)
    context = Context(options, samples)
    simple = run_checked(module, SIMPLIFY, context)
    marks = run_checked(simple, [calibrate.PASS, mark.PASS], context)
    passes = [p for p in quantize_passes(options) if p not in (calibrate.PASS, mark.PASS)]
    result = run_checked(marks, passes, context)
    # Integers are final: no pass after the forming changes a code.
    again = run_checked(result, [*SIMPLIFY, *passes], Context(options))
    after, repeated = (codes_by_name(view(m), samples[0]) for m in (result, again))
    assert all(np.array_equal(repeated[name], codes) for name, codes in after.items() if name in repeated)
    # What was marked is what was formed: from the marks' own codes, each value's are one step off at most.
    compare_each(view(result), samples[0], codes_by_name(view(marks), samples[0]))
    for node in view(result).nodes:
        assert node.op != "dlc.conv" or node.output.dtype == "int32" or context.declined


def test_the_passes_are_listed() -> None:
    names = [p.name for p in quantize_passes(Options(quantize="int8"))]
    forming = ["settle_weights", "to_unsigned", "form_integers", "join_tables"]
    assert names == ["calibrate", "mark", *forming, "groups", "codebooks", "tidy_integers", "short_weights"]
    assert [p.name for p in quantize_passes(Options())] == [*forming, "tidy_integers", "short_weights"]
    assert form_integers.PASS.name == "form_integers" and cleanup.PASS.name == "tidy_integers"
