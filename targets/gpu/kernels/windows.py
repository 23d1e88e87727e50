"""Pools, and convolutions with few channels a group: loops over one output's window, written in place.

Channels are last, so that neighbouring threads read neighbouring addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from dlc.ir.graph import Node
from dlc.ir.ops.windows import CHANNELS_LAST
from dlc.targets.gpu.kernels.elementwise import extreme, wrap
from dlc.targets.gpu.kernels.evaluate import Evaluator, Follow, Index, add, multiply
from dlc.targets.gpu.source import c_type, literal


def declines(node: Node) -> str | None:
    """Why a window cannot be written here; None when it can."""
    return None if node.attrs["layout"] == CHANNELS_LAST else "channels are not the last dimension"


@contextmanager
def taps(
    ev: Evaluator, attrs: Mapping[str, Any], kernel: Sequence[int], extents: Sequence[str], places: Sequence[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Loops over a window's positions that lie in the tensor; gives (places in the tensor, places in the window)."""
    where, inside = [], []
    with ExitStack() as scopes:
        for axis in range(len(kernel)):
            origin = f"{multiply(places[axis], str(attrs['strides'][axis]))} - {attrs['pads'][axis]}"
            start = ev.w.let("int", origin, "o")
            step = ev.w.fresh("k")
            scopes.enter_context(ev.block(f"for (int {step} = 0; {step} < {kernel[axis]}; ++{step})"))
            place = ev.w.let("int", add(start, multiply(step, str(attrs["dilations"][axis]))), "p")
            ev.w.line(f"if ((u32){place} >= (u32){extents[axis]}) continue;")
            where.append(place)
            inside.append(step)
        yield where, inside


def _count(ev: Evaluator, attrs: Mapping[str, Any], extents: Sequence[str], places: Sequence[str]) -> str:
    """How many positions an average counts, an int: those in the tensor, or with the padding."""
    rank, pads = len(extents), attrs["pads"]
    padded = bool(attrs.get("count_include_pad"))
    total = ev.w.fresh("count")
    ev.w.line(f"int {total} = 1;")
    for axis in range(rank):
        kernel, dilation = attrs["kernel"][axis], attrs["dilations"][axis]
        start = ev.w.let("int", f"{multiply(places[axis], str(attrs['strides'][axis]))} - {pads[axis]}", "o")
        low, high = (f"-{pads[axis]}", f"{extents[axis]} + {pads[rank + axis]}") if padded else ("0", extents[axis])
        step, number = ev.w.fresh("k"), ev.w.fresh("n")
        ev.w.line(f"int {number} = 0;")
        with ev.block(f"for (int {step} = 0; {step} < {kernel}; ++{step})"):
            place = ev.w.let("int", f"{start} + {step} * {dilation}", "p")
            ev.w.line(f"{number} += {place} >= {low} && {place} < {high};")
        ev.w.line(f"{total} *= {number};")
    return total


def _lowest(dtype: str) -> str:
    return literal(-np.inf if dtype.startswith("float") else np.iinfo(dtype).min, dtype)


def pool(ev: Evaluator, node: Node, index: Index) -> str:
    """Maximum, average or sum over a window; padding never wins and adds nothing."""
    (x,), attrs = node.inputs, node.attrs
    value, mode = ev.values[x], attrs["mode"]
    extents, places = ev.extents(value.shape[1:-1]), index[1:-1]
    dtype = value.dtype if mode == "max" or value.dtype.startswith("float") else "int32"
    result = ev.w.fresh("acc")
    ev.w.line(f"{c_type(dtype)} {result} = {_lowest(dtype) if mode == 'max' else literal(0, dtype)};")
    with taps(ev, attrs, attrs["kernel"], extents, places) as (where, _):
        element = ev.at(x, (index[0], *where, index[-1]))
        if mode == "max":
            ev.w.line(f"{result} = {extreme(dtype, '>', element, result)};")
        elif dtype == "int32":
            zero = int(attrs.get("x_zero_point", 0))
            ev.w.line(f"{result} = {wrap('int32', lambda a, b: f'{a} + {b} - {zero}u', result, element)};")
        else:
            ev.w.line(f"{result} += {element};")
    kind = c_type(node.output.dtype)
    if mode != "average":
        return f"({kind}){result}"
    count = _count(ev, attrs, extents, places)
    wide = dtype if dtype != "int32" else "float64"  # numpy divides int32 by float32 in float64
    return f"({kind})(({c_type(wide)}){result} / ({c_type(wide)}){count})"


def conv(ev: Evaluator, node: Node, index: Index) -> str:
    """A convolution, one output at a time: for groups that are too narrow to share their reads."""
    (x, w), attrs = node.inputs, node.attrs
    a, b = ev.values[x], ev.values[w]
    groups = attrs["groups"]
    per_group, depth = int(b.shape[0]) // groups, int(b.shape[1])
    dtype = a.dtype if a.dtype.startswith("float") else "int32"
    zero = int(attrs.get("x_zero_point", 0))
    group = ev.w.let("int", index[-1] if per_group == 1 else f"{index[-1]} / {per_group}", "g")
    result, channel = ev.w.fresh("acc"), ev.w.fresh("c")
    ev.w.line(f"{c_type(dtype)} {result} = {literal(0, dtype)};")
    with (
        taps(ev, attrs, [int(k) for k in b.shape[2:]], ev.extents(a.shape[1:-1]), index[1:-1]) as (where, inside),
        ev.block(f"for (int {channel} = 0; {channel} < {depth}; ++{channel})"),
    ):
        source = channel if groups == 1 else add(multiply(group, str(depth)), channel) if depth > 1 else group
        source = ev.w.let("int", source, "i")
        element = ev.at(x, (index[0], *where, source))
        weight = ev.at(w, (index[-1], channel, *inside))
        if dtype == "int32":
            term = f"(u32)(((i32){element} - {zero}) * (i32){weight})"
            ev.w.line(f"{result} = (i32)((u32){result} + {term});")
        else:
            ev.w.line(f"{result} = fma({element}, {weight}, {result});")
    return f"({c_type(node.output.dtype)}){result}"


WINDOWS: dict[str, Follow] = {"dlc.pool": pool, "dlc.conv": conv}
