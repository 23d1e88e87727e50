"""Random nodes that move, choose or repeat elements."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from tests.fuzz.graph import Graph, RejectedError, Value


def _axis(g: Graph, x: Value) -> int:
    """An axis, at times counted from the back."""
    axis = g.between(0, x.rank - 1)
    return axis - x.rank if g.chance(0.3) else axis


def _ranked(g: Graph, low: int = 1, high: int = 9) -> Value:
    return g.pick(lambda v: low <= v.rank <= high)


def transpose(g: Graph) -> None:
    x = _ranked(g, 0)
    g.add("Transpose", [x], perm=[int(i) for i in g.rng.permutation(x.rank)] if x.rank and g.chance(0.85) else None)


def reshape(g: Graph) -> None:
    """Reshape by constants, with 0 and -1, or by what Shape gives."""
    x = _ranked(g, 0)
    shape = _factors(g, x.array.size) if x.array.size else list(x.shape)
    if x.array.size and shape and g.chance(0.5):
        shape[g.between(0, len(shape) - 1)] = -1
    for i in range(min(len(shape), x.rank)):
        if shape[i] == x.shape[i] and g.chance(0.4):
            shape[i] = 0
    if g.chance(0.25) and x.rank:  # the extents are computed
        known = g.add("Shape", [x])[0]
        first = g.add("Gather", [known, g.constant([0])], axis=0)[0]
        wanted = g.add("Concat", [first, g.constant([-1])], axis=0)[0]
        g.add("Reshape", [x, wanted])
        return
    g.add("Reshape", [x, g.param(np.array(shape, np.int64))])


def _factors(g: Graph, size: int) -> list[int]:
    shape = []
    while size > 1 and len(shape) < 4:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        shape.append(int(g.one_of(divisors)))
        size //= shape[-1]
    return [*shape, size] if size > 1 or g.chance(0.3) else shape


def flatten(g: Graph) -> None:
    x = _ranked(g, 0)
    g.add("Flatten", [x], axis=g.between(-x.rank if g.opset >= 11 else 0, x.rank))


def squeeze(g: Graph) -> None:
    if g.chance(0.5):
        x = g.pick(lambda v: 1 in v.shape)
        ones = [i for i, e in enumerate(x.shape) if e == 1]
        axes = [i for i in ones if g.chance(0.6)] or ones
        op = "Squeeze"
    else:
        x, op = _ranked(g, 0, 4), "Unsqueeze"
        count = g.between(1, 2)
        axes = sorted(int(i) for i in g.rng.choice(x.rank + count, count, replace=False))
    if g.opset >= 13:
        g.add(op, [x, g.param(axes)])
    else:
        g.add(op, [x], axes=axes)


def slice_(g: Graph) -> None:
    """Slice with any sign of starts, ends and steps."""
    x = _ranked(g)
    axes = [i for i in range(x.rank) if g.chance(0.5)] or [0]
    starts, ends, steps = [], [], []
    for axis in axes:
        extent = x.shape[axis]
        step = int(g.one_of([1, 1, 1, 2, 3, -1, -2])) if g.opset >= 10 else 1
        low, high = sorted((g.between(0, extent), g.between(0, extent)))
        if g.chance(0.2):
            high = int(g.one_of([2**31 - 1, 2**63 - 1, extent + 3]))
        if step < 0:
            low, high = (extent - 1 if g.chance(0.5) else -1), int(g.one_of([-(2**31), -extent - 1, 0]))
        elif g.chance(0.3) and low > 0:
            low -= extent
            low = min(low, -1) if low < 0 else low
        starts.append(low)
        ends.append(high)
        steps.append(step)
    if g.opset < 10:
        g.add("Slice", [x], starts=starts, ends=ends, axes=axes)
        return
    parts = [g.param(starts), g.param(ends), g.param([a - x.rank if g.chance(0.2) else a for a in axes])]
    g.add("Slice", [x, *parts, *([g.param(steps)] if any(s != 1 for s in steps) or g.chance(0.3) else [])])


def gather(g: Graph) -> None:
    x = _ranked(g)
    kind = g.one_of(["Gather", "Gather", "GatherElements", "GatherND"])
    axis = _axis(g, x)
    extent = x.shape[axis]
    least = -extent if g.opset >= 11 and g.chance(0.4) else 0
    if not x.array.size:
        raise RejectedError
    if kind == "Gather":
        indices = g.rng.integers(least, extent, g.shape(0, 2))
    elif kind == "GatherElements":
        shape = [g.between(1, e) for e in x.shape]
        shape[axis] = g.between(1, 6)
        indices = g.rng.integers(least, extent, shape)
    else:
        depth, batch = g.between(1, x.rank), 0
        if depth < x.rank and g.opset >= 12 and g.chance(0.4):
            batch = 1
        limits = np.array(x.shape[batch : batch + depth])[: x.rank - batch]
        lead = [*x.shape[:batch], *g.shape(0, 2)]
        indices = np.stack([g.rng.integers(0, m, lead) for m in limits], -1)
        where = g.constant(indices, "int64") if g.chance(0.6) else g.input(indices.astype(np.int64), fixed=True)
        g.add(kind, [x, where], batch_dims=batch if batch else None)
        return
    dtype = g.one_of(["int64", "int64", "int32"])
    at = g.constant(indices, dtype) if g.chance(0.6) else g.input(indices.astype(dtype), fixed=True)
    g.add(kind, [x, at], axis=axis)


def scatter(g: Graph) -> None:
    """ScatterElements or ScatterND, without an index twice unless they are reduced."""
    x = _ranked(g)
    if not x.array.size:
        raise RejectedError
    reduction = g.one_of(["add", "mul", "max", "min"]) if g.opset >= 18 and g.chance(0.3) else None
    if g.chance(0.5):
        axis = g.between(0, x.rank - 1)
        shape = [g.between(1, e) for e in x.shape]
        order = np.argsort(g.rng.random([*shape[:axis], x.shape[axis], *shape[axis + 1 :]]), axis=axis)
        indices = np.take(order, range(shape[axis]), axis=axis)
        g.add("ScatterElements", [x, g.param(indices), g.operand(x.dtype, shape)], axis=axis, reduction=reduction)
        return
    depth = g.between(1, x.rank)
    places = np.array(list(np.ndindex(*x.shape[:depth])))
    count = g.between(1, min(5, len(places)))
    indices = places[g.rng.choice(len(places), count, replace=False)]
    updates = g.operand(x.dtype, (count, *x.shape[depth:]))
    g.add("ScatterND", [x, g.param(indices), updates], reduction=reduction)


def concat(g: Graph) -> None:
    x = _ranked(g)
    axis = _axis(g, x)
    inputs = [x]
    for _ in range(g.between(0, 3)):
        fitting = [v for v in g.seen() if v.dtype == x.dtype and v.rank == x.rank]
        fitting = [v for v in fitting if np.delete(v.shape, axis).tolist() == np.delete(x.shape, axis).tolist()]
        if fitting and g.chance(0.5):
            inputs.append(g.recent(fitting))
        else:
            shape = list(x.shape)
            shape[axis] = g.between(0 if g.chance(0.1) else 1, 5)
            inputs.append(g.operand(x.dtype, shape))
    g.add("Concat", [inputs[int(i)] for i in g.rng.permutation(len(inputs))], axis=axis)


def split(g: Graph) -> None:
    x = _ranked(g)
    axis = _axis(g, x)
    extent, parts = x.shape[axis], g.between(1, 4)
    if g.opset >= 18 and g.chance(0.3) and extent >= parts:
        g.add("Split", [x], parts, axis=axis, num_outputs=parts)
        return
    cuts = sorted(g.between(0, extent) for _ in range(parts - 1))
    sizes = np.diff([0, *cuts, extent]).tolist()
    if extent % parts == 0 and g.chance(0.4):
        g.add("Split", [x], parts, axis=axis, num_outputs=parts if g.opset >= 18 else None)
    elif g.opset >= 13:
        g.add("Split", [x, g.param(sizes)], parts, axis=axis)
    else:
        g.add("Split", [x], parts, axis=axis, split=sizes)


def pad(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 1 and (v.dtype.startswith("float") or g.opset >= 13))
    mode = g.one_of(["constant", "constant", "edge", "reflect", *(["wrap"] if g.opset >= 19 else [])])
    limit = [max(0, e - 1) if mode != "constant" else 3 for e in x.shape]
    pads = [g.between(0, min(m, 3)) if g.chance(0.6) else 0 for m in (*limit, *limit)]
    if mode == "constant" and g.chance(0.2):
        pads = [-min(p, 1) if e > 2 and g.chance(0.5) else p for p, e in zip(pads, (*x.shape, *x.shape), strict=True)]
    if g.opset < 11:
        g.add("Pad", [x], pads=pads, mode=mode, value=g.one_of([None, 1.5]))
        return
    value = g.param(g.one_of([0, 1, 3]), x.dtype) if mode == "constant" and g.chance(0.5) else None
    inputs = [x, g.param(pads), value]
    if g.opset >= 18 and g.chance(0.3):
        axes = [int(i) for i in g.rng.permutation(x.rank)[: g.between(1, x.rank)]]
        chosen = [pads[a] for a in axes] + [pads[a + x.rank] for a in axes]
        inputs = [x, g.param(chosen), value, g.param(axes)]
    while inputs[-1] is None:
        inputs.pop()
    g.add("Pad", inputs, mode=mode)


def tile(g: Graph) -> None:
    x = _ranked(g)
    g.add("Tile", [x, g.param([int(g.one_of([1, 1, 1, 2, 3])) for _ in x.shape])])


def expand(g: Graph) -> None:
    x = _ranked(g, 0)
    shape = [g.extent() if e == 1 and g.chance(0.6) else (1 if g.chance(0.3) else e) for e in x.shape]
    shape = [g.between(1, 3)] * g.between(0, 1) + shape[g.between(0, 1) if len(shape) > 1 else 0 :]
    g.add("Expand", [x, g.param(shape)])


def blocks(g: Graph) -> None:
    """DepthToSpace and SpaceToDepth."""
    if g.chance(0.5):
        x = g.pick(lambda v: v.rank == 4 and v.shape[1] % 4 == 0 and v.dtype.startswith("float"))
        g.add("DepthToSpace", [x], blocksize=2, mode=g.one_of([None, "DCR", "CRD"]) if g.opset >= 11 else None)
    else:
        x = g.pick(lambda v: v.rank == 4 and v.shape[2] % 2 == v.shape[3] % 2 == 0 and v.dtype.startswith("float"))
        g.add("SpaceToDepth", [x], blocksize=2)


def triangle(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2)
    inputs = [x, g.param(g.between(-2, 2))] if g.chance(0.5) else [x]
    g.add("Trilu", inputs, upper=g.one_of([None, 0, 1]))


def shapes(g: Graph) -> None:
    """Extents as values, and tensors made from extents."""
    x = _ranked(g)
    known = g.add("Shape", [x], start=g.one_of([None, 0, 1, -1]) if g.opset >= 15 else None)[0]
    kind = g.one_of(["fill", "range", "size", "eye", "plain"])
    if kind == "fill":
        value = numpy_helper.from_array(g.random(g.one_of(["float32", "int64", "float16", "int32", "bool"]), (1,)))
        g.add("ConstantOfShape", [known], value=value)
    elif kind == "range":
        count = g.add("ReduceProd", [known], keepdims=0)[0]
        g.add("Range", [g.constant(0, "int64"), count, g.constant(g.between(1, 3), "int64")])
    elif kind == "size":
        g.add("Size", [x])
    elif kind == "eye":
        x = g.pick(lambda v: v.rank == 2)
        g.add("EyeLike", [x], k=g.one_of([None, 1, -1]), dtype=int(g.one_of([1, 7])))


def reverse(g: Graph) -> None:
    x = g.pick(lambda v: v.rank >= 2 and v.array.size > 0)
    time = g.between(0, 1)
    lengths = g.rng.integers(1, x.shape[time] + 1, x.shape[1 - time])
    g.add("ReverseSequence", [x, g.param(lengths)], time_axis=time, batch_axis=1 - time)


def one_hot(g: Graph) -> None:
    depth = g.between(2, 6)
    indices = g.rng.integers(-depth, depth, g.shape(0, 2))
    where = g.constant(indices, "int64") if g.chance(0.5) else g.input(indices)
    dtype = g.one_of(["float32", "int64"])
    g.add("OneHot", [where, g.constant(depth, "int64"), g.constant([0, 2], dtype)], axis=g.one_of([None, 0, -1]))


def select(g: Graph) -> None:
    """Results whose extents depend on the data."""
    x = _ranked(g)
    if g.chance(0.4):
        g.add("NonZero", [x])
    else:
        axis = g.between(0, x.rank - 1)
        keep = g.random("bool", (x.shape[axis],))
        mask = g.constant(keep) if g.chance(0.5) else g.input(keep)
        g.add("Compress", [x, mask], axis=axis)


def bits(g: Graph) -> None:
    x = g.pick(lambda v: v.dtype in ("float32", "int32", "uint32"))
    g.add("BitCast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(g.one_of(["int32", "uint32"]))))


GENERATORS = {
    transpose: 6, reshape: 6, flatten: 1, squeeze: 4, slice_: 6, gather: 5, scatter: 2, concat: 4, split: 3, pad: 4,
    tile: 2, expand: 3, blocks: 1, triangle: 1, shapes: 4, reverse: 1, one_hot: 1, select: 1, bits: 1,
}  # fmt: skip
