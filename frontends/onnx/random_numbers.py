"""Random numbers: compositions on `dlc.random_bits`, a function of position and seed alone.

A node with the attribute `seed` uses the bits of that float. Without one the seed is derived from the node's name, so
that nodes differ from each other, and a model gives the same bytes whenever and wherever it runs: a compiled model has
no state, every run draws the same numbers. ONNX leaves the generator open, so no two runtimes agree on values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor


def seed_of(c: Context) -> tuple[int, int]:
    """The generator's key for a node."""
    given = c.attr("seed")
    if given is not None:
        return int(np.float32(given).view(np.uint32)), 0
    digest = hashlib.sha256((c.onnx_node or c.node.name or next(iter(c.node.outputs), "")).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def uniform(c: Context, shape: Sequence[Dim]) -> Tensor:
    """float32 in [0, 1), multiples of 2^-24."""
    bits = c.emit("dlc.random_bits", shape=tuple(shape), seed=seed_of(c))
    high = c.emit("right_shift", bits, c.constant(np.uint32(8)))
    return c.emit("multiply", c.cast(high, "float32"), 2.0**-24)


def normal(c: Context, shape: Sequence[Dim]) -> Tensor:
    """float32 standard normal, by Box and Muller: two uniforms an element; at most 5.77 from 0."""
    both = uniform(c, (2, *shape))
    first, second = (c.reshape(c.slice(both, 0, i, i + 1), shape) for i in range(2))
    # 1 - u is in (0, 1], so that the logarithm is finite.
    radius = c.emit("sqrt", c.emit("multiply", c.emit("log", c.emit("subtract", c.like(1, first), first)), -2))
    return c.emit("multiply", radius, c.emit("cos", c.emit("multiply", second, 2 * math.pi)))


def _dtype(c: Context, like: Tensor | None) -> str:
    given = c.attr("dtype", 0)
    dtype = element_type(given) if given else like.dtype if like is not None else "float32"
    if not dtype.startswith(("float", "bfloat")):
        raise ConversionError(f"random numbers of type {dtype}")
    return dtype


def _scaled(c: Context, x: Tensor, factor: float, shift: float, dtype: str) -> Tensor:
    return c.cast(c.emit("add", c.emit("multiply", x, factor), shift), dtype)


@converter("RandomUniform", "RandomUniformLike")
def random_uniform(c: Context, like: Tensor | None = None) -> Tensor:
    """Uniform in [low, high)."""
    shape = like.shape if like is not None else c.require("shape")
    low, high = c.attr("low", 0.0), c.attr("high", 1.0)
    return _scaled(c, uniform(c, shape), high - low, low, _dtype(c, like))


@converter("RandomNormal", "RandomNormalLike")
def random_normal(c: Context, like: Tensor | None = None) -> Tensor:
    """Normal with a mean and a standard deviation."""
    shape = like.shape if like is not None else c.require("shape")
    return _scaled(c, normal(c, shape), c.attr("scale", 1.0), c.attr("mean", 0.0), _dtype(c, like))


@converter("Bernoulli", since=15)
def bernoulli(c: Context, x: Tensor) -> Tensor:
    """1 with the probability that x gives, else 0."""
    dtype = element_type(c.attr("dtype")) if c.attr("dtype", 0) else x.dtype
    drawn = c.emit("less", uniform(c, x.shape), c.cast(x, "float32"))
    return c.cast(drawn, dtype)


@converter("Multinomial", since=7)
def multinomial(c: Context, x: Tensor) -> Tensor:
    """Classes drawn with the probabilities whose logarithms, up to a constant, are x (batch, classes)."""
    classes, count = x.shape[-1], c.attr("sample_size", 1)
    if x.rank != 2 or not isinstance(classes, int) or classes < 1:
        raise ConversionError(f"needs a matrix with a known number of classes, got {x}")
    dtype = element_type(c.attr("dtype", 6))
    chances = c.emit("nn.softmax", c.cast(x, "float32"), axis=1)
    below = c.emit("dlc.cumulate", chances, mode="sum", axis=1, exclusive=0, reverse=0)
    # The class is the number of cumulated probabilities not above u; without the last, which is 1 up to rounding.
    below = c.reshape(c.slice(below, 1, 0, classes - 1), (x.shape[0], 1, classes - 1))
    drawn = c.reshape(uniform(c, (x.shape[0], count)), (x.shape[0], count, 1))
    passed = c.cast(c.emit("less_equal", below, drawn), "int32")
    if classes == 1:
        return c.broadcast(c.constant(np.zeros((), dtype)), (x.shape[0], count))
    return c.cast(c.reduce("sum", passed, (2,), keepdims=False), dtype)


@converter("Dropout", since=12)
def dropout(
    c: Context, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """In training mode each element is dropped with probability `ratio`, and what is kept grows by 1 / (1 - ratio)."""
    off = training is None or (training.value is not None and not training.value.any())
    if off or (ratio is not None and ratio.value is not None and not ratio.value.any()):
        return x, c.broadcast(c.constant(np.ones((), bool)), x.shape) if c.wants(1) else None
    assert training is not None
    share = c.constant(np.float32(0.5)) if ratio is None else c.reshape(c.cast(ratio, "float32"), ())
    kept = c.emit("greater_equal", uniform(c, x.shape), share)
    if training.value is None:
        kept = c.emit("logical_or", kept, c.emit("logical_not", c.reshape(training, ())))
    if training.value is None:
        share = c.emit("where", c.reshape(training, ()), share, c.like(0, share))
    grown = c.emit("divide", x, c.cast(c.emit("subtract", c.like(1, share), share), x.dtype))
    return c.emit("where", kept, grown, c.like(0, x)), kept
