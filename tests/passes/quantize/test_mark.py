"""Where marks are put, and where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from dlc.ir.convert import view
from dlc.options import Options
from dlc.passes.quantize import calibrate, mark
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context
from tests.passes.quantize.helpers import Build, quantized, run, run_checked, samples_for, snr

N = tirx.Var("N", "int64")


def marked(build: Callable[[Build, Any], Any], arithmetic: Any = "float") -> tuple[dict[str, dict[str, Any]], Context]:
    """The marks of a function of one image (N, 4, 8, 8), by name."""
    b = Build()
    x = b.input("x", (N, 4, 8, 8), "float32")
    module = b.finish([build(b, x)])
    context = Context(Options(quantize="int8", arithmetic=arithmetic), samples_for(module))
    result = run_checked(module, [*SIMPLIFY, calibrate.PASS, mark.PASS], context)
    for sample in samples_for(module, 1, seed=9):
        assert snr(run(module, sample)[0], run(result, sample)[0]) > 20
    return context.notes["quantization"]["values"], context


def end(b: Build, y: Any, channels: int = 4) -> Any:
    """A contraction that wants its input as integers."""
    return b.conv(y, b.weight(3, channels, 1), name="end")


def test_a_chain_of_convolutions() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c1"), "r1")
        return b.relu(b.conv(y, b.weight(4, 4), b.normal(4), "c2"), "r2")

    # Neither between convolution, bias and relu, nor at the output.
    values, _ = marked(build)
    assert set(values) == {"x", "r1"}
    assert values["r1"]["zero_point"] == 0
    assert values["x"] | {"scale": 0, "zero_point": 0} == {
        "scale": 0, "zero_point": 0, "dtype": "uint8", "exact": True, "readers": ["node_c1_c"]
    }  # fmt: skip


def test_one_accumulator_goes_into_a_residual_sum() -> None:
    def build(b: Build, x: Any) -> Any:
        left = b.conv(x, b.weight(4, 4), b.normal(4), "left")
        right = b.conv(x, b.weight(4, 4), b.normal(4), "right")
        return end(b, b.relu(b.op("relax.add", left, right, name="sum"), "r"))

    assert set(marked(build)[0]) == {"x", "left", "r"}


def test_an_accumulator_with_two_readers_is_quantised() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.conv(x, b.weight(4, 4), b.normal(4), "c")
        return end(b, b.op("relax.multiply", y, b.op("relax.sigmoid", y, name="s"), name="silu"))

    assert set(marked(build)[0]) == {"x", "c", "silu"}


def test_expressions_of_one_value_are_marked_at_their_ends() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.conv(x, b.weight(4, 4), b.normal(4), "c")
        inner = b.op("relax.minimum", b.relu(b.op("relax.add", y, np.float32(3)), "i1"), np.float32(6), name="i2")
        return end(b, b.op("relax.multiply", y, b.op("relax.divide", inner, np.float32(6)), name="hswish"))

    assert set(marked(build)[0]) == {"x", "c", "hswish"}


def test_an_expression_whose_inside_is_read_elsewhere_is_split() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.conv(x, b.weight(4, 4), b.normal(4), "c")
        s = b.op("relax.sigmoid", y, name="s")
        gate = b.op("relax.multiply", b.op("relax.tanh", s, name="t"), s, name="g")
        return end(b, b.op("relax.concat", gate, b.conv(s, b.weight(4, 4), name="d"), axis=1, name="cat"), 8)

    values, _ = marked(build)
    assert set(values) == {"x", "c", "s", "g", "d", "cat"}


def test_concatenated_values_share_parameters_and_movements_keep_theirs() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c"), "r")
        left = b.pool(y, "max", "p")
        right = b.conv(y, b.weight(4, 4, 2), name="d", strides=(2, 2), pads=(0, 0, 0, 0))
        return end(b, b.op("relax.concat", left, right, axis=1, name="cat"), 8)

    values, _ = marked(build)
    same = [(v["scale"], v["zero_point"]) for v in (values[n] for n in ("r", "p", "d", "cat"))]
    assert same[0] == same[1] != same[2] == same[3]


def test_averages_and_reshapes_before_a_dense_layer() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c"), "r")
        y = b.op("relax.mean", b.pool(y, "average", "a"), axes=(2, 3), keepdims=False, name="m")
        return b.op("dlc.matmul", y, b.normal(4, 5), out_dtype="float32", name="y")

    assert set(marked(build)[0]) == {"x", "r", "a", "m"}


def test_float_neighbours_keep_the_exact_value() -> None:
    def build(b: Build, x: Any) -> Any:
        y = b.op("relax.nn.softmax", x, axis=1, name="soft")
        z = b.conv(y, b.weight(4, 4), name="c")
        return b.op("relax.add", b.op("relax.exp", z), b.op("relax.exp", y))

    values, context = marked(build)
    assert set(values) == {"soft"}
    assert values["soft"]["exact"]
    assert values["soft"]["readers"] == ["node_c"]
    assert [str(d.origin) + ": " + d.reason for d in context.declined] == [
        "softmax 'node_soft': stays float: it has no integer form here"
    ]


def test_products_of_activations_stay_float() -> None:
    b = Build()
    x = b.input("x", (2, 6, 6), "float32")
    y = b.op("dlc.matmul", x, b.normal(6, 6), out_dtype="float32", name="q")
    module = b.finish([b.op("dlc.matmul", y, y, out_dtype="float32", name="qk")])
    context = Context(Options(quantize="int8"), samples_for(module))
    result = run_checked(module, [*SIMPLIFY, calibrate.PASS, mark.PASS], context)
    assert set(context.notes["quantization"]["values"]) == {"x"}
    assert [(d.origin.value, d.reason) for d in context.declined] == [
        ("qk", "stays float: both operands are activations")
    ]
    assert view(result).nodes[-1].op == "dlc.matmul"


def test_values_that_are_not_finite_stay_float() -> None:
    def build(b: Build, x: Any) -> Any:
        return end(b, b.op("relax.log", b.relu(x, "r"), name="log"))

    b = Build()
    x = b.input("x", (N, 4, 8, 8), "float32")
    module = b.finish([build(b, x)])
    context = Context(Options(quantize="int8"), samples_for(module))
    run_checked(module, [*SIMPLIFY, calibrate.PASS, mark.PASS], context)
    assert not context.notes["quantization"]["values"]
    assert context.declined[0].reason == "stays float: calibration saw no finite range of its input"


@pytest.mark.parametrize("bias", [1e-3, 1e3, 1e9])
def test_small_weights_with_a_large_bias_get_a_scale_that_holds_it(bias: float) -> None:
    b = Build()
    x = b.input("x", (N, 4, 8, 8), "float32")
    weight = b.weight(3, 4, 1)
    weight[0] *= 1e-6
    weight[1] = 0
    y = b.conv(x, weight, np.full(3, bias, np.float32), "c")
    module = b.finish([y])
    context = Context(Options(quantize="int8"), samples_for(module))
    run_checked(module, [*SIMPLIFY, calibrate.PASS, mark.PASS], context)
    scales = np.array(context.notes["quantization"]["weights"]["c_c"]["scale"])
    unit = context.notes["quantization"]["values"]["x"]["scale"] * scales
    assert np.all(np.abs(bias / unit) < 2**30 * 1.01)
    assert np.all(unit < max(abs(bias), 1e-2) / 50)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-12, 1e30])
@pytest.mark.parametrize("arithmetic", ["float", "fixed", "shift"])
def test_ranges_of_any_size_are_quantised_or_declined(size: float, arithmetic: Any) -> None:
    b = Build()
    x = b.input("x", (N, 4, 8, 8), "float32")
    y = b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c1"), "r1")
    module = b.finish([b.conv(y, b.weight(4, 4, 1), b.normal(4), name="c2")])
    samples = [{"x": sample["x"] * np.float32(size)} for sample in samples_for(module)]
    result, _ = quantized(module, arithmetic, samples=samples)
    before, after = run(module, samples[0])[0], run(result, samples[0])[0]
    assert np.all(np.isfinite(after))
    assert snr(before, after) > 20


def test_shift_scales_are_powers_of_two() -> None:
    def build(b: Build, x: Any) -> Any:
        return end(b, b.relu(b.conv(x, b.weight(4, 4), b.normal(4), "c1"), "r1"))

    values, context = marked(build, "shift")
    scales = [v["scale"] for v in values.values()]
    scales += [s for w in context.notes["quantization"]["weights"].values() for s in w["scale"]]
    assert len(scales) == 2 + 4 + 3
    assert all(np.frexp(s)[0] == 0.5 for s in scales)
