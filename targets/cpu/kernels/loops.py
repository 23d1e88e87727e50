"""Loops that all families share: over logical indices, and over the last dimension in vectors with a remainder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, let, tail_mask
from dlc.targets.layout import simplify

# (position of the first lane, lanes, mask or None)
Body = Callable[[Expr, int, Expr], None]


def int64(value: Expr) -> Expr:
    """An extent as an int64 expression."""
    return T.int64(value) if isinstance(value, int) else value


def serial(extent: Expr, body: Callable[[Expr], None], begin: Expr = 0) -> None:
    """Run `body` for every position from `begin` up to `extent`; a single step needs no loop."""
    if isinstance(extent, int) and isinstance(begin, int) and extent - begin <= 1:
        if extent > begin:
            body(begin)
        return
    with T.serial(int64(begin), int64(extent)) as i:
        body(i)


def nest(extents: Sequence[Expr], body: Callable[[tuple[Expr, ...]], None]) -> None:
    """Run `body` for every index, the last one fastest."""

    def level(axis: int, index: tuple[Expr, ...]) -> None:
        if axis == len(extents):
            body(index)
        else:
            serial(extents[axis], lambda i: level(axis + 1, (*index, i)))

    level(0, ())


def has_masks(isa: Isa, bits: int) -> bool:
    """Whether masked loads and stores of elements of `bits` bits are instructions and not branches per lane."""
    return isa.vector_bits == 512 or (isa.vector_bits == 256 and bits >= 32)


def vectors(extent: Expr, lanes: int, body: Body, masked: bool, unroll: int = 1) -> None:
    """Cover [0, extent) with vectors: `unroll` at a time, then one at a time, then the rest.

    The rest is one masked vector if `masked`, else it is done element by element. A short static extent becomes
    straight code.
    """
    if lanes == 1:
        serial(extent, lambda i: body(i, 1, None))
        return
    if isinstance(extent, int):
        _static(extent, lanes, body, masked, unroll)
        return
    whole = let(T.floordiv(extent, T.int64(lanes)))
    if unroll > 1:
        groups = let(T.floordiv(whole, T.int64(unroll)))
        with T.serial(T.int64(0), groups) as i:
            for j in range(unroll):
                body(i * (lanes * unroll) + j * lanes, lanes, None)
        with T.serial(groups * unroll, whole) as i:
            body(i * lanes, lanes, None)
    else:
        with T.serial(T.int64(0), whole) as i:
            body(i * lanes, lanes, None)
    begin = let(whole * lanes)
    if masked:
        with T.If(begin < extent), T.Then():
            body(begin, lanes, let(tail_mask(extent - begin, lanes)))
    else:
        with T.serial(begin, extent) as i:
            body(i, 1, None)


def _static(extent: int, lanes: int, body: Body, masked: bool, unroll: int) -> None:
    whole, rest = divmod(extent, lanes)
    groups = whole // unroll if unroll > 1 else 0
    if groups > 1:
        with T.serial(T.int64(0), T.int64(groups)) as i:
            for j in range(unroll):
                body(i * (lanes * unroll) + j * lanes, lanes, None)
        done = groups * unroll
    else:
        done = 0
    if whole - done > 4 and unroll == 1:
        with T.serial(T.int64(done), T.int64(whole)) as i:
            body(i * lanes, lanes, None)
    else:
        for i in range(done, whole):
            body(i * lanes, lanes, None)
    if rest and masked:
        body(whole * lanes, lanes, let(tail_mask(T.int64(rest), lanes)))
    elif rest:
        serial(extent, lambda i: body(i, 1, None), begin=whole * lanes)


def fold(index: Sequence[Expr], extents: Sequence[Expr]) -> Expr:
    """Row-major position of an index."""
    flat: Expr = 0
    for i, extent in zip(index, extents, strict=True):
        flat = simplify(flat * extent + i)
    return flat
