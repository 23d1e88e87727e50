"""`dlc.group_order`: a counting sort. One pass counts, one over the groups adds up, one places: O(R + count)."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Region, emitter, why_not
from dlc.targets.cpu.kernels.builder import Expr, hold, let, stack
from dlc.targets.cpu.kernels.contract_loops import loop

_MOST_GROUPS = 4096  # their counts are on the stack


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ["dlc.group_order"])
    if reason is None and body.nodes[0].attrs["count"] > _MOST_GROUPS:
        return f"more than {_MOST_GROUPS} groups"
    return reason


def note(body: Graph) -> str:
    """Why the kernel is no better, for the explanation."""
    return "scalar loop: a counting sort"


def clamped(group: Expr, count: int) -> Expr:
    """A group as an int64 within [0, count)."""
    return T.max(T.min(v.convert(group, "int64"), T.int64(count - 1)), T.int64(0))


def _write(region: Region) -> None:
    count, (out,) = int(region.anchor.attrs["count"]), region.outputs.values()
    (extent,) = region.shape
    ends = stack("int64", count)  # where the next position of each group goes

    def group_at(i: Expr) -> Expr:
        return let(clamped(region.x((i,), 1), count))

    with loop(count) as g:
        T.buffer_store(ends, T.int64(0), [g])
    with loop(extent) as i:
        group = group_at(i)
        T.buffer_store(ends, ends[group] + T.int64(1), [group])
    total = stack("int64", 1)
    T.buffer_store(total, T.int64(0), [0])
    with loop(count) as g:
        size = hold(ends[g])
        T.buffer_store(ends, total[0], [g])
        T.buffer_store(total, total[0] + size, [0])
    with loop(extent) as i:
        group = group_at(i)
        place = hold(ends[group])
        T.buffer_store(ends, place + T.int64(1), [group])
        if region.anchor.attrs["inverse"]:
            out.store([i], place)
        else:
            out.store([place], v.convert(i, "int64") if not isinstance(i, int) else T.int64(i))


emit = emitter(_write)
