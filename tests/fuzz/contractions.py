"""Random contractions, windows, reductions, normalisations and what else reads many elements for one."""

from __future__ import annotations

import numpy as np

from tests.fuzz.graph import FLOATS, Graph, RejectedError, Value

_REDUCE = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]


def matmul(g: Graph) -> None:
    x = g.floats(1, 5)
    batch = tuple(1 if g.chance(0.3) else e for e in x.shape[:-2])
    batch = batch[g.between(0, len(batch)) :]
    columns = () if g.chance(0.1) and not batch else (g.extent(),)
    y = g.weight(x.dtype, (*batch, x.shape[-1], *columns))
    if g.chance(0.25) and x.rank >= 2:  # from the other side
        left = g.weight(x.dtype, (g.extent(), x.shape[-2]))
        g.add("MatMul", [left, x])
    else:
        made = g.add("MatMul", [x, y])[0]
        if g.chance(0.4) and columns:
            g.add("Add", [made, g.weight(x.dtype, columns)])


def gemm(g: Graph) -> None:
    x = g.floats(2, 2)
    transposed = g.chance(0.3)
    rows, inner = x.shape[::-1] if transposed else x.shape
    if not inner:
        raise RejectedError  # onnxruntime then forgets beta
    columns, flipped = g.extent(), g.chance(0.5)
    w = g.weight(x.dtype, (columns, inner) if flipped else (inner, columns))
    c = g.weight(x.dtype, g.one_of([(columns,), (rows, columns), (1, columns), (rows, 1), (1,), ()]))
    scale = {"alpha": g.one_of([None, 0.5, -2.0]), "beta": g.one_of([None, 0.3, 0.0])}
    inputs = [x, w] if g.chance(0.2) and g.opset >= 11 else [x, w, c]
    g.add("Gemm", inputs, transA=int(transposed), transB=int(flipped), **scale)


def einsum(g: Graph) -> None:
    x = g.floats(2, 3)
    if x.rank == 2:
        text = g.one_of(["ij,jk->ik", "ij,jk->ki", "ij,jk->i", "ij,jk"])
        g.add("Einsum", [x, g.weight(x.dtype, (x.shape[1], g.extent()))], equation=text)
    else:
        text = g.one_of(["bij,bjk->bik", "bij,bjk->bki", "...ij,...jk->...ik"])
        g.add("Einsum", [x, g.weight(x.dtype, (x.shape[0], x.shape[2], g.extent()))], equation=text)


def _image(g: Graph, least: int = 1) -> Value:
    """A batch of images with 1 to 3 spatial dimensions; reshaped from another value at times."""
    try:
        return g.pick(lambda v: v.dtype in FLOATS and 3 <= v.rank <= 5 and min(v.shape) >= least)
    except RejectedError:
        spatial = g.one_of([1, 2, 2, 2, 3])
        extents = [g.between(max(1, least), 9 if spatial < 3 else 5) for _ in range(spatial)]
        dtype = g.one_of(["float32"] * 7 + ["float16"])
        channels = int(g.one_of([1, 2, 3, 4, 6, 8, 16, 17]))
        return g.input(g.random(dtype, (g.between(1, 2), channels, *extents)))


def _window(g: Graph, x: Value, dilated: bool = True) -> dict[str, object]:
    """Kernel, strides, paddings and dilations that fit `x`."""
    spatial = x.rank - 2
    kernel = [g.between(1, min(5, e + 1)) for e in x.shape[2:]]
    attrs: dict[str, object] = {"kernel_shape": kernel}
    if g.chance(0.6):
        attrs["strides"] = [g.between(1, 3) for _ in range(spatial)]
    if dilated and g.chance(0.25):
        attrs["dilations"] = [g.between(1, 2) for _ in range(spatial)]
    if g.chance(0.2) and "dilations" not in attrs:  # with which onnxruntime's pools take other extents than ONNX's
        attrs["auto_pad"] = g.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif g.chance(0.7):
        attrs["pads"] = [g.between(0, max(0, k - 1)) for k in (*kernel, *kernel)]
    pads, dilations = attrs.get("pads", [0] * (2 * spatial)), attrs.get("dilations", [1] * spatial)
    for i, (size, extent) in enumerate(zip(kernel, x.shape[2:], strict=True)):
        room = extent + pads[i] + pads[spatial + i]  # type: ignore[index]
        same = str(attrs.get("auto_pad")).startswith("SAME")
        if room < dilations[i] * (size - 1) + 1 and not same:  # type: ignore[index]
            raise RejectedError  # no window fits, of which runtimes make different things
        stride = attrs.get("strides", [1] * spatial)[i]  # type: ignore[index]
        if same and (-(-extent // stride) - 1) * stride + size < extent:
            raise RejectedError  # onnxruntime pads by less than nothing, where ONNX's shape inference pads by nothing
    return attrs


def conv(g: Graph) -> None:
    x = _image(g)
    attrs = _window(g, x)
    channels = x.shape[1]
    group = int(g.one_of([1, 1, 1, channels, *(d for d in (2, 3, 4) if channels % d == 0)]))
    out = group * g.between(1, 5) if g.chance(0.8) else group * int(g.one_of([8, 16, 17, 33])) // group * group
    kernel = attrs["kernel_shape"]
    inputs = [x, g.weight(x.dtype, (out, channels // group, *kernel))]  # type: ignore[misc]
    if g.chance(0.5):
        inputs.append(g.weight(x.dtype, (out,)))
    if g.chance(0.2):
        del attrs["kernel_shape"]
    made = g.add("Conv", inputs, group=group if group > 1 or g.chance(0.5) else None, **attrs)[0]
    _epilogue(g, made)


def _epilogue(g: Graph, x: Value) -> None:
    """What usually follows a contraction, so that fusion has something to do."""
    kind = g.one_of(["none", "none", "relu", "residual", "norm", "clip"])
    if kind == "relu":
        g.add("Relu", [x])
    elif kind == "residual":
        g.add("Add", [x, g.operand(x.dtype, x.shape)])
    elif kind == "norm":
        _batch_norm(g, x)
    elif kind == "clip":
        g.add("Sigmoid", [x])


def conv_transpose(g: Graph) -> None:
    x = _image(g)
    attrs = _window(g, x)
    group = 2 if x.shape[1] % 2 == 0 and g.chance(0.3) else 1
    w = g.weight(x.dtype, (x.shape[1], g.between(1, 4), *attrs["kernel_shape"]))  # type: ignore[misc]
    strides = attrs.get("strides", [1] * (x.rank - 2))
    if g.chance(0.3):
        attrs["output_padding"] = [g.between(0, s - 1) for s in strides]  # type: ignore[attr-defined]
    inputs = [x, w, *([g.weight(x.dtype, (w.shape[1] * group,))] if g.chance(0.5) else [])]
    g.add("ConvTranspose", inputs, group=group, **attrs)


def pool(g: Graph) -> None:
    x = _image(g)
    if (x.array != x.array).any():  # which of several NaN is the maximum is open
        raise RejectedError
    op = g.one_of(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"])
    attrs = _window(g, x, dilated=(op == "MaxPool" and g.opset >= 10) or g.opset >= 19)
    if op != "LpPool" or g.opset >= 18:
        attrs["ceil_mode"] = g.one_of([None, 0, 1]) if g.opset >= 10 and "auto_pad" not in attrs else None
    if op == "AveragePool":
        if "dilations" in attrs and any(attrs.get("pads", ())):  # type: ignore[arg-type]
            raise RejectedError  # a window may see padding alone, whose average is open
        attrs["count_include_pad"] = g.one_of([None, 0, 1])
    if op == "LpPool":
        attrs["p"] = g.one_of([None, 1, 2, 3])
    g.add(op, [x], 2 if op == "MaxPool" and g.chance(0.15) else 1, **attrs)


def global_pool(g: Graph) -> None:
    op, x = g.one_of(["GlobalAveragePool", "GlobalMaxPool"]), _image(g)
    if op == "GlobalMaxPool" and np.isnan(x.array).any():
        raise RejectedError  # onnxruntime passes over NaN, ONNX's own reference and torch do not
    g.add(op, [x])


def reduce(g: Graph) -> None:
    mode = g.one_of(_REDUCE)
    op = f"Reduce{mode}"
    kinds = (
        ("float32", "float64", "float16", "int32", "int64") if mode in ("Sum", "Max", "Min", "Mean", "Prod") else FLOATS
    )
    x = g.pick(lambda v: v.dtype in kinds)
    if not x.array.size and mode not in ("Sum", "Prod"):  # onnxruntime gives the input back, or keeps its axes
        raise RejectedError
    if mode in ("Max", "Min") and (x.array != x.array).any():  # what NaN does is open
        raise RejectedError
    if mode == "Prod" and x.dtype == "int32" and abs(np.prod(x.array.astype(float))) > 2**31:  # overflow is open
        raise RejectedError
    if mode == "LogSum":
        x = g.add("Abs", [x])[0]
    axes: list[int] | None = [i - x.rank if g.chance(0.3) else i for i in range(x.rank) if g.chance(0.5)]
    if not axes or g.chance(0.1):
        axes = None
    keep = g.one_of([None, 0, 1])
    if axes and g.since(op) >= (13 if mode == "Sum" else 18):
        g.add(op, [x, g.param(axes)], keepdims=keep)
    else:
        empty = 1 if axes is None and g.since(op) >= 18 and g.chance(0.2) else None
        g.add(op, [x], keepdims=keep, **({"axes": axes} if axes else {}), noop_with_empty_axes=empty)


def _ordered(g: Graph) -> Value:
    """A value to be sorted: without NaN, for which ONNX defines no order."""
    kinds = ("float32", "float64", "int64", "int32")
    return g.pick(lambda v: v.dtype in kinds and v.rank >= 1 and not (v.array != v.array).any())


def _decided(x: Value, axis: int) -> None:
    """Reject what rounding orders: nearly equal numbers, and equal ones that were computed."""
    if not x.array.size:  # which of none is the largest is open
        raise RejectedError
    if x.dtype.startswith("float"):
        finite = np.nan_to_num(np.sort(x.array.astype(np.float64), axis))
        gaps = np.diff(finite, axis=axis)
        near = gaps < 1e-4 * np.abs(finite).max()
        if (near & ((gaps > 0) | (not x.given))).any():
            raise RejectedError


def arg(g: Graph) -> None:
    x = _ordered(g)
    last = g.one_of([None, 0, 1]) if g.opset >= 12 else None
    axis = g.between(-x.rank if g.opset >= 11 else 0, x.rank - 1)
    _decided(x, axis)
    g.add(g.one_of(["ArgMax", "ArgMin"]), [x], axis=axis, keepdims=g.one_of([None, 0, 1]), select_last_index=last)


def top_k(g: Graph) -> None:
    x = _ordered(g)
    axis = g.between(0, x.rank - 1)
    _decided(x, axis)
    k = g.between(1, x.shape[axis])
    if g.opset < 10:
        g.add("TopK", [x], 2, axis=axis, k=k)
    else:
        largest = g.one_of([None, 0, 1]) if g.opset >= 11 else None
        g.add(
            "TopK",
            [x, g.param([k])],
            2,
            axis=axis - x.rank if g.opset >= 11 and g.chance(0.3) else axis,
            largest=largest,
        )


def cumulate(g: Graph) -> None:
    x = g.pick(lambda v: v.dtype in ("float32", "float64", "int32", "int64") and v.rank >= 1)
    axis = g.param(g.between(-x.rank, x.rank - 1))
    op = "CumProd" if g.opset >= 26 and g.chance(0.2) else "CumSum"
    g.add(op, [x, axis], exclusive=g.one_of([None, 1]), reverse=g.one_of([None, 1]))


def softmax(g: Graph) -> None:
    x = g.floats(1)
    axis = g.between(-x.rank if g.opset >= 11 else 0, x.rank - 1) if g.chance(0.8) else None
    op = g.one_of(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    if not x.array.size or (op == "Hardmax" and np.isnan(x.array).any()):  # which is the largest is open
        raise RejectedError
    g.add(op, [x], axis=axis)


def _batch_norm(g: Graph, x: Value) -> None:
    shape = (x.shape[1],)
    scale, bias, mean = (g.constant(g.rng.normal(c, 0.3, shape), x.dtype) for c in (1, 0, 0))
    variance = g.constant(g.rng.uniform(0.3, 2, shape), x.dtype)
    g.add("BatchNormalization", [x, scale, bias, mean, variance], epsilon=g.one_of([None, 1e-3]))


def normalise(g: Graph) -> None:
    kind = g.one_of(["layer", "layer", "batch", "instance", "group", "lrn", "rms", "lp", "mean"])
    if kind in ("layer", "rms"):
        x = g.pick(lambda v: v.dtype in ("float32", "float16") and v.rank >= 1)  # computed in float32 in any case
        axis = g.between(-x.rank, x.rank - 1)
        shape = x.shape[axis:]
        scale = g.weight(x.dtype, shape)
        if kind == "rms":
            g.add("RMSNormalization", [x, scale], axis=axis)
        else:
            more = [g.weight(x.dtype, shape)] if g.chance(0.6) else []
            g.add("LayerNormalization", [x, scale, *more], axis=axis, epsilon=g.one_of([None, 1e-3]))
        return
    if kind == "lp":
        x = g.floats(1)
        g.add("LpNormalization", [x], axis=g.between(-x.rank, x.rank - 1), p=g.one_of([1, 2]))
        return
    x = _image(g)
    weights = [g.weight(x.dtype, (x.shape[1],)) for _ in range(2)]
    if kind == "batch":
        _batch_norm(g, x)
    elif kind == "instance":
        if int(np.prod(x.shape[2:])) == 1:  # onnxruntime gives little more than rounding errors
            raise RejectedError
        g.add("InstanceNormalization", [x, *weights])
    elif kind == "group":
        if x.dtype == "float64":  # onnxruntime does not compute in float32 there, as stash_type asks
            raise RejectedError
        groups = int(g.one_of([d for d in range(1, x.shape[1] + 1) if x.shape[1] % d == 0]))
        sized = weights if g.opset >= 21 else [g.weight(x.dtype, (groups,)) for _ in range(2)]
        g.add("GroupNormalization", [x, *sized], num_groups=groups)
    elif kind == "lrn":
        if not np.isfinite(x.array).all():  # onnxruntime subtracts what leaves the window
            raise RejectedError
        g.add("LRN", [x], size=g.one_of([1, 3, 5]), alpha=g.one_of([None, 0.1]), bias=g.one_of([None, 2.0]))
    else:
        if x.rank != 4 or x.array.size < 16 * x.shape[1]:  # onnxruntime subtracts squares: little is left of a few
            raise RejectedError
        if not np.ptp(x.array.astype(np.float64), axis=(0, 2, 3)).all():  # a little below zero is left of a constant
            raise RejectedError
        g.add("MeanVarianceNormalization", [x], axes=[0, 2, 3])


def resize(g: Graph) -> None:
    x = _image(g)
    if (x.rank != 4 and g.chance(0.6)) or not np.isfinite(x.array).all():  # a weight of 0 times infinity is open
        raise RejectedError
    # Not 0.7: a nearest neighbour would be chosen by a rounding error, at (3 + 0.5) / 0.7 - 0.5.
    scales = [1.0, 1.0] + [float(g.one_of([1, 2, 3, 0.5, 1.5, 0.71])) for _ in x.shape[2:]]
    mode = g.one_of(["nearest", "nearest", "linear", "linear", "cubic"])
    if g.opset < 10:
        g.add("Upsample", [x, g.constant([max(1, s) for s in scales], "float32")], mode=g.one_of(["nearest", "linear"]))
        return
    if g.opset < 11:
        g.add("Resize", [x, g.constant(scales, "float32")], mode=g.one_of(["nearest", "linear"]))
        return
    ways = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    attrs = {"mode": mode, "coordinate_transformation_mode": g.one_of(ways)}
    if any((e * s) % 1 for e, s in zip(x.shape, scales, strict=True)):
        # onnxruntime aligns the corners of the rounded extent, ONNX's own cases those of the exact one.
        attrs["coordinate_transformation_mode"] = "half_pixel"
    if mode == "nearest":
        attrs["nearest_mode"] = g.one_of(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    if mode == "cubic":
        attrs["cubic_coeff_a"] = g.one_of([None, -0.5])
        attrs["exclude_outside"] = g.one_of([None, 1])
    if g.opset >= 18 and mode != "nearest" and g.chance(0.2):
        attrs["antialias"] = 1
    empty = g.constant(np.empty(0), "float32") if g.opset < 13 else None
    roi = g.constant(np.empty(0), "float32") if g.opset < 13 else None
    if g.chance(0.5):
        g.add("Resize", [x, roi, g.constant(scales, "float32")], **attrs)
    else:
        sizes = [*x.shape[:2], *(max(1, int(e * s)) for e, s in zip(x.shape[2:], scales[2:], strict=True))]
        g.add("Resize", [x, roi, empty, g.param(sizes)], **attrs)


def sample(g: Graph) -> None:
    x = g.pick(lambda v: v.rank == 4 and v.dtype == "float32" and v.array.size > 0 and np.isfinite(v.array).all())
    grid = g.rng.uniform(-1.2, 1.2, (x.shape[0], g.between(1, 5), g.between(1, 5), 2)).astype(np.float32)
    modes = ["bilinear", "nearest", "bicubic"] if g.opset < 20 else ["linear", "nearest", "cubic"]
    g.add(
        "GridSample", [x, g.input(grid)], mode=g.one_of(modes),
        padding_mode=g.one_of([None, "zeros", "border", "reflection"]), align_corners=g.one_of([None, 1]),
    )  # fmt: skip


GENERATORS = {
    matmul: 6, gemm: 3, einsum: 1, conv: 8, conv_transpose: 2, pool: 5, global_pool: 1, reduce: 7, arg: 2, top_k: 2,
    cumulate: 2, softmax: 4, normalise: 5, resize: 3, sample: 1,
}  # fmt: skip
