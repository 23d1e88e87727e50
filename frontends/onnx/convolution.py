"""Conv, ConvTranspose and the integer convolution."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor
from dlc.frontends.onnx.windows import CHANNELS_FIRST, one_each, window


def add_channels(c: Context, x: Tensor, bias: Tensor) -> Tensor:
    """x plus a vector along the channels (axis 1)."""
    return c.emit("add", x, c.reshape(bias, (bias.shape[0], *[1] * (x.rank - 2))))


def check_kernel(c: Context, w: Tensor) -> list[int]:
    """The kernel's spatial extents, which must be known and agree with the attribute."""
    if w.rank < 3:
        raise ConversionError(f"a convolution's weight needs 3 dimensions or more, got {w}")
    if not w.static:
        raise HostError(f"the shape of the weight must be known when compiling, got {w}")
    kernel = list(w.shape[2:])
    given = c.attr("kernel_shape")
    if given and list(given) != kernel:
        raise ConversionError(f"attribute 'kernel_shape' {given} does not fit the weight {list(w.shape)}")
    return kernel


def check_channels(c: Context, x: Tensor, expected: Dim) -> None:
    """Make a symbolic number of channels what the weight expects."""
    if x.rank > 1 and not isinstance(x.shape[1], int):
        c.equal(x.shape[1], expected, "the channels of the activation and of the weight")


@converter("Conv")
def conv(c: Context, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution over 1 to 3 spatial dimensions."""
    attrs = window(c, x, check_kernel(c, w))
    check_channels(c, x, w.shape[1] * c.attr("group", 1))
    result = c.emit("dlc.conv", x, w, **attrs, groups=c.attr("group", 1), out_dtype=x.dtype)
    return result if bias is None else add_channels(c, result, bias)


def _flipped(c: Context, w: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (C, O / groups, k...) as a convolution's (O, C / groups, k...)."""
    channels, outputs, *kernel = w.shape
    rank = len(kernel)
    w = c.reshape(w, (groups, channels // groups, outputs, *kernel))
    w = c.transpose(w, (0, 2, 1, *range(3, 3 + rank)))
    w = c.reshape(w, (groups * outputs, channels // groups, *kernel))
    if all(k == 1 for k in kernel):
        return w
    axes = tuple(range(2, 2 + rank))
    return c.emit(
        "strided_slice", w, axes=axes, begin=tuple(k - 1 for k in kernel), end=(-1,) * rank, strides=(-1,) * rank
    )


def _spread(c: Context, x: Tensor, strides: list[int]) -> Tensor:
    """Put stride - 1 zeros between neighbours along the spatial dimensions."""
    if all(s == 1 for s in strides):
        return x
    rank = len(strides)
    apart = c.reshape(x, (*x.shape[:2], *(v for d in x.shape[2:] for v in (d, 1))))
    widths = [0, 0, 0, 0] + [v for s in strides for v in (0, 0, 0, s - 1)]
    apart = c.emit("nn.pad", apart, pad_width=tuple(widths), mode="constant", value=0.0)
    wide = c.reshape(apart, (*x.shape[:2], *(d * s for d, s in zip(x.shape[2:], strides, strict=True))))
    ends = tuple((d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True))
    axes = tuple(range(2, 2 + rank))
    return c.emit("strided_slice", wide, axes=axes, begin=(0,) * rank, end=ends, strides=(1,) * rank)


def _by_phases(
    c: Context, x: Tensor, w: Tensor, bias: Tensor | None, strides: list[int], extra: list[int],
    kept: list[tuple[Dim, Dim]],
) -> Tensor:  # fmt: skip
    """A transposed convolution of strides s as one whose outputs are the s places between two inputs.

    y[q s + r] = sum over t of x[q - t] w[t s + r]: taps with the same remainder are a convolution of their own, whose
    outputs are channels first and places then. No input is a zero, as where they are spread.

    Args:
        kept: of each spatial dimension the begin and the end of what is not cropped.
    """
    (channels, outputs, *kernel), groups, rank = w.shape, c.attr("group", 1), len(strides)
    taps = [-(-(k + e) // s) for k, e, s in zip(kernel, extra, strides, strict=True)]
    missing = [v for k, t, s in zip(kernel, taps, strides, strict=True) for v in (0, t * s - k)]
    if any(missing):
        w = c.emit("nn.pad", w, pad_width=(0, 0, 0, 0, *missing), mode="constant", value=0.0)
    w = c.reshape(w, (channels, outputs, *(v for t, s in zip(taps, strides, strict=True) for v in (t, s))))
    w = c.transpose(w, (0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)))
    places = prod(strides)
    w = _flipped(c, c.reshape(w, (channels, outputs * places, *taps)), groups)
    around = tuple(t - 1 for t in taps)
    attrs = {"strides": (1,) * rank, "pads": around + around, "dilations": (1,) * rank, "groups": groups}
    result = c.emit("dlc.conv", x, w, **attrs, layout=CHANNELS_FIRST, out_dtype=x.dtype)
    if bias is not None:
        every = c.broadcast(c.reshape(bias, (groups * outputs, 1)), (groups * outputs, places))
        result = add_channels(c, result, c.reshape(every, (groups * outputs * places,)))
    batch, _, *extents = result.shape
    apart = c.reshape(result, (batch, groups * outputs, *strides, *extents))
    order = [v for i in range(rank) for v in (2 + rank + i, 2 + i)]
    sizes = [d * s for d, s in zip(extents, strides, strict=True)]
    result = c.reshape(c.transpose(apart, (0, 1, *order)), (batch, groups * outputs, *sizes))
    for axis, (begin, end) in enumerate(kept, 2):
        result = c.slice(result, axis, begin, end)
    return result


@converter("ConvTranspose")
def conv_transpose(c: Context, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution with the flipped weight, over zeros between the inputs or for each of the places between two."""
    kernel, groups = check_kernel(c, w), c.attr("group", 1)
    rank = len(kernel)
    check_channels(c, x, w.shape[0])
    if groups < 1 or x.rank != rank + 2 or x.shape[1] != w.shape[0] or w.shape[0] % groups:
        raise ConversionError(f"activation {x}, weight {w} and {groups} groups do not fit")
    strides, dilations = one_each(c, "strides", rank), one_each(c, "dilations", rank)
    extra = one_each(c, "output_padding", rank, 0)
    if min(*strides, *dilations, 1) < 1 or min(extra) < 0:
        raise ConversionError(f"strides {strides}, dilations {dilations} and output_padding {extra} must be positive")
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    begins, ends = _transposed_pads(c, x, strides, spans, extra)
    if max(strides) > 1 and max(dilations) == 1 and min(*begins, *ends) >= 0:
        lengths = [(d - 1) * s + k + e for d, s, k, e in zip(x.shape[2:], strides, kernel, extra, strict=True)]
        kept = [(begin, n - end) for begin, end, n in zip(begins, ends, lengths, strict=True)]
        return _by_phases(c, x, w, bias, strides, extra, kept)
    # The convolution that undoes a padding p pads with span - 1 - p; a negative one crops.
    lead = [s - 1 - p for s, p in zip(spans, begins, strict=True)]
    trail = [s - 1 - p + e for s, p, e in zip(spans, ends, extra, strict=True)]
    apart = _spread(c, x, strides)
    crop_begin, crop_end = [max(-p, 0) for p in lead], [max(-p, 0) for p in trail]
    pads = tuple(max(p, 0) for p in lead + trail)
    result = c.emit(
        "dlc.conv",
        apart,
        _flipped(c, w, groups),
        strides=(1,) * rank,
        pads=pads,
        dilations=tuple(dilations),
        groups=groups,
        layout=CHANNELS_FIRST,
        out_dtype=x.dtype,
    )
    if any(crop_begin) or any(crop_end):
        stops = tuple(d - e for d, e in zip(result.shape[2:], crop_end, strict=True))
        axes = tuple(range(2, 2 + rank))
        result = c.emit("strided_slice", result, axes=axes, begin=tuple(crop_begin), end=stops, strides=(1,) * rank)
    return result if bias is None else add_channels(c, result, bias)


def _transposed_pads(
    c: Context, x: Tensor, strides: list[int], spans: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """Padding at the begins and ends, from pads, auto_pad or output_shape."""
    rank = len(strides)
    wanted, mode = c.attr("output_shape") or None, c.attr("auto_pad", "NOTSET")
    if wanted is not None and len(wanted) < rank:
        raise ConversionError(f"attribute 'output_shape' {wanted} must have {rank} values")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = list(c.attr("pads") or [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        if len(pads) != 2 * rank:
            raise ConversionError(f"attribute 'pads' {pads} must have {2 * rank} values")
        return pads[:rank], pads[rank:]
    begins, ends = [], []
    for i, extent in enumerate(x.shape[2:]):
        if wanted is None:
            # SAME: the output is extent * stride, whatever the extent.
            total = spans[i] - strides[i] + extra[i]
        elif isinstance(extent, int):
            total = strides[i] * (extent - 1) + extra[i] + spans[i] - wanted[len(wanted) - rank + i]
        else:
            raise HostError(f"'output_shape' needs a known extent, not {extent}")
        total = max(total, 0) if wanted is None else total
        small, large = total // 2, total - total // 2
        upper = mode == "SAME_UPPER"
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins, ends


def without_zero(c: Context, w: Tensor, zero: Tensor | None, axis: int = 0) -> Tensor:
    """An integer weight with its zero point subtracted: int8 where that fits, else int16, or int32 at run time."""
    if zero is None or (zero.value is not None and not np.any(zero.value)):
        return w
    if zero.rank == 1 and w.rank > 1 and zero.shape[0] != 1:
        zero = c.reshape(zero, [zero.shape[0] if i == axis else 1 for i in range(w.rank)])
    elif zero.rank == 1:
        zero = c.reshape(zero, ())
    if w.value is None or zero.value is None:
        return c.emit("subtract", c.cast(w, "int32"), c.cast(zero, "int32"))
    wide = w.value.astype(np.int32) - zero.value.astype(np.int32)
    small = not wide.size or (wide.min() >= -128 and wide.max() <= 127)
    return c.constant(wide.astype(np.int8 if small else np.int16))


def split_zero(c: Context, x: Tensor, zero: Tensor | None) -> tuple[Tensor, int]:
    """An activation and its zero point as an attribute; one known only when running is subtracted here."""
    if zero is None:
        return x, 0
    if zero.value is not None and zero.value.size == 1:
        return x, int(zero.value.reshape(-1)[0])
    return without_zero(c, x, zero), 0


def integer_conv(c: Context, x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None) -> Tensor:
    """The int32 accumulator of a convolution of integers."""
    attrs = {**window(c, x, check_kernel(c, w)), "groups": c.attr("group", 1)}
    check_channels(c, x, w.shape[1] * c.attr("group", 1))
    exact = without_zero(c, w, w_zero)
    if exact.dtype != "int16" or attrs["groups"] != 1 or w.value is None or w_zero is None or w_zero.value is None:
        return _integer_conv(c, x, exact, x_zero, attrs)
    # Where w - z are no bytes: sum x (w - z) = sum x (w - m) + (m - z) sum x, and w - m are. The second sum is one
    # channel. Sums may wrap around, their own sum is right.
    middle = 128 if w.dtype == "uint8" else 0
    total = _integer_conv(c, x, c.constant((w.value.astype(np.int16) - middle).astype(np.int8)), x_zero, attrs)
    inputs = _integer_conv(c, x, c.constant(np.ones((1, *w.value.shape[1:]), np.int8)), x_zero, attrs)
    factors = (middle - w_zero.value.astype(np.int32)).reshape(-1, *[1] * (x.rank - 2))
    return c.emit("add", total, c.emit("multiply", inputs, c.constant(factors)))


def _integer_conv(c: Context, x: Tensor, w: Tensor, x_zero: Tensor | None, attrs: dict[str, Any]) -> Tensor:
    """The same with a weight that has no zero point."""
    if x_zero is not None and x_zero.value is None and w.value is not None:
        # sum (x - z) w = sum x w - z sum w: the convolution stays one of bytes. Both sums may wrap around, their
        # difference is right.
        total = c.emit("dlc.conv", x, w, **attrs, out_dtype="int32", x_zero_point=0)
        return subtract_zeros(c, total, x_zero, _weights_met(c, x, w.value, attrs))
    x, zero = split_zero(c, x, x_zero)
    return c.emit("dlc.conv", x, w, **attrs, out_dtype="int32", x_zero_point=zero)


def _weights_met(c: Context, x: Tensor, w: np.ndarray, attrs: dict[str, Any]) -> Tensor:
    """The sum of the weights that meet elements, not padding, at each place of each output channel: int32."""
    sums = w.sum(1, dtype=np.int64)
    if not any(attrs["pads"]):
        return c.constant(sums.sum(tuple(range(1, sums.ndim)), dtype=np.int32).reshape(-1, *[1] * (x.rank - 2)))
    # Exact in float32 below 2^24, which takes a filter of 2^17 weights.
    largest = np.abs(w.astype(np.int64)).sum(tuple(range(1, w.ndim))).max(initial=0)
    exact = "float32" if largest < 1 << 24 else "float64"
    ones = c.broadcast(c.constant(1, exact), (1, attrs["groups"], *x.shape[2:]))
    kernel = c.constant(sums[:, None].astype(exact))
    return c.cast(c.emit("dlc.conv", ones, kernel, **attrs, out_dtype=exact), "int32")


def subtract_zeros(c: Context, total: Tensor, zero: Tensor, weights: Tensor) -> Tensor:
    """A sum of products less the products of a zero point that is known only when running with weights."""
    return c.emit("subtract", total, c.emit("multiply", weights, c.cast(c.reshape(zero, ()), "int32")))


@converter("ConvInteger", since=10)
def conv_integer(
    c: Context, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """Integers in, int32 out."""
    return integer_conv(c, x, w, x_zero, w_zero)
