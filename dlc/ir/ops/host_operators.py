"""Operators that the host runs by our own definitions: onnx's reference implementation is wrong for some attributes.

It mistakes uneven paddings and groups of convolutions, automatic paddings of pools, negative widths of Pad, Resize
with antialiasing, GatherElements with fewer indices than elements, a Mean whose first operand is broadcast, and
BatchNormalization before opset 14, which it trains (seen in onnx 1.23). The classes have the operators' names, as
`onnx.reference` wants it; attributes come by name, None where a node has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from dlc.ir.ops.registry import OPS
from dlc.ir.ops.windows import CHANNELS_FIRST, output_extents

Outputs = tuple[Any, ...]


def _same_pads(totals: Sequence[int], mode: str) -> list[int]:
    """Begins then ends; an odd element goes to the end for SAME_UPPER."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


def _window(x: np.ndarray, kernel: Sequence[int], attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that `dlc.conv` and `dlc.pool` share."""
    rank, mode = len(kernel), attrs.get("auto_pad")
    strides, dilations = list(attrs.get("strides") or [1] * rank), list(attrs.get("dilations") or [1] * rank)
    pads = list(attrs.get("pads") or [0] * (2 * rank)) if mode in (None, "NOTSET") else [0] * (2 * rank)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        steps = zip(x.shape[2:], strides, spans, strict=True)
        pads = _same_pads([max((-(-e // s) - 1) * s + span - e, 0) for e, s, span in steps], mode)
    return {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "layout": CHANNELS_FIRST,
        "out_dtype": x.dtype,
        "ceil_mode": attrs.get("ceil_mode") or 0,
        "count_include_pad": attrs.get("count_include_pad") or 0,
    }


def _with_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return y if bias is None else y + bias.reshape(-1, *[1] * (y.ndim - 2))


class _Own(OpRun):
    op_domain = ""


class Conv(_Own):
    """Convolution."""

    def _run(self, x: Any, w: Any, b: Any = None, **attrs: Any) -> Outputs:
        options = {**_window(x, w.shape[2:], attrs), "groups": attrs.get("group") or 1}
        return (_with_bias(np.asarray(OPS["dlc.conv"].meaning([x, w], options)), b),)


class ConvTranspose(_Own):
    """The transpose of a convolution: every input element adds a scaled kernel to the output."""

    def _run(self, x: Any, w: Any, b: Any = None, **attrs: Any) -> Outputs:
        rank, groups = x.ndim - 2, attrs.get("group") or 1
        strides, dilations = list(attrs.get("strides") or [1] * rank), list(attrs.get("dilations") or [1] * rank)
        extra = list(attrs.get("output_padding") or [0] * rank)
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        full = [(e - 1) * s + k for e, s, k in zip(x.shape[2:], strides, spans, strict=True)]
        pads = _transposed_pads(x.shape[2:], full, strides, extra, attrs)
        outputs, depth = w.shape[1], w.shape[0] // groups
        room = [f + e for f, e in zip(full, extra, strict=True)]
        y = np.zeros((x.shape[0], groups * outputs, *room), x.dtype)
        for g, tap in product(range(groups), np.ndindex(*w.shape[2:])):
            part, kernel = slice(g * depth, (g + 1) * depth), (slice(None), slice(None), *tap)
            moves = zip(tap, dilations, x.shape[2:], strides, strict=True)
            spots = tuple(slice(t * d, t * d + (e - 1) * s + 1, s) for t, d, e, s in moves)
            added = np.einsum("nc...,co->no...", x[:, part], w[part][kernel])
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *spots)] += added
        kept = tuple(slice(pads[i], room[i] - pads[rank + i]) for i in range(rank))
        return (_with_bias(y[(slice(None), slice(None), *kept)], b),)


def _transposed_pads(
    extents: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int], attrs: Mapping[str, Any]
) -> list[int]:
    rank, mode, wanted = len(extents), attrs.get("auto_pad"), attrs.get("output_shape")
    if wanted:
        totals = [f + e - n for f, e, n in zip(full, extra, list(wanted)[-rank:], strict=True)]
        return _same_pads(totals, mode or "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = zip(full, extra, extents, strides, strict=True)
        return _same_pads([max(f + e - n * s, 0) for f, e, n, s in sizes], mode)
    pads = attrs.get("pads")
    return list(pads) if pads and mode != "VALID" else [0] * (2 * rank)


def _pooled(x: np.ndarray, mode: str, kernel: Sequence[int], options: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(OPS["dlc.pool"].meaning([x], {**options, "mode": mode, "kernel": tuple(kernel)}))


class AveragePool(_Own):
    """The mean of each window."""

    def _run(self, x: Any, **attrs: Any) -> Outputs:
        kernel = attrs["kernel_shape"]
        return (_pooled(x, "average", kernel, _window(x, kernel, attrs)),)


class LpPool(_Own):
    """The p-norm of each window."""

    def _run(self, x: Any, **attrs: Any) -> Outputs:
        kernel, p = attrs["kernel_shape"], attrs.get("p") or 2
        total = _pooled(np.abs(x) ** p, "sum", kernel, _window(x, kernel, attrs))
        return ((total ** (1 / p)).astype(x.dtype),)


class MaxPool(_Own):
    """The maximum of each window, and where its first occurrence lies in the flattened tensor."""

    def _run(self, x: Any, **attrs: Any) -> Outputs:
        kernel = attrs["kernel_shape"]
        options = _window(x, kernel, attrs)
        best = _pooled(x, "max", kernel, options)
        if len([name for name in self.onnx_node.output if name]) == 1:
            return (best,)
        return best, _places(x, best, kernel, options, bool(attrs.get("storage_order")))


def _places(
    x: np.ndarray, best: np.ndarray, kernel: Sequence[int], options: Mapping[str, Any], column_major: bool
) -> np.ndarray:
    extents, found = x.shape[2:], np.full(best.shape, -1, np.int64)
    steps = [1] * len(extents)
    for i in range(1, len(extents)):
        if column_major:
            steps[i] = steps[i - 1] * extents[i - 1]
        else:
            steps[-1 - i] = steps[-i] * extents[-i]
    area, outs = int(np.prod(extents)), output_extents(extents, kernel, options)
    for number, plane in enumerate(np.ndindex(*x.shape[:2])):
        for at, tap in product(np.ndindex(*outs), np.ndindex(*kernel)):
            moves = zip(at, options["strides"], options["pads"], tap, options["dilations"], strict=False)
            spot = tuple(a * s - p + t * d for a, s, p, t, d in moves)
            inside = all(0 <= i < e for i, e in zip(spot, extents, strict=True))
            if inside and found[plane + at] < 0 and x[plane + spot] == best[plane + at]:
                found[plane + at] = number * area + sum(i * s for i, s in zip(spot, steps, strict=True))
    return found


class Pad(_Own):
    """Padding; negative widths crop."""

    def _run(self, x: Any, pads: Any = None, fill: Any = None, axes: Any = None, **attrs: Any) -> Outputs:
        pads = attrs["pads"] if pads is None else pads
        before, after = [0] * x.ndim, [0] * x.ndim
        places = [int(a) for a in axes] if axes is not None else list(range(x.ndim))
        for i, axis in enumerate(places):
            before[axis], after[axis] = int(pads[i]), int(pads[len(places) + i])
        cuts = zip(before, after, x.shape, strict=True)
        x = x[tuple(slice(max(-b, 0), e - max(-a, 0)) for b, a, e in cuts)]
        widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        mode: Any = attrs.get("mode") or "constant"
        if mode != "constant":
            return (np.pad(x, widths, mode=mode),)
        filling = (attrs.get("value") or 0) if fill is None else np.asarray(fill).reshape(-1)[0]
        return (np.pad(x, widths, constant_values=np.asarray(filling).astype(x.dtype)),)


class Resize(_Own):
    """Resampling, from opset 11."""

    def _run(self, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **attrs: Any) -> Outputs:
        places = [a % x.ndim for a in attrs["axes"]] if attrs.get("axes") else list(range(x.ndim))
        shape, ratios, region = list(x.shape), [1.0] * x.ndim, [0.0] * x.ndim + [1.0] * x.ndim
        policy = attrs.get("keep_aspect_ratio_policy") or "stretch"
        if sizes is not None and len(sizes):
            wanted = [int(n) for n in sizes]
            factors = [n / x.shape[a] for a, n in zip(places, wanted, strict=True)]
            if policy != "stretch":
                factors = [(min if policy == "not_larger" else max)(factors)] * len(places)
                wanted = [int(x.shape[a] * f + 0.5) for a, f in zip(places, factors, strict=True)]
        else:
            factors = [float(s) for s in scales]
            wanted = [int(x.shape[a] * f) for a, f in zip(places, factors, strict=True)]
        for i, axis in enumerate(places):
            shape[axis], ratios[axis] = wanted[i], factors[i]
            if roi is not None and len(roi):
                region[axis], region[x.ndim + axis] = float(roi[i]), float(roi[len(places) + i])
        cubic = attrs.get("cubic_coeff_a")
        options = {
            "shape": tuple(shape),
            "scales": tuple(ratios),
            "roi": tuple(region),
            "mode": attrs.get("mode") or "nearest",
            "coordinates": attrs.get("coordinate_transformation_mode") or "half_pixel",
            "nearest": attrs.get("nearest_mode") or "round_prefer_floor",
            "cubic": -0.75 if cubic is None else cubic,
            "antialias": attrs.get("antialias") or 0,
            "exclude_outside": attrs.get("exclude_outside") or 0,
            "extrapolation": attrs.get("extrapolation_value") or 0.0,
        }
        return (OPS["dlc.resize"].meaning([x], options),)


class GatherElements(_Own):
    """Elements by their indices along one axis."""

    def _run(self, x: Any, indices: Any, **attrs: Any) -> Outputs:
        axis = (attrs.get("axis") or 0) % x.ndim
        return (np.asarray(OPS["relax.gather_elements"].meaning([x, indices], {"axis": axis})),)


class Mean(_Own):
    """The mean of several tensors that broadcast."""

    def _run(self, *tensors: Any, **attrs: Any) -> Outputs:
        total = tensors[0]
        for each in tensors[1:]:
            total = np.add(total, each)
        return ((total / np.asarray(len(tensors), total.dtype)).astype(total.dtype),)


class BatchNormalization(_Own):
    """Scale, bias, mean and variance a channel; with `training_mode` the statistics are the batch's."""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, **attrs: Any) -> Outputs:
        epsilon, momentum = attrs.get("epsilon"), attrs.get("momentum")
        epsilon, momentum = 1e-5 if epsilon is None else epsilon, 0.9 if momentum is None else momentum
        parameters = np.broadcast_shapes(scale.shape, mean.shape)
        column = (*parameters, *[1] * (x.ndim - 1 - len(parameters)))

        def standard(m: Any, v: Any) -> np.ndarray:
            deviation = np.sqrt(v.reshape(column) + epsilon)
            y = scale.reshape(column) * (x - m.reshape(column)) / deviation + bias.reshape(column)
            return np.asarray(y.astype(x.dtype))

        if not attrs.get("training_mode"):
            return (standard(mean, variance),)
        axes = (0, *range(2, x.ndim))
        seen = x.mean(axis=axes), x.var(axis=axes)
        running = [
            (old * momentum + new * (1 - momentum)).astype(old.dtype)
            for old, new in zip((mean, variance), seen, strict=True)
        ]
        return standard(*seen), *running


OPERATORS = [AveragePool, BatchNormalization, Conv, ConvTranspose, GatherElements, LpPool, MaxPool, Mean, Pad, Resize]
