"""Block reductions, softmax, normalisation, positions of extremes against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx

from dlc.targets.cpu.kernels.testing_regions import Body, random
from tests.targets.gpu.region import check

# (shape, axes): lines within the last dimension, across it, both; longer than a block, shorter than a warp
CASES = [((3, 700), (1,)), ((5, 6, 70), (0, 1)), ((2, 9, 9, 40), (1, 2)), ((7, 3), (1,)), ((4, 5, 6), (0, 2))]


def _without(shape: tuple[int, ...], axes: tuple[int, ...], keep: bool) -> tuple[int, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_float_sums_with_prologue_and_epilogue(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    body = Body()
    x = body.node("abs", [body.input(shape)], shape)
    keep = len(axes) == 2
    y = body.node("mean", [x], _without(shape, axes, keep), axes=axes, keepdims=keep)
    y = body.node("negative", [y], _without(shape, axes, keep))
    check("reduction", body.graph(y), [random(np.random.default_rng(0), shape, "float32")], rtol=1e-5)


@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
def test_integers_are_exact_and_wrap(op: str) -> None:
    shape, axes = CASES[2]
    body = Body()
    x = body.input(shape, "uint8" if op in ("max", "min") else "int32")
    dtype = body.inputs[0].dtype
    y = body.node(op, [x], _without(shape, axes, True), dtype, axes=axes, keepdims=True)
    check("reduction", body.graph(y), [random(np.random.default_rng(0), shape, dtype)])


def test_a_nan_wins() -> None:
    x = random(np.random.default_rng(0), (6, 300), "float32")
    x[1, 200] = np.nan
    x[2] = -np.inf
    for op in ("max", "min"):
        body = Body()
        y = body.node(op, [body.input((6, 300))], (6,), axes=(1,), keepdims=False)
        check("reduction", body.graph(y), [x])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("op", ["argmax", "argmin"])
def test_positions_of_extremes(op: str, axis: int) -> None:
    x = np.random.default_rng(0).integers(-4, 4, (300, 40)).astype(np.float32)  # many equal elements
    x[7, 5] = x[200, 5] = np.nan
    body = Body()
    y = body.node(op, [body.input((300, 40))], (40,) if axis == 0 else (300,), "int64", axis=axis, keepdims=False)
    check("reduction", body.graph(y), [x])


@pytest.mark.parametrize("op", ["nn.softmax", "nn.log_softmax"])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax(op: str, axis: int) -> None:
    n = tirx.Var("N", "int64")
    body = Body()
    x = body.node("multiply", [body.input((n, 10, 37)), body.constant(0.125)], (n, 10, 37))
    y = body.node(op, [x], (n, 10, 37), axis=axis)
    y = body.node("negative", [y], (n, 10, 37))
    check("reduction", body.graph(y), [random(np.random.default_rng(0), (3, 10, 37), "float32")], rtol=1e-5,
          sizes={"N": 3})  # fmt: skip


def test_layer_norm() -> None:
    rng = np.random.default_rng(0)
    body = Body()
    inputs = [body.input((6, 4, 50)), body.input((50,)), body.input((50,))]
    y = body.node("nn.layer_norm", inputs, (6, 4, 50), axes=(2,), epsilon=1e-5)
    check("reduction", body.graph(y), [random(rng, s, "float32") for s in ((6, 4, 50), (50,), (50,))], rtol=1e-5)
