"""Reductions by blocks: threads share the elements of a line, a tree in shared memory joins what they found.

A block of 256 threads takes several lines. Where the last dimension is kept, neighbouring threads take neighbouring
lines; where it is reduced, neighbouring elements of one line: reads are coalesced either way. Producers of the anchor
are computed where elements are read, its readers where results are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.ir.ops import OPS
from dlc.ir.serial import extent_text
from dlc.targets.gpu.kernels.elementwise import extreme, wrap
from dlc.targets.gpu.kernels.evaluate import Evaluator, Index, unsupported
from dlc.targets.gpu.kernels.gather import before
from dlc.targets.gpu.kernels.injective import INJECTIVE
from dlc.targets.gpu.source import GridAxis, Kernel, Writer, c_type, literal

THREADS = 256
_COLUMNS = 32  # lines that neighbouring threads take where the last dimension is kept
_SIMPLE = ("sum", "mean", "max", "min", "prod")
_NORMALISE = ("nn.softmax", "nn.log_softmax", "nn.layer_norm")
Combine = Callable[[str, str], str]


def anchor_of(body: Graph) -> Node:
    """The reduction of a region."""
    return next(n for n in body.nodes if OPS[n.op].kind == "reduction")


def axes_of(node: Node, rank: int) -> list[int]:
    """The reduced axes, sorted."""
    axes = node.attrs["axes"] if "axes" in node.attrs else [node.attrs["axis"]]
    return sorted(int(a) % rank for a in axes)


def declines(body: Graph) -> str | None:
    """Why the region cannot be generated here; None when it can."""
    node = anchor_of(body)
    name, dtype = node.op.removeprefix("relax."), body.values()[node.inputs[0]].dtype
    if name in (*_NORMALISE, "mean") and not dtype.startswith("float"):
        return f"{name} of {dtype}"
    if name in _SIMPLE and dtype == "bool":
        return f"{name} of bool"
    return unsupported(body, INJECTIVE, node.output.name)


class _Lines:
    """How a block's threads share lines and elements, and what they write."""

    def __init__(self, body: Graph) -> None:
        self.body, self.node = body, anchor_of(body)
        output = body.values()[body.outputs[0]]
        self.w = Writer(output.name, output.dtype)
        self.ev = Evaluator(self.w, body, INJECTIVE)
        self.source = self.ev.values[self.node.inputs[0]]
        rank = len(self.source.shape)
        self.axes = axes_of(self.node, rank)
        self.kept = [a for a in range(rank) if a not in self.axes]
        self.reduced_shape = [self.source.shape[a] for a in self.axes]
        self.kept_shape = [self.source.shape[a] for a in self.kept]
        self.columns = rank - 1 in self.kept
        self.share, self.lines = self._geometry()

    def _geometry(self) -> tuple[int, int]:
        """(threads that share a line, lines of a block)."""
        count = prod(self.reduced_shape) if all(isinstance(d, int) for d in self.reduced_shape) else THREADS
        share = min(THREADS, 1 << max(0, int(count) - 1).bit_length())
        share = min(share, THREADS // _COLUMNS) if self.columns else share
        return share, THREADS // share

    def begin(self) -> None:
        """Name the thread's line and its share of it."""
        w = self.w
        fast, slow = (self.lines, self.share) if self.columns else (self.share, self.lines)
        w.line(f"const int fast = THREAD % {fast}, slow = THREAD / {fast};")
        line, share = ("fast", "slow") if self.columns else ("slow", "fast")
        assert fast * slow == THREADS
        w.line(f"const int lane = {share}, own = {line};")
        w.line(f"const int line = BLOCK(0) * {self.lines} + own;")
        self.count = w.let("int", " * ".join(self.ev.extents(self.kept_shape)) or "1", "n")
        self.length = w.let("int", " * ".join(self.ev.extents(self.reduced_shape)) or "1", "n")
        self.line_index = self.ev.unflatten("line", self.kept_shape)

    @contextmanager
    def elements(self) -> Iterator[tuple[Index, str]]:
        """A loop over the thread's elements of its line: (index in the anchor's input, position in the line)."""
        r = self.w.fresh("r")
        with (
            self.ev.block(f"if (line < {self.count})"),
            self.ev.block(f"for (int {r} = lane; {r} < {self.length}; {r} += {self.share})"),
        ):
            index = [""] * len(self.source.shape)
            for axis, component in zip(self.kept, self.line_index, strict=True):
                index[axis] = component
            for axis, component in zip(self.axes, self.ev.unflatten(r, self.reduced_shape), strict=True):
                index[axis] = component
            yield tuple(index), r

    def tree(self, arrays: Sequence[str], combine: Callable[[str, str], None]) -> None:
        """Join the shares of a line in shared memory: ``combine(to, from)`` writes one step between two places."""
        self.w.line("BARRIER();")
        step = self.share // 2
        while step:
            with self.ev.block(f"if (lane < {step})"):
                combine("[lane][own]", f"[lane + {step}][own]")
            self.w.line("BARRIER();")
            step //= 2

    def total(self, start: str, dtype: str, term: Callable[[Index], str], combine: Combine) -> str:
        """Reduce ``term(index)`` over the line; every thread of the line gets the name of the result."""
        kind, acc, array = c_type(dtype), self.w.fresh("acc"), self.w.fresh("shared")
        self.w.shared_array(array, dtype, (self.share, self.lines))
        self.w.line(f"{kind} {acc} = {start};")
        with self.elements() as (index, _):
            element = self.w.let(kind, term(index))
            self.w.line(f"{acc} = {combine(acc, element)};")
        self.w.line(f"{array}[lane][own] = {acc};")

        def join(to: str, source: str) -> None:
            a, b = self.w.let(kind, array + to), self.w.let(kind, array + source)
            self.w.line(f"{array}{to} = {combine(a, b)};")

        self.tree([array], join)
        return self.w.let(kind, f"{array}[0][own]")

    def finish(self, kind: str) -> Kernel:
        """The kernel."""
        grid = GridAxis(tuple(extent_text(d) for d in self.kept_shape), self.lines)
        tile = f"{self.lines} lines, {self.share} threads each"
        return self.w.finish([grid], THREADS, kind=kind, tile=tile)

    def store(self, index: Index, value: str) -> None:
        """Write the output at `index`, where the anchor's value is `value`."""
        shape = self.node.output.shape
        index = self.ev.broadcast(shape, index)
        self.ev.bind(self.node.output.name, index, self.w.let(c_type(self.node.output.dtype), value))
        result = self.ev.at(self.body.outputs[0], index)
        self.w.line(f"out[{self.ev.flat(index, shape)}] = {result};")


def _combine(name: str, dtype: str) -> tuple[str, Combine]:
    """(neutral value, combination) of a simple reduction."""
    floating = dtype.startswith("float")
    if name in ("max", "min"):
        info = None if floating else np.iinfo(dtype)
        end = (-np.inf if name == "max" else np.inf) if info is None else (info.min if name == "max" else info.max)
        return literal(end, dtype), lambda a, b: extreme(dtype, ">" if name == "max" else "<", a, b)
    operator, neutral = ("*", 1) if name == "prod" else ("+", 0)
    if floating:
        return literal(neutral, dtype), lambda a, b: f"{a} {operator} {b}"
    return literal(neutral, dtype), lambda a, b: wrap(dtype, lambda x, y: f"{x} {operator} {y}", a, b)


def _simple(lines: _Lines, name: str) -> None:
    dtype = lines.source.dtype
    neutral, combine = _combine(name, dtype)
    result = lines.total(neutral, dtype, lambda index: lines.ev.at(lines.source.name, index), combine)
    if name == "mean":
        result = f"{result} / ({c_type(dtype)}){lines.length}"
    with lines.ev.block(f"if (lane == 0 && line < {lines.count})"):
        lines.store(_output_index(lines), result)


def _output_index(lines: _Lines) -> Index:
    """The line's index in the anchor's output, with or without the reduced dimensions."""
    if not lines.node.attrs["keepdims"]:
        return lines.line_index
    index = ["0"] * len(lines.source.shape)
    for axis, component in zip(lines.kept, lines.line_index, strict=True):
        index[axis] = component
    return tuple(index)


def _arg(lines: _Lines, name: str) -> None:
    """Position of the largest or smallest element: the first of equal ones, and a NaN before all."""
    w, ev, dtype = lines.w, lines.ev, lines.source.dtype
    comparison, kind = (">" if name == "argmax" else "<"), c_type(dtype)
    w.shared_array("best", dtype, (lines.share, lines.lines))
    w.shared_array("place", "int32", (lines.share, lines.lines))
    w.line(f"{kind} value = 0;")
    w.line("int position = -1;")  # no element yet
    with lines.elements() as (index, r):
        element = ev.at(lines.source.name, index)
        with ev.block(f"if (position < 0 || {before(dtype, element, r, 'value', 'position', comparison, True)})"):
            w.line(f"value = {element};")
            w.line(f"position = {r};")
    w.line("best[lane][own] = value;")
    w.line("place[lane][own] = position;")

    def join(to: str, source: str) -> None:
        a, i = w.let(kind, f"best{to}"), w.let("int", f"place{to}")
        b, j = w.let(kind, f"best{source}"), w.let("int", f"place{source}")
        with ev.block(f"if ({j} >= 0 && ({i} < 0 || {before(dtype, b, j, a, i, comparison, True)}))"):
            w.line(f"best{to} = {b};")
            w.line(f"place{to} = {j};")

    lines.tree(["best", "place"], join)
    with ev.block(f"if (lane == 0 && line < {lines.count})"):
        lines.store(_output_index(lines), "place[0][own]")


def _softmax(lines: _Lines, logarithm: bool) -> None:
    w, ev, dtype = lines.w, lines.ev, lines.source.dtype

    def element(index: Index) -> str:
        return ev.at(lines.source.name, index)

    low, larger = _combine("max", dtype)
    top = lines.total(low, dtype, element, larger)
    zero, plus = _combine("sum", dtype)
    total = lines.total(zero, dtype, lambda index: f"exp({element(index)} - {top})", plus)
    scale = w.let(c_type(dtype), f"log({total})" if logarithm else total)
    with lines.elements() as (index, _):
        x = element(index)
        lines.store(index, f"{x} - {top} - {scale}" if logarithm else f"exp({x} - {top}) / {scale}")


def _layer_norm(lines: _Lines) -> None:
    w, ev, dtype = lines.w, lines.ev, lines.source.dtype
    kind = c_type(dtype)
    zero, plus = _combine("sum", dtype)

    def element(index: Index) -> str:
        return ev.at(lines.source.name, index)

    total = lines.total(zero, dtype, element, plus)
    mean = w.let(kind, f"{total} / ({kind}){lines.length}")

    def square(index: Index) -> str:
        centred = w.let(kind, f"{element(index)} - {mean}")
        return f"{centred} * {centred}"

    squares = lines.total(zero, dtype, square, plus)
    epsilon = literal(lines.node.attrs["epsilon"], dtype)
    deviation = w.let(kind, f"sqrt({squares} / ({kind}){lines.length} + {epsilon})")
    _, gamma, beta = lines.node.inputs
    with lines.elements() as (index, _):
        g, b = (ev.at(n, ev.broadcast(ev.values[n].shape, index)) for n in (gamma, beta))
        lines.store(index, f"({element(index)} - {mean}) / {deviation} * {g} + {b}")


def emit(body: Graph) -> Kernel:
    """The kernel of a region with a reduction."""
    lines = _Lines(body)
    lines.begin()
    name = lines.node.op.removeprefix("relax.")
    if name in ("argmax", "argmin"):
        _arg(lines, name)
    elif name == "nn.layer_norm":
        _layer_norm(lines)
    elif name in ("nn.softmax", "nn.log_softmax"):
        _softmax(lines, name == "nn.log_softmax")
    else:
        _simple(lines, name)
    return lines.finish("block reduction")
