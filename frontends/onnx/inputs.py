"""The graph's inputs: their types, the symbols of their extents, and the shapes that the user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from dlc.errors import DlcError
from dlc.frontends.onnx.context import check_size
from dlc.frontends.onnx.nodes import element_type
from dlc.frontends.onnx.symbols import Symbols
from dlc.frontends.onnx.tensor import ConversionError, Dim, Tensor, object_tensor

Shapes = Mapping[str, Sequence[int | str]]
Ranges = Mapping[str, tuple[int, int]]  # of symbols: their least and largest size


class GraphInputs:
    """Declares the inputs of a graph.

    An initialiser of the same name is an input's default, and makes it a constant unless a shape is given for it.
    """

    def __init__(self, model: str, symbols: Symbols, shapes: Shapes) -> None:
        self.model = model
        self.symbols = symbols
        self.shapes = shapes
        self.sizes: dict[str, int] = {}  # named dimensions that a given shape fixes

    def declare(self, graph: onnx.GraphProto) -> list[Tensor]:
        """The inputs in order, each with its ONNX name."""
        constants = {t.name for t in graph.initializer} - set(self.shapes)
        protos = [i for i in graph.input if i.name not in constants]
        unknown = sorted(set(self.shapes) - {i.name for i in protos})
        if unknown:
            names = ", ".join(f"'{i.name}'" for i in protos)
            raise DlcError(f"{self.model}: there is no input '{unknown[0]}' to give a shape to; the inputs are {names}")
        wanted = {i.name: self._given(i) for i in protos}
        return [self._tensor(i, wanted[i.name]) for i in protos]

    def _given(self, proto: onnx.ValueInfoProto) -> list[int | str] | None:
        """The shape that the user gives for an input, checked; named dimensions that it fixes are noted."""
        given = self.shapes.get(proto.name)
        if given is None:
            return None
        shape = list(given)
        if any(isinstance(d, int) and d < 0 for d in shape):
            raise DlcError(f"{self.model}: input '{proto.name}': the given shape {shape} has a negative extent")
        if not proto.type.tensor_type.HasField("shape"):
            return shape
        dims = proto.type.tensor_type.shape.dim
        if len(shape) != len(dims):
            raise DlcError(
                f"{self.model}: input '{proto.name}' has {len(dims)} dimensions, the given shape {len(shape)}"
            )
        for index, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            if dim.HasField("dim_value") and size != dim.dim_value and dim.dim_value != -1:
                raise DlcError(
                    f"{self.model}: input '{proto.name}': dimension {index} is {dim.dim_value}, "
                    f"the given shape says {size}"
                )
            if dim.dim_param and isinstance(size, int) and self.sizes.setdefault(dim.dim_param, size) != size:
                raise DlcError(
                    f"{self.model}: input '{proto.name}': dimension '{dim.dim_param}' is given as {size} and as "
                    f"{self.sizes[dim.dim_param]}"
                )
        return shape

    def _tensor(self, proto: onnx.ValueInfoProto, given: Sequence[int | str] | None) -> Tensor:
        kind = proto.type.WhichOneof("value")
        if kind in ("sequence_type", "optional_type") or proto.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            return replace(object_tensor(proto.type), name=proto.name)
        if kind != "tensor_type":
            raise DlcError(f"{self.model}: input '{proto.name}' is a {str(kind).removesuffix('_type')}, not a tensor")
        try:
            dtype = element_type(proto.type.tensor_type.elem_type)
        except ConversionError as error:
            raise DlcError(f"{self.model}: input '{proto.name}': {error}") from error
        if given is None and not proto.type.tensor_type.HasField("shape"):
            raise DlcError(f"{self.model}: input '{proto.name}' has no shape: give one")
        dims: Sequence[Any] = given if given is not None else proto.type.tensor_type.shape.dim
        extents = tuple(self._extent(proto.name, index, dim) for index, dim in enumerate(dims))
        tensor = Tensor(extents, dtype, name=proto.name)
        self.symbols.carry(tensor, self.symbols.carriers)
        try:
            check_size(tensor)
        except ConversionError as error:
            raise DlcError(f"{self.model}: input '{proto.name}': {error}") from error
        return tensor

    def _extent(self, name: str, index: int, dim: Any) -> Dim:
        if isinstance(dim, int):
            return dim
        text = dim if isinstance(dim, str) else dim.dim_param
        if not any(character.isalnum() for character in text):
            text = ""  # "?" and the like stand for anything, not for one size
        # Some exporters write -1 where ONNX has a dimension without a value.
        if not isinstance(dim, str) and dim.HasField("dim_value") and dim.dim_value != -1:
            return int(dim.dim_value)
        if text in self.sizes:
            return self.sizes[text]
        return self.symbols.named(text) if text else self.symbols.fresh(f"{name}_{index}")
