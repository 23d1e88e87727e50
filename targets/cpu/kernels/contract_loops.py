"""Loops over tiles and runs: how extents, known or symbolic, are cut into pieces of fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels.builder import Expr, Share, hold, let
from dlc.targets.cpu.kernels.contract_problem import Run
from dlc.targets.layout import simplify


@dataclass(frozen=True)
class Segment:
    """`count` tiles of `size` steps along an axis, the first at `start`; `when` guards a single optional one."""

    count: Expr
    start: Expr
    size: int
    ragged: Expr = 0  # steps of the last unit that exist (channels only); 0 when all do
    when: Expr = None
    part: tuple[Expr, Expr] | None = None  # the tiles that this call computes, where the axis is shared out

    def __post_init__(self) -> None:
        assert self.size > 0


def whole_index(value: Expr) -> Expr:
    """An index constant in the type of all indices."""
    return T.int64(value) if isinstance(value, int) else value


def cut(extent: Expr, size: int) -> list[Segment]:
    """Cut an axis into full tiles and remainders; a symbolic remainder is decomposed into powers of two."""
    if isinstance(extent, int):
        full, rest = divmod(extent, size)
        parts = [Segment(full, 0, size)] if full else []
        return parts + ([Segment(1, full * size, rest)] if rest else [])
    full = let(T.truncdiv(extent, T.int64(size)))
    parts = [Segment(full, 0, size)]
    rest = let(extent - full * size)
    piece = 1 << (size - 1).bit_length() - 1 if size > 1 else 0
    while piece:
        start = let(extent - T.bitwise_and(rest, T.int64(2 * piece - 1)))
        parts.append(Segment(1, start, piece, when=T.bitwise_and(rest, T.int64(piece)) != T.int64(0)))
        piece //= 2
    return parts


def cut_channels(n: Expr, nr: int, lanes: int) -> list[Segment]:
    """Cut output channels into tiles of `nr` vectors; starts are in vectors, the last vector may be ragged."""
    if isinstance(n, int):
        vectors, ragged = -(-n // lanes), n % lanes
        full, rest = divmod(vectors, nr)
        if rest:
            parts = [Segment(full, 0, nr)] if full else []
            return [*parts, Segment(1, full * nr, rest, ragged)]
        if not ragged:
            return [Segment(full, 0, nr)]
        parts = [Segment(full - 1, 0, nr)] if full > 1 else []
        return [*parts, Segment(1, (full - 1) * nr, nr, ragged)]
    full = let(T.truncdiv(n, T.int64(nr * lanes)))
    singles = let(T.truncdiv(n - full * (nr * lanes), T.int64(lanes)))
    done = let(full * nr + singles)
    ragged = let(n - done * lanes)
    parts = [Segment(full, 0, nr)]
    if nr > 1:
        parts.append(Segment(singles, full * nr, 1))
    return [*parts, Segment(1, done, 1, ragged, ragged > T.int64(0))]


def shared(segments: Sequence[Segment], share: Share | None) -> list[Segment]:
    """The segments of an axis, of whose tiles only a part is computed."""
    if share is None:
        return list(segments)
    low, high = share.bounds(simplify(sum(segment.count for segment in segments)))
    first: Expr = 0
    found = []
    for segment in segments:
        begin = let(T.max(low - first, T.int64(0)))
        found.append(replace(segment, part=(begin, let(T.min(high - first, whole_index(segment.count))))))
        first = simplify(first + segment.count)
    return found


@contextmanager
def loop(extent: Expr) -> Iterator[Expr]:
    """A serial loop; none at all for one step."""
    if isinstance(extent, int) and extent == 1:
        yield 0
    else:
        with T.serial(T.int64(0), whole_index(extent)) as index:
            yield index


@contextmanager
def shared_loop(extent: Expr, share: Share | None) -> Iterator[Expr]:
    """The steps of `extent` that this call computes; all of them without `share`."""
    (segment,) = shared([Segment(extent, 0, 1)], share)
    with each(segment) as index:
        yield index


@contextmanager
def loops(extents: Sequence[Expr], share: Share | None = None) -> Iterator[tuple[Expr, ...]]:
    """Nested loops; yields the index. With `share` one of them is shared out."""
    if not extents:
        assert share is None, "nothing to share out"
        yield ()
        return
    mine = share is not None and Share.best(extents) == 0
    with (
        shared_loop(extents[0], share if mine else None) as first,
        loops(extents[1:], None if mine else share) as others,
    ):
        yield (first, *others)


@contextmanager
def each(segment: Segment, turn: Expr = None) -> Iterator[Expr]:
    """The start of every tile of a segment; from the last to the first where `turn` is 1 and not 0 or None."""
    single = isinstance(segment.count, int) and segment.count == 1
    if segment.part is not None and single:
        begin, end = segment.part
        wanted = begin < end if segment.when is None else T.And(segment.when, begin < end)
        with T.If(wanted), T.Then():
            yield segment.start
    elif segment.part is not None:
        begin, end = segment.part
        with T.serial(begin, end) as index:
            yield simplify(_turned(index, begin + end, turn) * segment.size + segment.start)
    elif segment.when is not None:
        with T.If(segment.when), T.Then():
            yield segment.start
    else:
        with loop(segment.count) as index:
            yield simplify(_turned(index, segment.count, turn) * segment.size + segment.start)


def _turned(index: Expr, ends: Expr, turn: Expr) -> Expr:
    """`index`, or where `turn` is 1 what is as far from the other end; `ends` is the sum of both (one exclusive)."""
    if turn is None or isinstance(index, int):
        return index
    return hold(index + turn * (ends - 1 - 2 * index))


@dataclass(frozen=True)
class Nest:
    """Runs of one length whose offsets form nested progressions: loops of (extent, step), outermost first."""

    offset: Expr
    length: Expr
    loops: tuple[tuple[int, int], ...]
    first: int  # number of the first run
    offsets: tuple[Expr, ...]


def _progressions(offsets: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Nested loops that produce `offsets` relative to the first one, or None."""
    if len(offsets) == 1:
        return ()
    step, length = offsets[1] - offsets[0], 2
    while length < len(offsets) and offsets[length] - offsets[length - 1] == step:
        length += 1
    if len(offsets) % length:
        return None
    for begin in range(0, len(offsets), length):
        block = offsets[begin : begin + length]
        if any(value - block[0] != step * i for i, value in enumerate(block)):
            return None
    outer = _progressions(offsets[::length])
    return None if outer is None else (*outer, (length, step))


def nests(runs: Sequence[Run], straight: bool) -> list[Nest]:
    """The loops over `runs`; one entry per run when the code is to be straight or their offsets follow no pattern."""
    lengths = {run.length for run in runs if isinstance(run.length, int)}
    constant = all(isinstance(run.offset, int) for run in runs) and len(lengths) == 1
    loops = _progressions([run.offset for run in runs]) if constant and not straight else None
    if loops is None:
        return [Nest(run.offset, run.length, (), i, (run.offset,)) for i, run in enumerate(runs)]
    return [Nest(runs[0].offset, runs[0].length, loops, 0, tuple(run.offset for run in runs))]
