"""What lowering leaves: kernels, the order they are called in, and where their operands lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dlc.ir.graph import Origin, Value
from dlc.targets.layout import Layout


@dataclass(frozen=True)
class Ref:
    """A place: graph input or output `index`, constant `index`, or a named value in the workspace."""

    kind: Literal["input", "output", "constant", "workspace"]
    index: int = 0
    name: str = ""


@dataclass(frozen=True)
class Call:
    """One kernel call; `layout` is that of its output."""

    symbol: str
    inputs: tuple[Ref, ...]
    output: Ref
    dims: tuple[Any, ...]
    value: Value
    layout: Layout
    origin: Origin
    row: dict[str, Any]


@dataclass
class Program:
    """A whole lowered function.

    Attributes:
        kernels: PrimFunc by symbol.
        calls: in execution order.
        constants: what kernels read, by index of `Ref`.
        buffers: bytes of each workspace value (int or symbolic).
        symbols: the symbolic dimensions, in the order of the entry's arguments.
        inputs, outputs: of the whole function.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    symbols: list[Any]
    kernels: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    buffers: dict[str, Any] = field(default_factory=dict)
