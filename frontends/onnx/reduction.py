"""Reductions, ArgMax and ArgMin, running sums, TopK."""

from __future__ import annotations

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor

_PLAIN = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod"}
_NAMES = [*_PLAIN, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"]


def _reduce(c: Context, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    name = c.node.op_type
    if name in _PLAIN:
        if x.dtype == "bool":
            # Extremes of truth values are their conjunction and disjunction.
            return c.cast(c.reduce(_PLAIN[name], c.cast(x, "uint8"), axes, keepdims), "bool")
        return c.reduce(_PLAIN[name], x, axes, keepdims)
    if name == "ReduceL1":
        return c.reduce("sum", c.emit("abs", x), axes, keepdims)
    if name == "ReduceSumSquare":
        return c.reduce("sum", c.emit("multiply", x, x), axes, keepdims)
    if name == "ReduceL2":
        wide = x if x.is_float else c.cast(x, "float64")
        return c.cast(c.emit("sqrt", c.reduce("sum", c.emit("multiply", wide, wide), axes, keepdims)), x.dtype)
    wide = x if x.is_float else c.cast(x, "float64")
    if name == "ReduceLogSum":
        return c.cast(c.emit("log", c.reduce("sum", wide, axes, keepdims)), x.dtype)
    return c.cast(_log_sum_exp(c, wide, axes, keepdims), x.dtype)


def _log_sum_exp(c: Context, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
        return c.emit("log", c.reduce("sum", x, axes, keepdims))
    peak = c.reduce("max", x, axes)
    peak = c.emit("where", c.emit("isinf", peak), c.like(0, peak), peak)  # infinity minus infinity is no number
    total = c.reduce("sum", c.emit("exp", c.emit("subtract", x, peak)), axes)
    result = c.emit("add", c.emit("log", total), peak)
    return result if keepdims else c.reshape(result, [d for i, d in enumerate(result.shape) if i not in axes])


@converter(*_NAMES)
def reduce_attribute(c: Context, x: Tensor) -> Tensor:
    """Axes as an attribute (up to opset 17; ReduceSum up to 12)."""
    axes = tuple(c.axis(a, x.rank) for a in c.attr("axes") or range(x.rank))
    return _reduce(c, x, axes, bool(c.attr("keepdims", 1)))


def _reduce_input(c: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = c.ints(axes, "the input 'axes'") if axes is not None else ()
    if not given and c.attr("noop_with_empty_axes", 0):
        # Nothing is reduced, but what the operator does to each element still happens.
        return _reduce(c, x, (), True)
    return _reduce(c, x, tuple(c.axis(a, x.rank) for a in given) or tuple(range(x.rank)), bool(c.attr("keepdims", 1)))


converter("ReduceSum", since=13)(_reduce_input)
converter(*(n for n in _NAMES if n != "ReduceSum"), since=18)(_reduce_input)


@converter("ArgMax", "ArgMin")
def arg_extreme(c: Context, x: Tensor) -> Tensor:
    """The first, or with select_last_index the last, position of the extreme."""
    op = "argmax" if c.node.op_type == "ArgMax" else "argmin"
    axis, keepdims = c.axis(c.attr("axis", 0), x.rank), int(c.attr("keepdims", 1))
    if not c.attr("select_last_index", 0):
        return c.emit(op, x, axis=axis, keepdims=keepdims)
    extent = x.shape[axis]
    back = c.emit("strided_slice", x, axes=(axis,), begin=(extent - 1,), end=(-1,), strides=(-1,))
    found = c.emit(op, back, axis=axis, keepdims=keepdims)
    last = c.extents([extent - 1])
    return c.emit("subtract", c.reshape(last, ()), found)


@converter("CumSum", since=11)
@converter("CumProd", since=26)
def cumulative(c: Context, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums or products along an axis."""
    return c.emit(
        "dlc.cumulate",
        x,
        mode="sum" if c.node.op_type == "CumSum" else "prod",
        axis=c.axis(int(c.number(axis, "the input 'axis'")), x.rank),
        exclusive=int(c.attr("exclusive", 0)),
        reverse=int(c.attr("reverse", 0)),
    )


def _top_k(c: Context, x: Tensor, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    axis = c.axis(c.attr("axis", -1), x.rank)
    extent = x.shape[axis]
    if count < 0 or (isinstance(extent, int) and count > extent):
        raise ConversionError(f"k = {count} of {extent} elements")
    indices = c.emit("dlc.top_indices", x, axis=axis, k=count, largest=int(largest))
    return c.emit("gather_elements", x, indices, axis=axis), indices


@converter("TopK")
def top_k_attribute(c: Context, x: Tensor) -> tuple[Tensor, Tensor]:
    """Up to opset 9: k is an attribute."""
    return _top_k(c, x, c.require("k"), True)


@converter("TopK", since=10)
def top_k(c: Context, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest or smallest along an axis, sorted; ties in order of position."""
    return _top_k(c, x, int(c.number(k, "the input 'K'")), bool(c.attr("largest", 1)))
