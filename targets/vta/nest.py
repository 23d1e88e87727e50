"""Turning a nest of loops over (destination, source, weight) indices into GEMM instructions.

An instruction has two loops and a list of micro-ops inside them; everything else of the nest is written out in the
list. Of all choices of the two loops the one with the fewest micro-ops is taken that does not write an accumulator
again within two steps (the array does not forward).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from dlc.targets.vta.config import Config
from dlc.targets.vta.isa import Gemm
from dlc.targets.vta.simulator import forwarding_hazard, indices

MOST_ITERATIONS = (1 << 14) - 1


@dataclass(frozen=True)
class Dim:
    """One loop: how often, and how far each index moves a step. A reduction does not move the destination."""

    count: int
    dst: int = 0
    src: int = 0
    wgt: int = 0

    @property
    def strides(self) -> tuple[int, int, int]:
        """dst, src, wgt."""
        return self.dst, self.src, self.wgt


@dataclass(frozen=True, eq=False)
class Piece:
    """One instruction (its loops and factors, micro-ops from 0) and its micro-ops (n, 3) before bases are added."""

    gemm: Gemm
    uops: np.ndarray


def merged(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """The same nest with fewer loops: those of one iteration dropped, those that continue each other joined."""
    result: list[Dim] = []
    for dim in dims:
        if dim.count == 1:
            continue
        if result and all(a == b * dim.count for a, b in zip(result[-1].strides, dim.strides, strict=True)):
            result[-1] = replace(dim, count=result[-1].count * dim.count)
        else:
            result.append(dim)
    return tuple(result)


def _offsets(dims: Sequence[Dim]) -> np.ndarray:
    """The index triples of a nest, in order."""
    total = np.zeros((1, 3), np.int64)
    for dim in dims:
        steps = np.arange(dim.count)[:, None] * np.asarray(dim.strides)[None, :]
        total = (total[:, None, :] + steps[None, :, :]).reshape(-1, 3)
    return total


def _piece(outer: Dim, inner: Dim, rest: Sequence[Dim]) -> Piece:
    factors: dict[str, Any] = {}
    for name, a, b in zip(("dst", "src", "wgt"), outer.strides, inner.strides, strict=True):
        factors[f"{name}_factor_out"], factors[f"{name}_factor_in"] = a, b
    # Reductions outside, so that neighbouring micro-ops write different accumulators.
    uops = _offsets([*(d for d in rest if not d.dst), *(d for d in rest if d.dst)])
    return Piece(Gemm(uop_end=len(uops), iter_out=outer.count, iter_in=inner.count, **factors), uops)


def _fits(piece: Piece, config: Config) -> bool:
    limits = ((config.acc_bits, "dst"), (config.inp_bits, "src"), (config.wgt_bits, "wgt"))
    gemm = piece.gemm
    if max(gemm.iter_out, gemm.iter_in) > MOST_ITERATIONS or len(piece.uops) > config.uops // 4:
        return False
    return all(max(getattr(gemm, f"{n}_factor_out"), getattr(gemm, f"{n}_factor_in")) < 1 << b for b, n in limits)


def _choices(dims: tuple[Dim, ...]) -> list[tuple[Dim, Dim, tuple[Dim, ...]]]:
    """Every choice of the two loops with what is left, fewest micro-ops first."""
    one = Dim(1)
    found = []
    positions = range(len(dims))
    for picked in (*itertools.permutations(positions, 2), *itertools.permutations(positions, 1), ()):
        loops = [dims[i] for i in picked]
        rest = tuple(d for i, d in enumerate(dims) if i not in picked)
        outer, inner = [one] * (2 - len(loops)) + loops
        found.append((outer, inner, rest))
    found.sort(key=lambda c: prod(d.count for d in c[2]))
    return found


@functools.lru_cache(maxsize=4096)
def pieces(dims: tuple[Dim, ...], config: Config) -> tuple[Piece, ...]:
    """The instructions of a nest: one, or one a step of the reduction where too few accumulators are in turn."""
    short = merged(dims)
    for outer, inner, rest in _choices(short):
        if prod(d.count for d in rest) > config.uops // 4:
            break
        piece = _piece(outer, inner, rest)
        if _fits(piece, config) and forwarding_hazard(indices(piece.gemm, piece.uops)[0]) is None:
            return (piece,)
    places = [d for d in short if d.dst]
    steps = _offsets([d for d in short if not d.dst])
    outer, inner, rest = next(c for c in _choices(tuple(places)) if _fits(_piece(*c), config))
    base = _piece(outer, inner, rest)
    return tuple(Piece(base.gemm, base.uops + step) for step in steps)
