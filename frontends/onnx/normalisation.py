"""Batch, layer, instance, group and other normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, HostError, Tensor


def _per_channel(c: Context, parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter a channel, to be broadcast to `x`."""
    if not isinstance(x.shape[1], int):
        c.equal(x.shape[1], parameter.shape[0], "the channels of the activation and the parameters")
    return c.reshape(parameter, (parameter.shape[0], *[1] * max(x.rank - 2, 0)))


def _folded(c: Context, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Batch normalisation with given statistics: one multiplication and one addition a channel."""
    epsilon = c.attr("epsilon", 1e-5)
    if all(p.value is not None for p in parameters):
        g, b, m, v = (np.asarray(p.value).astype(np.float64) for p in parameters)
        with np.errstate(invalid="ignore", divide="ignore"):
            wide = g / np.sqrt(v + epsilon)
        scale, shift = c.constant(wide.astype(x.dtype)), c.constant((b - m * wide).astype(x.dtype))
    else:
        gamma, beta, mean, variance = (c.cast(p, x.dtype) for p in parameters)
        scale = c.emit("multiply", gamma, c.emit("rsqrt", c.emit("add", variance, epsilon)))
        shift = c.emit("subtract", beta, c.emit("multiply", mean, scale))
    return c.emit("add", c.emit("multiply", x, scale), shift)


def _statistics(c: Context, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Training mode: normalised by the batch's own mean and variance, with which the running ones move on."""
    gamma, beta, mean, variance = parameters
    axes, momentum, epsilon = [i for i in range(x.rank) if i != 1], c.attr("momentum", 0.9), c.attr("epsilon", 1e-5)
    normal, own_mean, _ = standardise(c, x, axes, epsilon)
    centred = c.emit("subtract", x, own_mean)
    own_variance = c.reduce("mean", c.emit("multiply", centred, centred), axes)
    scaled = c.emit("multiply", normal, c.cast(_per_channel(c, gamma, x), x.dtype))
    moved = []
    for old, own in ((mean, own_mean), (variance, own_variance)):
        fresh = c.cast(c.reshape(own, (x.shape[1],)), old.dtype)
        moved.append(c.emit("add", c.emit("multiply", old, momentum), c.emit("multiply", fresh, 1 - momentum)))
    return c.emit("add", scaled, c.cast(_per_channel(c, beta, x), x.dtype)), *moved


@converter("BatchNormalization")
def batch_normalisation(c: Context, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Scale, bias, mean and variance a channel; up to opset 8, with `spatial` 0, an element of an image."""
    if x.rank < 2 or len(parameters) != 4:
        raise ConversionError(f"batch normalisation of {x} with {len(parameters)} parameters")
    training = c.attr("training_mode", 0)
    if not training and any(c.wants(i) for i in range(1, 5)):
        # Up to opset 13 the number of outputs says that a model is being trained.
        raise ConversionError("training mode is not supported before opset 14")
    if not c.attr("spatial", 1):
        return (_folded(c, x, parameters),)
    if any(p.rank != 1 for p in parameters):
        raise ConversionError(f"parameters {parameters[0]} do not fit an activation {x}")
    if training:
        return _statistics(c, x, *parameters)
    return (_folded(c, x, [_per_channel(c, p, x) for p in parameters]),)


def standardise(c: Context, x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) over axes; with the mean and the reciprocal of the deviation."""
    mean = c.reduce("mean", x, axes)
    centred = c.emit("subtract", x, mean)
    variance = c.reduce("mean", c.emit("multiply", centred, centred), axes)
    inverse = c.emit("rsqrt", c.emit("add", variance, epsilon))
    return c.emit("multiply", centred, inverse), mean, inverse


def _wide(c: Context, x: Tensor) -> Tensor:
    """`x` in a type in which its variance can be computed."""
    return c.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x


@converter("LayerNormalization", since=17)
def layer_normalisation(c: Context, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """Over the dimensions from `axis` on, computed in float32 as `stash_type` asks."""
    axis, epsilon = c.axis(c.attr("axis", -1), x.rank), c.attr("epsilon", 1e-5)
    axes = tuple(range(axis, x.rank))
    wide = c.cast(x, "float32") if c.attr("stash_type", 1) == 1 else x
    mean = inverse = None
    if c.wants(1) or c.wants(2):
        _, mean, inverse = standardise(c, wide, axes, epsilon)
    whole = scale.static and scale.shape == x.shape[axis:] and (bias is None or bias.shape == scale.shape)
    if whole and wide is x:
        beta = bias if bias is not None else c.broadcast(c.like(0, x), scale.shape)
        return c.emit("nn.layer_norm", x, scale, beta, axes=axes, epsilon=epsilon), mean, inverse
    normal, *_ = standardise(c, wide, axes, epsilon)
    result = c.emit("multiply", c.cast(normal, x.dtype), scale)
    return (result if bias is None else c.emit("add", result, bias)), mean, inverse


@converter("RMSNormalization", since=23)
def rms_normalisation(c: Context, x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean of squares + epsilon) over the dimensions from `axis` on."""
    axis = c.axis(c.attr("axis", -1), x.rank)
    wide = c.cast(x, "float32") if c.attr("stash_type", 1) == 1 else x
    energy = c.reduce("mean", c.emit("multiply", wide, wide), range(axis, x.rank))
    inverse = c.emit("rsqrt", c.emit("add", energy, c.attr("epsilon", 1e-5)))
    return c.emit("multiply", c.cast(c.emit("multiply", wide, inverse), scale.dtype), scale)


@converter("InstanceNormalization", since=6)
def instance_normalisation(c: Context, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each image by itself."""
    if x.rank < 3:
        raise ConversionError(f"instance normalisation needs 3 dimensions or more, got {x}")
    wide, *_ = standardise(c, _wide(c, x), range(2, x.rank), c.attr("epsilon", 1e-5))
    normal = c.cast(wide, x.dtype)
    return c.emit("add", c.emit("multiply", normal, _per_channel(c, scale, x)), _per_channel(c, bias, x))


def _groups(c: Context, x: Tensor) -> tuple[Tensor, int]:
    """x as (N, groups, everything else), standardised in each group, in x's shape again."""
    count = c.require("num_groups")
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise HostError(f"the channels of {x} must be known when compiling")
    if channels % count:
        raise ConversionError(f"{channels} channels do not divide into {count} groups")
    wide = c.cast(x, "float32") if c.attr("stash_type", 1) == 1 else x
    rest = c.symbols.product((channels // count, *x.shape[2:]))
    normal, *_ = standardise(c, c.reshape(wide, (x.shape[0], count, rest)), (2,), c.attr("epsilon", 1e-5))
    return c.cast(c.reshape(normal, x.shape), x.dtype), count


@converter("GroupNormalization", since=18)
def group_normalisation_18(c: Context, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Opset 18 to 20: one scale and bias a group."""
    normal, count = _groups(c, x)
    grouped = c.reshape(normal, (x.shape[0], count, x.shape[1] // count, *x.shape[2:]))
    shape = (count, *[1] * (x.rank - 1))
    result = c.emit("add", c.emit("multiply", grouped, c.reshape(scale, shape)), c.reshape(bias, shape))
    return c.reshape(result, x.shape)


@converter("GroupNormalization", since=21)
def group_normalisation(c: Context, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """From opset 21: one scale and bias a channel."""
    scale, bias = _per_channel(c, scale, x), _per_channel(c, bias, x)
    normal, _ = _groups(c, x)
    return c.emit("add", c.emit("multiply", normal, scale), bias)


@converter("LpNormalization")
def lp_normalisation(c: Context, x: Tensor) -> Tensor:
    """x divided by its 1- or 2-norm along an axis; 0 where the norm is."""
    axis, p, wide = c.axis(c.attr("axis", -1), x.rank), c.attr("p", 2), _wide(c, x)
    if p == 1:
        norm = c.reduce("sum", c.emit("abs", wide), (axis,))
    else:
        norm = c.emit("sqrt", c.reduce("sum", c.emit("multiply", wide, wide), (axis,)))
    safe = c.emit("where", c.emit("equal", norm, 0), c.like(1, norm), norm)
    return c.cast(c.emit("divide", wide, safe), x.dtype)


@converter("MeanVarianceNormalization", since=9)
def mean_variance_normalisation(c: Context, x: Tensor) -> Tensor:
    """(x - mean) / (deviation + 1e-9) over axes."""
    axes = [c.axis(a, x.rank) for a in c.attr("axes", [0, 2, 3])]
    wide = _wide(c, x)
    centred = c.emit("subtract", wide, c.reduce("mean", wide, axes))
    deviation = c.emit("sqrt", c.reduce("mean", c.emit("multiply", centred, centred), axes))
    return c.cast(c.emit("divide", centred, c.emit("add", deviation, 1e-9)), x.dtype)
