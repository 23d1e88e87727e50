"""The table of operators that the IR may hold, each with its meaning in numpy.

An operator of ours is one file: its type rule, its meaning, its kind. Relax's own operators that we use are listed in
`relax_ops.py` with the meaning we give them. Nothing here imports TVM: the reference runtime needs the meanings alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Meaning = Callable[[Sequence[np.ndarray], Mapping[str, Any]], "np.ndarray | tuple[np.ndarray, ...]"]
# (shape, dtype) of each input, attributes -> (shape, dtype) of the output; raises ValueError with the reason.
TypeRule = Callable[[Sequence[tuple[tuple[Any, ...], str]], Mapping[str, Any]], tuple[Sequence[Any], str]]
Kind = Literal["elementwise", "injective", "reduction", "contraction", "window", "opaque", "host"]


@dataclass(frozen=True)
class OpSpec:
    """One operator of the IR.

    Attributes:
        name: its name in the IR.
        kind: how kernels treat it. ``elementwise``: output element i depends on input elements i (after numpy
            broadcasting); ``injective``: each output element is one input element somewhere else; ``host``: never a
            kernel, see `dlc.ir.ops.host`.
        meaning: (inputs, attributes) -> output, in numpy: the definition every target is held to.
        infer: the type rule of an operator of ours; None for Relax's own.
    """

    name: str
    kind: Kind
    meaning: Meaning
    infer: TypeRule | None = None


OPS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Add an operator to the table; a name can be taken once."""
    if spec.name in OPS:
        raise ValueError(f"operator {spec.name} is registered twice")
    OPS[spec.name] = spec
    return spec
