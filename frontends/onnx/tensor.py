"""What the importer knows about one ONNX value, and the operator calls it has noted down so far.

Nothing here is Relax yet: a model is first read into `Call`s with inferred types, then the calls that the outputs need
are written with `FunctionBuilder`. That way shape arithmetic disappears before it becomes a node, and a value's ONNX
name can go to the last node of a composition although the composition does not know that it is the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from dlc.ir.graph import OBJECT, is_tensor

Dim = Any  # an int or a symbolic int64 expression


class ConversionError(ValueError):
    """A node cannot be converted; the text is the reason alone, without the node's name."""


class HostError(ConversionError):
    """The node is right, but no operator of the IR says what it does: the host has to run it."""


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
        type: the ONNX type of what is no tensor of numbers; its dtype then begins with ``object``.
        literal: the content of a constant tensor of strings.
    """

    shape: tuple[Dim, ...]
    dtype: str
    value: np.ndarray | None = None
    elements: np.ndarray | None = None
    call: Call | None = None
    name: str = ""
    type: onnx.TypeProto | None = None
    literal: onnx.TensorProto | None = None

    @property
    def is_object(self) -> bool:
        """Whether only the host can handle the value."""
        return not is_tensor(self.dtype)

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
        if self.is_object:
            return self.dtype
        return f"{self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(eq=False)
class Call:
    """One operator call to be written; `value` is the ONNX name of its result, empty inside a composition.

    `blocks` are what control flow runs.
    """

    op: str
    inputs: tuple[Tensor, ...]
    attrs: dict[str, Any]
    onnx_op: str
    onnx_node: str
    value: str = ""
    blocks: tuple[Block, ...] = ()
    output: Tensor = field(init=False)


@dataclass(eq=False)
class Block:
    """A function that control flow runs: its parameters, what it calls and what it returns.

    `noted` are the `FactFoundError`s that hold if it runs.
    """

    params: list[Tensor]
    calls: list[Call]
    outputs: list[Tensor]
    noted: list[Any] = field(default_factory=list)

    def captured(self) -> list[Tensor]:
        """The values around the block that it reads, constants left out, in the order of first use."""
        inside = {id(t) for t in self.params} | {id(call.output) for call in self.calls}
        read = [t for call in self.calls for t in call.inputs] + self.outputs
        return list({id(t): t for t in read if id(t) not in inside and t.value is None}.values())

    def take(self, captured: list[Tensor]) -> None:
        """Make values around the block its last parameters."""
        self.params = [*self.params, *captured]


def string_constant(proto: onnx.TensorProto) -> Tensor:
    """A constant tensor of strings, which only the host can read."""
    kind = onnx.helper.make_tensor_type_proto(proto.data_type, list(proto.dims))
    return Tensor((), f"{OBJECT}: string", type=kind, literal=proto)


def type_proto(tensor: Tensor) -> onnx.TypeProto:
    """The ONNX type of a tensor; a symbolic extent becomes a named one."""
    if tensor.type is not None:
        return tensor.type
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    proto.tensor_type.shape.SetInParent()
    for dim in tensor.shape:
        entry = proto.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        else:
            entry.dim_param = str(dim)
    return proto


def object_tensor(proto: onnx.TypeProto) -> Tensor:
    """A value that is no tensor of numbers of known rank."""
    return Tensor((), f"{OBJECT}: {_type_text(proto)}", type=proto)


def _type_text(proto: onnx.TypeProto) -> str:
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        name = onnx.TensorProto.DataType.Name(proto.tensor_type.elem_type).lower()
        return name if name == "string" else f"{name} of unknown rank"
    if kind == "sequence_type":
        return f"sequence of {_type_text(proto.sequence_type.elem_type)}"
    if kind == "optional_type":
        return f"optional {_type_text(proto.optional_type.elem_type)}"
    return str(kind).removesuffix("_type")


def constant(array: np.ndarray) -> Tensor:
    """A tensor whose content is known."""
    return Tensor(tuple(int(d) for d in array.shape), str(array.dtype), array)
