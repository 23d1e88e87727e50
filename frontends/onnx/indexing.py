"""Gather, scatter, one-hot, triangles and other operators whose result is picked by position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor

_LONGEST_RANGE = 1 << 24  # of a constant range
_FURTHEST = 1 << 60  # where a range may begin or end: differences stay within 64 bits


def count_up(c: Context, extent: Dim, dtype: str = "int64") -> Tensor:
    """0, 1, ... extent - 1."""
    if isinstance(extent, int) and extent <= _LONGEST_RANGE:
        return c.constant(np.arange(extent).astype(dtype))
    return c.emit("dlc.positions", shape=(extent,), dtype=dtype)


@converter("Range", since=11)
def range_(c: Context, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... below limit; symbolic limits with a constant positive step."""
    if all(t.value is not None for t in (start, limit, delta)):
        first, last, step = (np.asarray(t.value).reshape(-1)[0] for t in (start, limit, delta))
        if not step or (float(last) - float(first)) / float(step) > _LONGEST_RANGE:
            raise ConversionError(f"a range from {first} to {last} in steps of {step}")
        count = max(int(np.ceil((last - first) / step)), 0)
        return c.constant((first + np.arange(count) * step).astype(start.dtype))
    (begin,), (end,) = c.dims(start, "the start of Range"), c.dims(limit, "the limit of Range")
    (step,) = c.ints(delta, "the step of Range")
    if step < 1:
        raise ConversionError(f"a step of {step} needs limits that are known when compiling")
    for bound in (begin, end):
        if isinstance(bound, int) and abs(bound) > _FURTHEST:
            raise ConversionError(f"a range from {begin} to {end}")
    positions = count_up(c, c.symbols.simplify((end - begin + step - 1) // step), start.dtype)
    scaled = positions if step == 1 else c.emit("multiply", positions, step)
    if isinstance(begin, int) and begin == 0:
        return scaled
    return c.emit("add", scaled, c.cast(c.reshape(c.extents([begin]), ()), start.dtype))


@converter("Gather")
def gather(c: Context, x: Tensor, indices: Tensor) -> Tensor:
    """Slices along an axis by position; negative positions count from the end."""
    return c.emit("take", x, indices, axis=c.axis(c.attr("axis", 0), x.rank))


@converter("GatherElements", since=11)
def gather_elements(c: Context, x: Tensor, indices: Tensor) -> Tensor:
    """One element a position."""
    return c.emit("gather_elements", x, indices, axis=c.axis(c.attr("axis", 0), x.rank))


def _from_front(c: Context, indices: Tensor, extents: Sequence[Dim]) -> Tensor:
    """Positions with the negative ones counted from the end; one extent a column."""
    limits = c.cast(c.extents(extents), indices.dtype)
    return c.emit("where", c.emit("less", indices, 0), c.emit("add", indices, limits), indices)


def _linear(c: Context, indices: Tensor, extents: Sequence[Dim]) -> Tensor:
    """Rows of coordinates (last dimension) as positions in the flattened tensor of these extents."""
    steps = [c.symbols.product(extents[i + 1 :]) for i in range(len(extents))]
    places = _from_front(c, c.cast(indices, "int64"), extents)
    return c.reduce("sum", c.emit("multiply", places, c.extents(steps)), (indices.rank - 1,), keepdims=False)


@converter("GatherND", since=11)
def gather_nd(c: Context, x: Tensor, indices: Tensor) -> Tensor:
    """Coordinates in the last dimension of indices: flattened, then one take."""
    batch, depth = c.attr("batch_dims", 0), indices.shape[-1]
    fits = 0 <= batch < min(x.rank, indices.rank) and isinstance(depth, int) and 1 <= depth <= x.rank - batch
    if not fits:
        raise ConversionError(f"indices {indices} with batch_dims {batch} do not fit {x}")
    lead, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
    places = _linear(c, indices, lead)
    if batch:
        # Each batch has its own part of the flattened tensor.
        count, size = c.symbols.product(x.shape[:batch]), c.symbols.product(lead)
        starts = c.emit("multiply", count_up(c, count), c.reshape(c.extents([size]), ()))
        starts = c.reshape(starts, (*x.shape[:batch], *[1] * (places.rank - batch)))
        places = c.emit("add", places, starts)
    flat = c.reshape(x, (c.symbols.product((*x.shape[:batch], *lead)), *rest))
    return c.emit("take", flat, places, axis=0)


def _scatter_rows(c: Context, data: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    reduction = c.attr("reduction", "none")
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise ConversionError(f"attribute 'reduction' is '{reduction}'")
    return c.emit("dlc.scatter_rows", data, places, updates, reduction=reduction)


@converter("ScatterND", since=11)
def scatter_nd(c: Context, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Slices written at coordinates."""
    depth = indices.shape[-1]
    if not isinstance(depth, int) or depth > x.rank:
        raise ConversionError(f"indices {indices} do not fit {x}")
    lead, rest = x.shape[:depth], x.shape[depth:]
    places = _linear(c, indices, lead)
    count = c.symbols.product(places.shape)
    flat = c.reshape(x, (c.symbols.product(lead), *rest))
    rows = _scatter_rows(c, flat, c.reshape(places, (count,)), c.reshape(updates, (count, *rest)))
    return c.reshape(rows, x.shape)


def _step(c: Context, x: Tensor, axis: int) -> Tensor:
    """How far apart neighbours along an axis are in the flattened tensor; a scalar."""
    return c.reshape(c.extents([c.symbols.product(x.shape[axis + 1 :])]), ())


@converter("Scatter", since=9)
@converter("ScatterElements", since=11)
def scatter_elements(c: Context, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Elements written at positions along an axis: everything flattened."""
    axis = c.axis(c.attr("axis", 0), x.rank)
    if indices.rank != x.rank:
        raise ConversionError(f"indices {indices} do not fit {x}")
    places = c.emit("multiply", _from_front(c, c.cast(indices, "int64"), [x.shape[axis]]), _step(c, x, axis))
    for i in range(x.rank):
        if i != axis:
            column = [indices.shape[i] if j == i else 1 for j in range(x.rank)]
            offsets = c.emit("multiply", c.reshape(count_up(c, indices.shape[i]), column), _step(c, x, i))
            places = c.emit("add", places, offsets)
    count = c.symbols.product(indices.shape)
    flat = c.reshape(x, (c.symbols.product(x.shape),))
    rows = _scatter_rows(c, flat, c.reshape(places, (count,)), c.reshape(updates, (count,)))
    return c.reshape(rows, x.shape)


@converter("OneHot", since=9)
def one_hot(c: Context, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """A new dimension that is `on` at the index and `off` elsewhere."""
    rank = indices.rank + 1
    axis = c.axis(c.attr("axis", -1), rank)
    if depth.elements is not None:
        (extent,) = c.dims(depth, "the input 'depth'")
    else:
        extent = c.number(depth, "the input 'depth'")
        if not 1 <= extent < math.inf:
            raise ConversionError(f"a depth of {extent}")
        extent = int(extent)
    places = _from_front(c, c.cast(indices, "int64"), [extent])
    places = c.reshape(places, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    counting = c.reshape(count_up(c, extent), [extent if i == axis else 1 for i in range(rank)])
    off, on = (c.reshape(c.slice(values, 0, i, i + 1), ()) for i in range(2))
    return c.emit("where", c.emit("equal", places, counting), on, off)


@converter("Trilu", since=14)
def trilu(c: Context, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle; zero elsewhere."""
    if x.rank < 2:
        raise ConversionError(f"needs 2 dimensions or more, got {x}")
    shift = int(c.number(k, "the input 'k'")) if k is not None else 0
    rows = c.reshape(count_up(c, x.shape[-2]), (x.shape[-2], 1))
    columns = c.reshape(count_up(c, x.shape[-1]), (1, x.shape[-1]))
    op = "less_equal" if c.attr("upper", 1) else "greater_equal"
    return c.emit("where", c.emit(op, c.emit("add", rows, shift), columns), x, c.like(0, x))


@converter("EyeLike", since=9)
def eye_like(c: Context, x: Tensor) -> Tensor:
    """Ones on a diagonal of a matrix of x's shape."""
    if x.rank != 2:
        raise ConversionError(f"needs a matrix, got {x}")
    dtype = element_type(c.attr("dtype")) if c.attr("dtype") else x.dtype
    rows = c.reshape(count_up(c, x.shape[0]), (x.shape[0], 1))
    columns = c.reshape(count_up(c, x.shape[1]), (1, x.shape[1]))
    return c.cast(c.emit("equal", c.emit("add", rows, c.attr("k", 0)), columns), dtype)


@converter("NonZero", since=9)
def non_zero(c: Context, x: Tensor) -> Tensor:
    """The positions of a constant's elements that are not zero: (rank, how many), also of a scalar."""
    array = c.known(x, "the input, whose content decides the shape of the output,")
    return c.constant(np.array(np.nonzero(np.atleast_1d(array)))[: array.ndim])


@converter("Compress", since=9)
def compress(c: Context, x: Tensor, condition: Tensor) -> Tensor:
    """The slices that a constant condition picks."""
    places = np.flatnonzero(c.known(condition, "the condition, which decides the shape of the output,"))
    axis = c.attr("axis")
    if axis is None:
        x, axis = c.reshape(x, (c.symbols.product(x.shape),)), 0
    return c.emit("take", x, c.constant(places.astype(np.int64)), axis=c.axis(axis, x.rank))


@converter("ReverseSequence", since=10)
def reverse_sequence(c: Context, x: Tensor, lengths: Tensor) -> Tensor:
    """The first lengths[b] steps of batch b in reverse."""
    time, batch = c.attr("time_axis", 0), c.attr("batch_axis", 1)
    if {time, batch} != {0, 1} or x.rank < 2:
        raise ConversionError(f"time axis {time} and batch axis {batch} of {x}")
    c.equal(x.shape[batch], lengths.shape[0], "the batch and the number of lengths")
    return reversed_sequences(c, x, lengths, time, batch)


def reversed_sequences(c: Context, x: Tensor, lengths: Tensor, time: int = 0, batch: int = 1) -> Tensor:
    """The first lengths[b] steps of batch b in reverse, the rest as it is."""

    def along(t: Tensor, axis: int) -> Tensor:
        return c.reshape(t, [x.shape[i] if i == axis else 1 for i in range(x.rank)])

    steps, ends = along(count_up(c, x.shape[time]), time), along(c.cast(lengths, "int64"), batch)
    mirrored = c.emit("subtract", c.emit("subtract", ends, steps), 1)
    places = c.emit("where", c.emit("less", steps, ends), mirrored, steps)
    return c.emit("gather_elements", x, c.broadcast(places, x.shape), axis=time)
