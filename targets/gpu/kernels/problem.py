"""What a contraction multiplies: the two operands of an implicit GEMM, and how a block's threads fetch them.

A problem says which output dimensions are rows and which are batches, and writes two kinds of text: for each of a
thread's rows the position where its elements begin (`rows`), and the element of a row at a depth (`fetch`). With
``words`` an element is four bytes of activations, multiplied by four of weights (`dot4`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from dlc.ir.graph import Graph, Node
from dlc.targets.gpu.kernels.evaluate import Evaluator, Index, add, multiply
from dlc.targets.gpu.source import c_type

Constants = Mapping[str, np.ndarray]
_OUTSIDE = -(1 << 29)  # a place that is in no tensor: a row behind the last one


class Problem:
    """The common part.

    Attributes:
        rows, batch: output extents that rows and batches (groups) run over.
        n, k: output columns and depth, extents.
        words: whether four bytes are multiplied at once.
        zero, weight_zero: zero points of integer operands.
    """

    rows: Sequence[Any]
    batch: Sequence[Any]
    n: Any
    k: Any
    words = False
    zero = 0
    weight_zero = 0

    def __init__(self, body: Graph, node: Node, constants: Constants) -> None:
        self.body, self.node, self.constants = body, node, constants
        values = body.values()
        self.a, self.b = (values[name] for name in node.inputs)
        self.weight = constants.get(self.b.name)
        self.integer = not self.a.dtype.startswith("float")

    def _bytes(self) -> bool:
        """Whether the types are those of the byte product, with weights that can be packed."""
        return self.weight is not None and (self.a.dtype, self.b.dtype) == ("uint8", "int8") and not self.weight_zero

    @property
    def staged(self) -> str:
        """The type of elements in shared memory."""
        return "uint32" if self.words else "int32" if self.integer else self.a.dtype

    def correction(self) -> np.ndarray | None:
        """What is added to a word product's sum, by output channel: the activations' zero point times the weights."""
        if not self.words or not self.zero:
            return None
        assert self.weight is not None
        return np.ascontiguousarray(-self.zero * self.channel_sums(), dtype=np.int32)

    def channel_sums(self) -> np.ndarray:
        """Sums of the weights of each output channel, int64."""
        raise NotImplementedError

    def packed(self) -> np.ndarray | None:
        """The weights as (batch, k, n), or as words of four bytes along k; None for an activation."""
        raise NotImplementedError

    def begin(self, ev: Evaluator, batch: Index) -> None:
        """Write what all rows of a block share."""

    def row_arrays(self) -> list[str]:
        """Names of the int arrays that describe a thread's rows."""
        raise NotImplementedError

    def row(self, ev: Evaluator, index: Index, inside: str) -> list[str]:
        """Expressions of `row_arrays` for a row at `index`; `inside` says whether there is such a row."""
        raise NotImplementedError

    def depth(self, ev: Evaluator, k: str) -> Any:
        """Write what the elements of all rows at depth `k` share."""
        raise NotImplementedError

    def fetch(self, ev: Evaluator, shared: Any, slot: str) -> tuple[str, str]:
        """(condition, position) of the element of row `slot`."""
        raise NotImplementedError

    def output_index(self, batch: Index, row: Index, column: str) -> Index:
        """The anchor's index."""
        raise NotImplementedError


def words_of(matrix: np.ndarray) -> np.ndarray:
    """Bytes (batch, k, n) as words (batch, ceil(k / 4), n) of four along k, the last filled with zeros."""
    batch, k, n = matrix.shape
    padded = np.zeros((batch, -(-k // 4) * 4, n), np.int8)
    padded[:, :k] = matrix
    grouped = padded.reshape(batch, -1, 4, n).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(grouped).view(np.uint32)[..., 0]


class ConvProblem(Problem):
    """A channels-last convolution with constant weights: rows are output places, columns a group's channels."""

    def __init__(self, body: Graph, node: Node, constants: Constants) -> None:
        super().__init__(body, node, constants)
        self.attrs, out = node.attrs, node.output.shape
        self.groups = int(node.attrs["groups"])
        self.kernel = [int(d) for d in self.b.shape[2:]]
        self.channels = int(self.b.shape[1])
        self.rows, self.batch = out[:-1], (self.groups,) if self.groups > 1 else ()
        self.n, self.k = int(out[-1]) // self.groups, self.channels * prod(self.kernel)
        self.zero = int(node.attrs.get("x_zero_point", 0))
        self.words = self._bytes()
        self.aligned = self.words and self.channels % 4 == 0  # a word is four channels of one place

    def channel_sums(self) -> np.ndarray:
        """See `Problem`."""
        assert self.weight is not None
        result: np.ndarray = self.weight.astype(np.int64).reshape(self.weight.shape[0], -1).sum(axis=1)
        return result

    def packed(self) -> np.ndarray | None:
        """See `Problem`; k runs over the window's places, then channels."""
        assert self.weight is not None
        matrix = np.moveaxis(self.weight, 1, -1).reshape(self.groups, self.n, self.k).transpose(0, 2, 1)
        return words_of(matrix) if self.words else np.ascontiguousarray(matrix)

    def begin(self, ev: Evaluator, batch: Index) -> None:
        """See `Problem`."""
        self.first = multiply(batch[0], str(self.channels)) if batch else "0"
        self.extents = ev.extents(self.a.shape)

    def row_arrays(self) -> list[str]:
        """Position of the window's first element, and its place along each dimension."""
        return ["start", *(f"at{i}" for i in range(len(self.kernel)))]

    def row(self, ev: Evaluator, index: Index, inside: str) -> list[str]:
        """See `Problem`."""
        attrs = self.attrs
        places = [
            ev.w.let("int", f"{multiply(i, str(attrs['strides'][axis]))} - {attrs['pads'][axis]}", "o")
            for axis, i in enumerate(index[1:])
        ]
        start = add(f"({ev.flat((index[0], *places, '0'), self.a.shape)})", self.first)
        return [start, f"{inside} ? {places[0]} : {_OUTSIDE}", *places[1:]]

    def _element(self, ev: Evaluator, k: str, depth: int) -> tuple[list[str], str, str]:
        """(distance along each dimension, distance in memory, condition) of the k-th element of a window.

        `depth` is the number of elements of a place.
        """
        channel = ev.w.let("int", f"{k} % {depth}", "c") if depth > 1 else "0"
        place = ev.w.let("int", f"{k} / {depth}", "t") if depth > 1 else k
        taps = ev.unflatten(place, self.kernel)
        steps = [ev.w.let("int", multiply(t, str(d)), "s") for t, d in zip(taps, self.attrs["dilations"], strict=True)]
        scale = self.channels // depth
        offset = ev.flat(("0", *steps, "0"), self.a.shape)
        offset = ev.w.let("int", add(offset, multiply(channel, str(scale))), "f")
        return steps, offset, f"{k} < {self.k // scale}"

    def depth(self, ev: Evaluator, k: str) -> Any:
        """See `Problem`."""
        if not self.words or self.aligned:
            return [self._element(ev, k, self.channels // 4 if self.aligned else self.channels)]
        elements = [ev.w.let("int", f"4 * {k} + {i}", "k") for i in range(4)]
        return [self._element(ev, e, self.channels) for e in elements]

    def fetch(self, ev: Evaluator, shared: Any, slot: str) -> tuple[str, str]:
        """See `Problem`."""
        steps, offset, condition = shared
        # No place of a window that is not padded lies outside; the first dimension also tells missing rows.
        padded = [i for i in range(len(steps)) if i == 0 or any(self.attrs["pads"])]
        inside = [f"(u32)({add(f'at{i}[{slot}]', steps[i])}) < (u32){self.extents[1 + i]}" for i in padded]
        return " && ".join([condition, *inside]), add(f"start[{slot}]", offset)

    def output_index(self, batch: Index, row: Index, column: str) -> Index:
        """See `Problem`."""
        return (*row, add(multiply(batch[0], str(self.n)), column) if batch else column)


class MatmulProblem(Problem):
    """numpy's matmul: rows are those of the first operand, with its batches where the second has none."""

    def __init__(self, body: Graph, node: Node, constants: Constants) -> None:
        super().__init__(body, node, constants)
        a, b, out = self.a.shape, self.b.shape, node.output.shape
        self.vector = len(b) == 1
        self.k, self.n = a[-1], 1 if self.vector else b[-1]
        joined = len(b) <= 2
        last = len(out) - (0 if self.vector else 1)
        self.rows = out[:last] if joined else a[-2:-1] if len(a) > 1 else ()
        self.batch = () if joined else out[: last - len(self.rows)]
        self.zero = int(node.attrs.get("a_zero_point", 0))
        self.weight_zero = int(node.attrs.get("b_zero_point", 0))
        self.words = self._bytes() and joined
        self.aligned = self.words and self.k % 4 == 0

    def channel_sums(self) -> np.ndarray:
        """See `Problem`."""
        assert self.weight is not None
        result: np.ndarray = self.weight.astype(np.int64).reshape(self.weight.shape[0], -1).sum(axis=0)
        return result

    def packed(self) -> np.ndarray | None:
        """See `Problem`."""
        if self.weight is None or len(self.b.shape) > 2:
            return None
        matrix = self.weight.reshape(1, self.k, self.n)
        return words_of(matrix) if self.words else matrix

    def begin(self, ev: Evaluator, batch: Index) -> None:
        """See `Problem`."""
        self.first = self._first(ev, self.a.shape, batch)
        self.first_b = self._first(ev, self.b.shape, batch)

    @staticmethod
    def _first(ev: Evaluator, shape: Sequence[Any], batch: Index) -> str:
        """Where the matrix of a batch begins in an operand of `shape`."""
        if not batch or len(shape) < 3:
            return "0"
        index = ev.broadcast(shape[:-2], batch)
        return ev.w.let("int", ev.flat((*index, "0", "0"), shape), "b")

    def row_arrays(self) -> list[str]:
        """Position of the row's first element, or a negative number."""
        return ["start"]

    def row(self, ev: Evaluator, index: Index, inside: str) -> list[str]:
        """See `Problem`."""
        position = ev.flat(index, self.rows)
        start = add(multiply(f"({position})", ev.w.extent(self.k)), self.first)
        return [f"{inside} ? {start} : -1"]

    def depth(self, ev: Evaluator, k: str) -> Any:
        """See `Problem`."""
        extent = ev.w.extent(self.k)
        if self.aligned:
            return [(ev.w.let("int", f"4 * {k}", "f"), f"{k} < {self.k // 4}")]
        if not self.words:
            return [(k, f"{k} < {extent}")]
        elements = [ev.w.let("int", f"4 * {k} + {i}", "k") for i in range(4)]
        return [(e, f"{e} < {extent}") for e in elements]

    def fetch(self, ev: Evaluator, shared: Any, slot: str) -> tuple[str, str]:
        """See `Problem`."""
        offset, condition = shared
        return f"{condition} && start[{slot}] >= 0", f"start[{slot}] + {offset}"

    def output_index(self, batch: Index, row: Index, column: str) -> Index:
        """See `Problem`."""
        return (*batch, *row) if self.vector else (*batch, *row, column)


def element(problem: Problem, ev: Evaluator, shared: Any, slot: str) -> str:
    """An expression: what is staged for row `slot`; outside of the tensor the zero point, so that it adds nothing."""
    a = ev.w.pointer(problem.a.name, problem.a.dtype)
    places = [problem.fetch(ev, s, slot) for s in shared]
    if not problem.words:
        condition, position = places[0]
        value = f"(i32){a}[{position}] - {problem.zero}" if problem.integer else f"{a}[{position}]"
        return f"({condition}) ? {value} : ({c_type(problem.staged)})0"
    if len(places) == 1:
        condition, position = places[0]
        return f"({condition}) ? *(GLOBAL const u32*)({a} + {position}) : {problem.zero * 0x01010101}u"
    parts = [f"((({c}) ? (u32){a}[{p}] : {problem.zero}u) << {8 * i})" for i, (c, p) in enumerate(places)]
    return " | ".join(parts)
