"""What the importer knows about one ONNX value, and the operator calls it has noted down so far.

Nothing here is Relax yet: a model is first read into `Call`s with inferred types, then the calls that the outputs need
are written with `FunctionBuilder`. That way shape arithmetic disappears before it becomes a node, and a value's ONNX
name can go to the last node of a composition although the composition does not know that it is the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Dim = Any  # an int or a symbolic int64 expression


class ConversionError(ValueError):
    """A node cannot be converted; the text is the reason alone, without the node's name."""


@dataclass(eq=False)
class Tensor:
    """A value: its type and, where it is known when compiling, its content.

    Attributes:
        shape: extents, ints or symbolic.
        dtype: numpy's name of the element type.
        value: the content, if it is a constant.
        elements: the content of an integer tensor that holds symbolic extents: an object array of ints and expressions.
        call: the operator call that makes it; None for a constant, an input or symbolic elements.
        name: the parameter's name, for an input.
    """

    shape: tuple[Dim, ...]
    dtype: str
    value: np.ndarray | None = None
    elements: np.ndarray | None = None
    call: Call | None = None
    name: str = ""

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def static(self) -> bool:
        """Whether every extent is a number."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(eq=False)
class Call:
    """One operator call to be written; `value` is the ONNX name of its result, empty inside a composition."""

    op: str
    inputs: tuple[Tensor, ...]
    attrs: dict[str, Any]
    onnx_op: str
    onnx_node: str
    value: str = ""
    output: Tensor = field(init=False)


def constant(array: np.ndarray) -> Tensor:
    """A tensor whose content is known."""
    return Tensor(tuple(int(d) for d in array.shape), str(array.dtype), array)
