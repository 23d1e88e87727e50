"""Where a tensor's elements lie in its buffer, over extents that may be symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import tirx

Expr = Any  # a tirx expression or a Python int; TVM ships no types

_analyzer = tvm.sym.Analyzer()


def simplify(expr: Expr) -> Expr:
    """Simplify an index expression; constants come back as Python ints."""
    if isinstance(expr, int):
        return expr
    result = _analyzer.simplify(expr)
    return int(result.value) if isinstance(result, tirx.IntImm) else result


@dataclass(frozen=True)
class Layout:
    """Where the elements of a logical tensor lie in its flat buffer.

    Attributes:
        shape: logical extents, ints or int64 tirx expressions.
        strides: elements between neighbours along each dimension.
        offset: flat index of the logical element (0, ..., 0).
        size: elements in the whole buffer, halo included.
        halo: (before, after) rows around each dimension that belong to the buffer but not to the tensor.
    """

    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    offset: Expr
    size: Expr
    halo: tuple[tuple[int, int], ...]

    @staticmethod
    def dense(shape: Sequence[Expr]) -> Layout:
        """Row-major, nothing around it."""
        return Layout.padded(shape, [(0, 0)] * len(shape))

    @staticmethod
    def padded(shape: Sequence[Expr], halo: Sequence[tuple[int, int]]) -> Layout:
        """Row-major with `halo` elements (before, after) around each dimension."""
        full = [simplify(extent + before + after) for extent, (before, after) in zip(shape, halo, strict=True)]
        strides: list[Expr] = [1] * len(full)
        for axis in range(len(full) - 2, -1, -1):
            strides[axis] = simplify(strides[axis + 1] * full[axis + 1])
        offset = simplify(sum((before * s for (before, _), s in zip(halo, strides, strict=True)), 0))
        return Layout(tuple(shape), tuple(strides), offset, simplify(prod(full, start=1)), tuple(halo))

    @property
    def is_dense(self) -> bool:
        """True when the buffer holds the logical tensor and nothing else."""
        return all(pair == (0, 0) for pair in self.halo)

    def flat(self, index: Sequence[Expr]) -> Expr:
        """Flat position of the logical `index` (scalars)."""
        return simplify(sum((i * s for i, s in zip(index, self.strides, strict=True)), self.offset))
