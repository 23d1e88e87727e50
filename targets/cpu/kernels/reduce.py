"""Reductions over any axes with elementwise neighbours, as one kernel (being written)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlc.ir.graph import Graph
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Layout


def declines(body: Graph) -> str | None:
    """Why this family cannot take `body`; None when it can."""
    return "being written"


def emit(
    name: str, body: Graph, layouts: Mapping[str, Layout], isa: Isa, dims: Sequence[Any], halo_fill: Mapping[str, float]
) -> Any:
    """The kernel of `body`."""
    raise NotImplementedError("being written")
