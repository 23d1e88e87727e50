"""Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, HostError, Tensor

_TOO_LARGE = 2.0**62  # extents are 64-bit numbers, and products of them are taken


def _scaled(c: Context, extent: Dim, scale: float) -> Dim:
    """floor(extent * scale); for a symbolic extent the scale must be a simple fraction."""
    if (extent if isinstance(extent, int) else 1) * scale >= _TOO_LARGE:
        raise ConversionError(f"a scale of {scale:g} for the extent {extent}")
    if isinstance(extent, int):
        return int(extent * scale)
    ratio = Fraction(scale).limit_denominator(1024)
    if abs(float(ratio) - scale) > 1e-6 * scale:
        raise ConversionError(f"a scale of {scale} for the symbolic extent {extent}")
    return c.symbols.simplify(extent * ratio.numerator // ratio.denominator)


def _emit(c: Context, x: Tensor, shape: Sequence[Dim], scales: Sequence[float], **attrs: Any) -> Tensor:
    if c.attr("mode", "nearest") not in ("nearest", "linear", "cubic"):
        raise ConversionError(f"attribute 'mode' is '{c.attr('mode')}'")
    if all(s == 1.0 for s in scales) and attrs["coordinates"] != "tf_crop_and_resize":
        return x
    defaults = {
        "mode": c.attr("mode", "nearest"),
        "nearest": "floor",
        "cubic": -0.75,
        "antialias": 0,
        "exclude_outside": 0,
        "roi": (),
        "extrapolation": 0.0,
    }
    return c.emit("dlc.resize", x, shape=tuple(shape), scales=tuple(scales), **{**defaults, **attrs})


def _positive(scales: Sequence[float]) -> bool:
    return all(0 < s < math.inf for s in scales)


def _simple(c: Context, x: Tensor, scales: Sequence[float]) -> Tensor:
    """Upsample, and Resize of opset 10: positions divided by the scale.

    What is made smaller takes the nearest element behind the position, what is made larger that before it: ONNX 1.5
    says it by its node test ``resize_downsample_nearest`` alone.
    """
    if len(scales) != x.rank or not _positive(scales):
        raise ConversionError(f"scales {list(scales)} for {x}")
    if c.attr("mode", "nearest") != "nearest":
        return _by_scales(c, x, scales, "floor")
    x = _by_scales(c, x, [min(s, 1.0) for s in scales], "ceil")
    return _by_scales(c, x, [max(s, 1.0) for s in scales], "floor")


def _by_scales(c: Context, x: Tensor, scales: Sequence[float], nearest: str) -> Tensor:
    shape = [_scaled(c, d, s) for d, s in zip(x.shape, scales, strict=True)]
    return _emit(c, x, shape, scales, coordinates="asymmetric", nearest=nearest)


@converter("Upsample", since=7)
def upsample_attribute(c: Context, x: Tensor) -> Tensor:
    """Scales as an attribute (opset 7 and 8)."""
    return _simple(c, x, c.require("scales"))


@converter("Upsample", since=9)
@converter("Resize", since=10)
def upsample(c: Context, x: Tensor, scales: Tensor) -> Tensor:
    """Scales as an input."""
    return _simple(c, x, [float(s) for s in c.known(scales, "the input 'scales'")])


def _by_sizes(c: Context, x: Tensor, axes: Sequence[int], sizes: Sequence[Dim]) -> tuple[list[Dim], list[float]]:
    shape, scales = list(x.shape), [1.0] * x.rank
    policy = c.attr("keep_aspect_ratio_policy", "stretch")
    known = all(isinstance(d, int) for d in (*sizes, *(x.shape[a] for a in axes)))
    if not known and any(not c.symbols.same(s, x.shape[a]) for a, s in zip(axes, sizes, strict=True)):
        raise HostError("sizes and extents must be known when compiling, because their ratio is the scale")
    if not known:
        return shape, scales
    if any(x.shape[a] == 0 for a in axes):
        raise ConversionError(f"cannot resize {x}, which has no elements")
    ratios = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [ratio] * len(axes)
        sizes = [int(x.shape[a] * ratio + 0.5) for a in axes]
    for axis, size, ratio in zip(axes, sizes, ratios, strict=True):
        shape[axis], scales[axis] = size, ratio
    return shape, scales


@converter("Resize", since=11)
def resize(
    c: Context, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """From opset 11: by scales or to sizes, with the coordinate transformation as an attribute."""
    axes = [c.axis(a, x.rank) for a in c.attr("axes") or range(x.rank)]
    given = [] if scales is None else [float(s) for s in c.known(scales, "the input 'scales'").reshape(-1)]
    if given:
        if len(given) != len(axes) or not _positive(given):
            raise ConversionError(f"scales {given} for {len(axes)} axes of {x}")
        ratios = [1.0] * x.rank
        for axis, scale in zip(axes, given, strict=True):
            ratios[axis] = scale
        shape = [_scaled(c, d, s) for d, s in zip(x.shape, ratios, strict=True)]
    elif sizes is not None:
        wanted = c.dims(sizes, "the input 'sizes'")
        if len(wanted) != len(axes):
            raise ConversionError(f"{len(wanted)} sizes for {len(axes)} axes of {x}")
        shape, ratios = _by_sizes(c, x, axes, wanted)
    else:
        raise ConversionError("neither scales nor sizes are given")
    coordinates = c.attr("coordinate_transformation_mode", "half_pixel")
    region = [0.0] * x.rank + [1.0] * x.rank
    if coordinates == "tf_crop_and_resize" and roi is not None:
        bounds = [float(v) for v in c.known(roi, "the input 'roi'").reshape(-1)]
        for i, axis in enumerate(axes):
            region[axis], region[x.rank + axis] = bounds[i], bounds[len(axes) + i]
    if coordinates == "tf_half_pixel_for_nn":
        raise ConversionError("coordinate mode tf_half_pixel_for_nn is not supported")
    return _emit(
        c,
        x,
        shape,
        ratios,
        coordinates=coordinates,
        nearest=c.attr("nearest_mode", "round_prefer_floor"),
        cubic=c.attr("cubic_coeff_a", -0.75),
        antialias=int(c.attr("antialias", 0)),
        exclude_outside=int(c.attr("exclude_outside", 0)),
        roi=tuple(region),
        extrapolation=c.attr("extrapolation_value", 0.0),
    )
