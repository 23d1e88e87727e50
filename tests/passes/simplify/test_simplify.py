"""Simplification: which nodes are left, whose names they have, and that values stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from tvm import tirx

from dlc.frontends.onnx import import_model
from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Origin
from dlc.ir.interpret import interpret
from dlc.ir.verify import verify
from dlc.options import Options
from dlc.passes.simplify import SIMPLIFY, STEPS, fold_constants
from dlc.pipeline import Context, run_passes
from tests.property.graphs import inputs_of, quantizable_models

CONV = {"strides": (1, 1), "dilations": (1, 1), "groups": 1, "layout": "channels_first", "out_dtype": "float32"}


class Build(FunctionBuilder):
    """A function of one input ``x``; arrays among the operands become constants."""

    def __init__(self, *shape: Any, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.x = self.input("x", shape, "float32")

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def op(self, op: str, *operands: Any, name: str = "", **attrs: Any) -> Any:
        inputs = [self.constant(o) if isinstance(o, np.ndarray | np.generic) else o for o in operands]
        return self.emit(op, inputs, attrs, Origin(op.split(".")[-1], f"node_{name}", name))

    def conv(self, x: Any, weight: Any, pads: Sequence[int] = (0, 0, 0, 0), **attrs: Any) -> Any:
        return self.op("dlc.conv", x, weight, **{**CONV, "pads": tuple(pads), **attrs})


def simplified(module: Any) -> tuple[Any, Context]:
    context = Context(Options())
    result = run_passes(module, SIMPLIFY, context)
    verify(result)
    return result, context


def ops(module: Any) -> list[str]:
    return [node.op.split(".", 1)[1] for node in view(module).nodes]


def same_values(before: Any, after: Any, *shape: int, tolerance: float = 1e-5) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    for a, b in zip(interpret(view(before), {"x": x}), interpret(view(after), {"x": x}), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_batch_norm_goes_into_the_convolution() -> None:
    b = Build(tirx.Var("N", "int64"), 3, 8, 8)
    y = b.conv(b.x, b.normal(4, 3, 3, 3))
    y = b.op("relax.multiply", y, b.normal(4, 1, 1))
    y = b.op("relax.add", y, b.normal(4, 1, 1), name="bn")
    y = b.op("relax.multiply", y, b.normal(4, 1, 1))
    y = b.op("relax.subtract", y, b.normal(4, 1, 1), name="bn2")
    module = b.finish([b.op("relax.maximum", y, np.float32(0), name="relu")])
    result, _ = simplified(module)
    assert ops(result) == ["conv", "add", "nn.relu"]
    nodes = view(result).nodes
    assert [n.origin.value for n in nodes] == ["", "bn2", "relu"]
    same_values(module, result, 2, 3, 8, 8)


def test_scales_go_into_matmul_on_the_right_side_of_its_bias() -> None:
    b = Build(5, 7)
    y = b.op("dlc.matmul", b.x, b.normal(7, 4), out_dtype="float32")
    y = b.op("relax.add", y, b.normal(4))
    module = b.finish([b.op("relax.divide", y, np.float32(3), name="y")])
    result, _ = simplified(module)
    assert ops(result) == ["matmul", "add"]
    same_values(module, result, 5, 7)


def test_a_shared_weight_is_scaled_for_one_reader_alone() -> None:
    b = Build(1, 2, 4, 4)
    weight = b.constant(b.normal(2, 2, 1, 1))
    first = b.op("relax.multiply", b.conv(b.x, weight), b.normal(2, 1, 1), name="a")
    second = b.op("relax.add", b.conv(b.op("relax.exp", b.x), weight), b.normal(2, 1, 1))
    module = b.finish([first, second])
    result, _ = simplified(module)
    assert ops(result) == ["conv", "exp", "conv", "add"]
    same_values(module, result, 1, 2, 4, 4)


def test_a_scale_stays_where_the_convolution_is_read_twice() -> None:
    b = Build(1, 2, 4, 4)
    y = b.conv(b.x, b.normal(2, 2, 1, 1))
    module = b.finish([b.op("relax.multiply", y, b.normal(2, 1, 1), name="bn"), b.op("relax.exp", y)])
    result, context = simplified(module)
    assert ops(result) == ["conv", "multiply", "exp"]
    assert [d.reason for d in context.declined] == ["the value of conv 'node_' has another reader"]


def test_a_scale_along_another_axis_stays() -> None:
    b = Build(1, 2, 4, 4)
    module = b.finish([b.op("relax.multiply", b.conv(b.x, b.normal(2, 2, 1, 1)), b.normal(4), name="s")])
    result, context = simplified(module)
    assert ops(result) == ["conv", "multiply"]
    assert [d.reason for d in context.declined] == ["the factor varies along another axis than the output channels"]


IDENTITIES: dict[str, tuple[Any, list[str]]] = {
    "add 0": (lambda b: b.op("relax.add", b.x, np.float32(0)), []),
    "0 added in front": (lambda b: b.op("relax.add", np.zeros((1, 1), np.float32), b.x), []),
    "multiply 1": (lambda b: b.op("relax.multiply", b.x, np.ones(6, np.float32)), []),
    "divide 1": (lambda b: b.op("relax.divide", b.x, np.float32(1)), []),
    "divide 8": (lambda b: b.op("relax.divide", b.x, np.float32(8)), ["multiply"]),
    "divide 3": (lambda b: b.op("relax.divide", b.x, np.float32(3)), ["divide"]),
    "1 over x": (lambda b: b.op("relax.divide", np.float32(1), b.x), ["divide"]),
    "a constant that enlarges": (lambda b: b.op("relax.add", b.x, np.zeros((2, 1, 1), np.float32)), ["add"]),
    "power 2": (lambda b: b.op("relax.power", b.x, np.float32(2)), ["multiply"]),
    "two additions": (lambda b: b.op("relax.add", b.op("relax.add", b.x, np.float32(2)), b.normal(6)), ["add"]),
    "maximum 0": (lambda b: b.op("relax.maximum", np.float32(0), b.x), ["nn.relu"]),
    "relu of relu": (lambda b: b.op("relax.nn.relu", b.op("relax.nn.relu", b.x)), ["nn.relu"]),
    "double negation": (lambda b: b.op("relax.negative", b.op("relax.negative", b.x)), []),
    "reshape of reshape": (
        lambda b: b.op("relax.reshape", b.op("relax.reshape", b.x, shape=(24,)), shape=(4, 6)),
        [],
    ),
    "permute of permute": (
        lambda b: b.op("relax.permute_dims", b.op("relax.permute_dims", b.x, axes=(1, 0)), axes=(1, 0)),
        [],
    ),
    "full slice": (
        lambda b: b.op("relax.strided_slice", b.x, axes=(1,), begin=(0,), end=(6,), strides=(1,)),
        [],
    ),
    "reversal": (
        lambda b: b.op("relax.strided_slice", b.x, axes=(1,), begin=(5,), end=(-1,), strides=(-1,)),
        ["strided_slice"],
    ),
    "padding by nothing": (
        lambda b: b.op("relax.nn.pad", b.x, pad_width=(0, 0, 0, 0), mode="constant", value=0.0),
        [],
    ),
    "shift by padding": (
        lambda b: b.op("relax.nn.pad", b.x, pad_width=(0, 0, 1, -1), mode="constant", value=0.0),
        ["nn.pad"],
    ),
    "concat of one": (lambda b: b.op("relax.concat", b.x, axis=0), []),
    "concat of concat": (
        lambda b: b.op("relax.concat", b.op("relax.concat", b.x, b.x, axis=0), b.x, axis=0),
        ["concat"],
    ),
    "cast to itself": (lambda b: b.op("relax.astype", b.x, dtype="float32"), []),
    "constants": (lambda b: b.op("relax.multiply", b.x, b.op("relax.exp", b.normal(6))), ["multiply"]),
}


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_identity(name: str) -> None:
    build, expected = IDENTITIES[name]
    b = Build(4, 6)
    # One node behind it, so that an empty result is not the input itself.
    module = b.finish([b.op("relax.tanh", build(b), name="y")])
    result, _ = simplified(module)
    if name != "shift by padding":  # numpy, and so the interpreter, pads by positive widths alone
        same_values(module, result, 4, 6)
    assert ops(result) == [*expected, "tanh"]
    assert view(result).nodes[-1].origin.value == "y"


def test_padding_goes_into_convolution_and_counting_average() -> None:
    pad = {"pad_width": (0, 0, 0, 0, 1, 2, 1, 0), "mode": "constant", "value": 0.0}
    pool = {
        "mode": "average", "kernel": (2, 2), "strides": (2, 2), "dilations": (1, 1), "ceil_mode": False,
        "count_include_pad": False, "layout": "channels_first", "out_dtype": "float32", "pads": (0, 0, 0, 0),
    }  # fmt: skip
    b = Build(1, 2, 5, 5)
    p = b.emit("relax.nn.pad", [b.x], pad)
    module = b.finish([b.conv(p, b.normal(2, 2, 3, 3)), b.op("dlc.pool", p, **pool)])
    result, _ = simplified(module)
    assert ops(result) == ["conv", "pool"]
    assert all(node.attrs["pads"] == (1, 1, 2, 0) for node in view(result).nodes)
    same_values(module, result, 1, 2, 5, 5)


def test_padding_before_a_maximum_stays() -> None:
    pool = {
        "mode": "max", "kernel": (2, 2), "strides": (1, 1), "dilations": (1, 1), "ceil_mode": False,
        "count_include_pad": False, "layout": "channels_first", "out_dtype": "float32", "pads": (0, 0, 0, 0),
    }  # fmt: skip
    b = Build(1, 2, 5, 5)
    p = b.emit("relax.nn.pad", [b.x], {"pad_width": (0, 0, 0, 0, 1, 1, 1, 1), "mode": "constant", "value": 0.0})
    result, context = simplified(b.finish([b.op("dlc.pool", p, **pool)]))
    assert ops(result) == ["nn.pad", "pool"]
    assert [d.reason for d in context.declined] == ["padding of a maximum is left out, an explicit zero is not"]


def test_equal_nodes_become_one() -> None:
    b = Build(4, 6)
    left = b.op("relax.exp", b.op("relax.add", b.x, np.float32(2)))
    right = b.op("relax.exp", b.op("relax.add", b.x, np.float32(2)))
    other = b.op("relax.exp", b.op("relax.add", b.x, np.float32(3)))
    module = b.finish([b.op("relax.add", b.op("relax.subtract", left, other), right)])
    result, _ = simplified(module)
    assert ops(result) == ["add", "exp", "add", "exp", "subtract", "add"]
    same_values(module, result, 4, 6)


def test_a_large_broadcast_is_not_stored() -> None:
    b = Build(1024, 2048)
    big = b.op("relax.broadcast_to", np.full((1, 1), 3, np.float32), shape=(1024, 2048))
    result, context = simplified(b.finish([b.op("relax.add", b.x, big)]))
    assert ops(result) == ["broadcast_to", "add"]
    assert fold_constants.LARGEST_GROWTH < 1024 * 2048 * 4
    assert [d.reason for d in context.declined] == ["the result has 8388608 bytes, its inputs 4"]


def test_integer_weights_are_kept() -> None:
    b = Build(1, 4)
    weight = b.op("dlc.dequantize", np.ones((4, 3), np.int8), np.float32(0.5), np.int8(0), axis=0, out_dtype="float32")
    result, _ = simplified(b.finish([b.op("dlc.matmul", b.x, weight, out_dtype="float32")]))
    assert ops(result) == ["dequantize", "matmul"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(quantizable_models())
def test_random_graphs_keep_their_values(drawn: tuple[onnx.ModelProto, int]) -> None:
    model, seed = drawn
    module = import_model(model)
    result, context = simplified(module)
    for step in STEPS:
        assert step.run(result, context) is result, f"{step.name} changes a simplified graph"
    x = {view(module).inputs[0].name: inputs_of(model, seed)}
    for a, b in zip(interpret(view(module), x), interpret(view(result), x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.max(np.abs(a), initial=1)))
