"""`dlc.set_rows`: a copy of the data, then the rows that are replaced; vectors run over the last dimension.

Where the output lies in the memory of the data (see `in_place`) there is nothing to copy.
"""

from __future__ import annotations

from dataclasses import replace

from dlc.ir.graph import Graph
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.anchored import Piece, Region, emitter, sweep, vector_lanes, why_not
from dlc.targets.cpu.kernels.builder import Expr
from dlc.targets.cpu.kernels.contract_loops import loops, whole_index
from dlc.targets.cpu.kernels.storage import compute_dtype


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    reason = why_not(body, ["dlc.set_rows"])
    return "rows that are computed" if reason is None and len(body.nodes) > 1 else reason


def in_place(body: Graph) -> Graph:
    """`body` without its data operand: its kernel updates what lies where the output is to lie."""
    data = body.nodes[0].inputs[0]
    return replace(body, inputs=tuple(value for value in body.inputs if value.name != data))


def _copy(region: Region, name: str, first: Expr) -> None:
    """Store all of an input, moved by `first` along the axis."""
    (out,), axis = region.outputs.values(), region.anchor.attrs["axis"]
    *outer, last = region.body.values()[name].shape
    lanes = vector_lanes(region.isa, v.width(compute_dtype(out.dtype)), last)

    def visit(index: tuple[Expr, ...], piece: Piece) -> None:
        place = [whole_index(i) for i in (*index, piece.base)]
        value = region.value(name, place, lanes, piece.mask)
        place[axis] = place[axis] + whole_index(first)
        out.store(place, value, lanes, piece.mask)

    with loops(outer) as index:

        def several(pieces: list[Piece]) -> None:
            for piece in pieces:
                visit(index, piece)

        sweep(last, lanes, 4, several)


def _write(region: Region) -> None:
    data, update = region.anchor.inputs
    if data in region.inputs:
        _copy(region, data, 0)
    _copy(region, update, region.anchor.attrs["begin"][0])


emit = emitter(_write)
