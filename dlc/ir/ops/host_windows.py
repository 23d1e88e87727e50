"""Operators that the host runs by our own definitions: onnx's reference implementation is wrong for some attributes.

It mistakes uneven paddings and groups of convolutions, automatic paddings of pools, negative widths of Pad, and Resize
with antialiasing (seen in onnx 1.23). The classes have the operators' names and take their attributes, as `onnx.reference` wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from dlc.ir.ops.registry import OPS
from dlc.ir.ops.windows import CHANNELS_FIRST, output_extents


def _window(
    x: np.ndarray, kernel: Sequence[int], auto_pad: str | None, dilations: Any, pads: Any, strides: Any
) -> dict[str, Any]:
    rank = len(kernel)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    pads = list(pads or [0] * (2 * rank))
    if auto_pad == "VALID":
        pads = [0] * (2 * rank)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        totals = [
            max((-(-e // s) - 1) * s + span - e, 0) for e, s, span in zip(x.shape[2:], strides, spans, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]
    return {"strides": strides, "pads": pads, "dilations": dilations, "layout": CHANNELS_FIRST, "out_dtype": x.dtype}


def _with_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


class _Own(OpRun):
    op_domain = ""


class Conv(_Own):
    """Convolution."""

    def _run(  # type: ignore[override]
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None
    ) -> tuple[Any, ...]:  # fmt: skip
        attrs = {**_window(x, w.shape[2:], auto_pad, dilations, pads, strides), "groups": group or 1}
        return (_with_bias(OPS["dlc.conv"].meaning([x, w], attrs), b),)


class ConvTranspose(_Own):
    """The transpose of a convolution: every input element adds a scaled kernel to the output."""

    def _run(  # type: ignore[override]
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,
        output_shape=None, pads=None, strides=None,
    ) -> tuple[Any, ...]:  # fmt: skip
        rank, groups = x.ndim - 2, group or 1
        strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
        extra = list(output_padding or [0] * rank)
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        full = [(e - 1) * s + k for e, s, k in zip(x.shape[2:], strides, spans, strict=True)]
        pads = [0] * (2 * rank) if auto_pad == "VALID" or not pads else list(pads)
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = list(output_shape or [e * s for e, s in zip(x.shape[2:], strides, strict=True)])[-rank:]
            totals = [f + e - n for f, e, n in zip(full, extra, wanted, strict=True)]
            totals = totals if output_shape else [max(t, 0) for t in totals]
            small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
            pads = [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]
        outputs, depth = w.shape[1], w.shape[0] // groups
        room = [f + max(e, 0) for f, e in zip(full, extra, strict=True)]
        y = np.zeros((x.shape[0], groups * outputs, *room), x.dtype)
        for g, tap in product(range(groups), np.ndindex(*w.shape[2:])):
            part, kernel = slice(g * depth, (g + 1) * depth), (slice(None), slice(None), *tap)
            spots = tuple(
                slice(t * d, t * d + (e - 1) * s + 1, s)
                for t, d, e, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
            )
            added = np.einsum("nc...,co->no...", x[:, part], w[part][kernel])
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *spots)] += added
        kept = tuple(slice(pads[i], room[i] - pads[rank + i]) for i in range(rank))
        return (_with_bias(y[(slice(None), slice(None), *kept)], b),)


def _pooled(x: np.ndarray, mode: str, kernel: Sequence[int], attrs: dict[str, Any]) -> np.ndarray:
    return np.asarray(OPS["dlc.pool"].meaning([x], {**attrs, "mode": mode, "kernel": tuple(kernel)}))


class AveragePool(_Own):
    """The mean of each window."""

    def _run(  # type: ignore[override]
        self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None, kernel_shape=None, pads=None,
        strides=None,
    ) -> tuple[Any, ...]:  # fmt: skip
        attrs = _window(x, kernel_shape, auto_pad, dilations, pads, strides)
        return (_pooled(x, "average", kernel_shape, {**attrs, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}),)


class LpPool(_Own):
    """The p-norm of each window."""

    def _run(  # type: ignore[override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, p=None, pads=None, strides=None
    ) -> tuple[Any, ...]:  # fmt: skip
        attrs, p = _window(x, kernel_shape, auto_pad, dilations, pads, strides), p or 2
        total = _pooled(np.abs(x) ** p, "sum", kernel_shape, {**attrs, "ceil_mode": ceil_mode})
        return ((total ** (1 / p)).astype(x.dtype),)


class MaxPool(_Own):
    """The maximum of each window, and where its first occurrence lies in the flattened tensor."""

    def _run(  # type: ignore[override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None,
        strides=None,
    ) -> tuple[Any, ...]:  # fmt: skip
        attrs = {**_window(x, kernel_shape, auto_pad, dilations, pads, strides), "ceil_mode": ceil_mode}
        best = _pooled(x, "max", kernel_shape, attrs)
        return (best, self._places(x, best, kernel_shape, attrs, storage_order)) if self.n_outputs > 1 else (best,)

    @property
    def n_outputs(self) -> int:
        """How many outputs the node has."""
        return len([name for name in self.onnx_node.output if name])

    @staticmethod
    def _places(
        x: np.ndarray, best: np.ndarray, kernel: Sequence[int], attrs: dict[str, Any], column_major: Any
    ) -> np.ndarray:
        extents, found = x.shape[2:], np.full(best.shape, -1, np.int64)
        outs = output_extents(extents, kernel, attrs)
        order = "F" if column_major else "C"
        for plane, at in product(np.ndindex(*x.shape[:2]), np.ndindex(*outs)):
            start = [a * s - p for a, s, p in zip(at, attrs["strides"], attrs["pads"], strict=False)]
            for tap in np.ndindex(*kernel):
                spot = tuple(b + t * d for b, t, d in zip(start, tap, attrs["dilations"], strict=True))
                inside = all(0 <= i < e for i, e in zip(spot, extents, strict=True))
                if inside and x[plane + spot] == best[plane + at]:
                    base = np.ravel_multi_index(plane, x.shape[:2]) * int(np.prod(extents))
                    found[plane + at] = base + np.ravel_multi_index(spot, extents, order=order)
                    break
        return found


class Pad(_Own):
    """Padding; negative widths crop."""

    def _run(  # type: ignore[override]
        self, x, pads, fill=None, axes=None, mode=None, value=None
    ) -> tuple[Any, ...]:  # fmt: skip
        before, after = [0] * x.ndim, [0] * x.ndim
        places = [int(a) for a in axes] if axes is not None else range(x.ndim)
        for i, axis in enumerate(places):
            before[axis], after[axis] = int(pads[i]), int(pads[len(places) + i])
        x = x[tuple(slice(max(-b, 0), e - max(-a, 0)) for b, a, e in zip(before, after, x.shape, strict=True))]
        widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        if mode in (None, "constant"):
            filling = value if fill is None else np.asarray(fill).reshape(-1)[0]
            return (np.pad(x, widths, constant_values=np.asarray(filling or 0).astype(x.dtype)),)
        return (np.pad(x, widths, mode=mode),)


class Resize(_Own):
    """Resampling, from opset 11."""

    def _run(  # type: ignore[override]
        self, x, roi=None, scales=None, sizes=None, antialias=None, axes=None, coordinate_transformation_mode=None,
        cubic_coeff_a=None, exclude_outside=None, extrapolation_value=None, keep_aspect_ratio_policy=None, mode=None,
        nearest_mode=None,
    ) -> tuple[Any, ...]:  # fmt: skip
        places = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
        shape, ratios, region = list(x.shape), [1.0] * x.ndim, [0.0] * x.ndim + [1.0] * x.ndim
        if sizes is not None and len(sizes):
            wanted = [int(n) for n in sizes]
            factors = [n / x.shape[a] for a, n in zip(places, wanted, strict=True)]
            if keep_aspect_ratio_policy not in (None, "stretch"):
                factors = [(min if keep_aspect_ratio_policy == "not_larger" else max)(factors)] * len(places)
                wanted = [int(x.shape[a] * f + 0.5) for a, f in zip(places, factors, strict=True)]
        else:
            factors = [float(s) for s in scales]
            wanted = [int(x.shape[a] * f) for a, f in zip(places, factors, strict=True)]
        for i, axis in enumerate(places):
            shape[axis], ratios[axis] = wanted[i], factors[i]
            if roi is not None and len(roi):
                region[axis], region[x.ndim + axis] = float(roi[i]), float(roi[len(places) + i])
        attrs = {
            "shape": tuple(shape), "scales": tuple(ratios), "roi": tuple(region), "mode": mode or "nearest",
            "coordinates": coordinate_transformation_mode or "half_pixel",
            "nearest": nearest_mode or "round_prefer_floor", "cubic": -0.75 if cubic_coeff_a is None else cubic_coeff_a,
            "antialias": antialias or 0, "exclude_outside": exclude_outside or 0,
            "extrapolation": extrapolation_value or 0.0,
        }  # fmt: skip
        return (OPS["dlc.resize"].meaning([x], attrs),)


OPERATORS = [Conv, ConvTranspose, AveragePool, LpPool, MaxPool, Pad, Resize]
