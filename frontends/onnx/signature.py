"""Holding a node to its operator's signature before a converter sees it: how many inputs, which types, which ranks.

ONNX's own schemas say the first two, `_RANKS` the third; the operators of other domains have no schema, so theirs is
what their converters take. A converter may rely on all of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from dlc.frontends.onnx.context import NodeView
from dlc.frontends.onnx.tensor import ConversionError, Tensor

_Option = onnx.defs.OpSchema.FormalParameterOption

_RECURRENT = (3, 3, 3, 2, 1, 3, 3, 2)
# By operator, the rank of each input; None where it is free, and for those that are not listed.
_RANKS: dict[str, tuple[int | None, ...]] = {
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT[:6],
    "RNN": _RECURRENT[:6],
    "Conv": (None, None, 1),
    "ConvTranspose": (None, None, 1),
    "QLinearConv": (None, None, None, None, None, None, None, None, 1),
    "BatchNormalization": (None, 1, 1, 1, 1),
    "InstanceNormalization": (None, 1, 1),
    "GroupNormalization": (None, 1, 1),
    "DeformConv": (None, None, None, 1),
    "Gemm": (2, 2),
    "OneHot": (None, None, 1),
    "STFT": (None, None, 1),
    "com.microsoft.FusedConv": (None, None, 1),
    "com.microsoft.DynamicQuantizeLSTM": _RECURRENT,
    "com.microsoft.MoE": (None, 2, 3, 2, 3, 2, 3, 2),
    "com.microsoft.QMoE": (None, 2, 3, None, 2, 3, None, 2, 3, None, 2),
    "com.microsoft.MultiHeadAttention": (None, None, None, 1),
    "com.microsoft.Attention": (3, 2, 1),
    "com.microsoft.RotaryEmbedding": (None, None, 2, 2),
    "com.microsoft.EmbedLayerNormalization": (2, 2, 2, 2, 2, 1, 1, 2, 2),
}
# By operator, the least rank of each input.
_LEAST_RANKS: dict[str, tuple[int, ...]] = {
    "GroupNormalization": (2,),
    "LRN": (2,),
    "DeformConv": (3, 3, 3),
    "GatherND": (1, 1),
    "ScatterND": (1, 1),
    "com.microsoft.DynamicQuantizeLSTM": (3, 3, 3, 2, 1, 3, 3, 2, 1, 1, 1, 1),
    "com.microsoft.MoE": (2,),
    "com.microsoft.QMoE": (2,),
    "com.microsoft.MultiHeadAttention": (3, 3, 3),
    "com.microsoft.RotaryEmbedding": (3,),
}
# By operator, inputs of one element, which come with rank 0 or 1.
_SINGLE: dict[str, tuple[int, ...]] = {
    "Range": (0, 1, 2),
    "OneHot": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "If": (0,),
    "Loop": (0, 1),
}
# Attributes whose values are sizes and counts, whatever the operator.
_POSITIVE = {"strides", "dilations", "kernel_shape", "group", "num_groups", "offset_group", "blocksize", "size", "p"}
_POSITIVE |= {"num_scan_inputs", "output_height", "output_width"}


@functools.cache
def schema_of(op_type: str, version: int, domain: str) -> Any:
    """ONNX's definition of an operator at an opset version; None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except Exception:  # SchemaError, which onnx does not export in all versions
        return None


def check_signature(node: NodeView, version: int, inputs: Sequence[Tensor | None]) -> None:
    """Raise ConversionError for inputs of a node, or sizes in its attributes, that its operator does not take."""
    for name in sorted(_POSITIVE & node.attrs.keys()):
        value = node.attrs[name]
        sizes = value if isinstance(value, list) else [value]
        if any(isinstance(v, int | float) and not v > 0 for v in sizes):
            raise ConversionError(f"attribute '{name}' is {value}, it must be positive")
    schema = schema_of(node.op_type, version, node.domain)
    if schema is not None and not schema.deprecated:
        _check_schema(node, schema, inputs)
    _check_ranks(f"{node.domain}.{node.op_type}".lstrip("."), schema, inputs)


def _check_schema(node: NodeView, schema: Any, inputs: Sequence[Tensor | None]) -> None:
    _check_count(schema, inputs)
    wrong = _wrong_type(schema, inputs)
    if wrong:
        # Exporters use the types of a later version before they say so: what an operator means does not change.
        newest = schema_of(node.op_type, onnx.defs.onnx_opset_version(), node.domain) if not node.domain else None
        if newest is None or newest.deprecated or _wrong_type(newest, inputs):
            raise ConversionError(wrong)


def check_parameters(convert: Callable[..., Any], inputs: Sequence[Tensor | None]) -> None:
    """Raise ConversionError for inputs that a converter has no parameter for, or that it cannot do without."""
    parameters = _parameters(convert)
    variadic = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL
    least = sum(p.default is p.empty for p in parameters) - variadic
    most = None if variadic else len(parameters)
    _check_number(inputs, least, most)
    for index, tensor in enumerate(inputs):
        parameter = parameters[min(index, len(parameters) - 1)]
        if tensor is None and parameter.annotation == "Tensor":
            raise ConversionError(f"its input {index} ('{parameter.name}') is left out")


@functools.cache
def _parameters(convert: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(convert).parameters.values())[1:]


def _check_number(inputs: Sequence[Tensor | None], least: int, most: int | None) -> None:
    if len(inputs) < least or (most is not None and len(inputs) > most):
        takes = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        raise ConversionError(f"it has {len(inputs)} inputs, the operator takes {takes}")


def _check_count(schema: Any, inputs: Sequence[Tensor | None]) -> None:
    _check_number(inputs, schema.min_input, schema.max_input if schema.max_input < 2**31 - 1 else None)
    for index, tensor in enumerate(inputs):
        formal = _formal(schema, index)
        if tensor is None and formal.option != _Option.Optional:
            raise ConversionError(f"its input {index} ('{formal.name}') is left out")


def _formal(schema: Any, index: int) -> Any:
    return schema.inputs[min(index, len(schema.inputs) - 1)]


def _wrong_type(schema: Any, inputs: Sequence[Tensor | None]) -> str:
    """What is wrong with the inputs' types; empty where nothing is."""
    bound: dict[str, int] = {}  # by type variable, the first input of it
    for index, tensor in enumerate(inputs):
        kind = None if tensor is None else _kind(tensor)
        if tensor is None or kind is None:
            continue
        if index >= len(schema.inputs) and schema.inputs[-1].option != _Option.Variadic:
            return f"its input {index} is one too many"
        formal = _formal(schema, index)
        if kind not in formal.types:
            return f"its input {index} ('{formal.name}') is {tensor}, it takes {_listed(formal.types)}"
        if formal.option == _Option.Variadic and not formal.is_homogeneous:
            continue
        other = bound.setdefault(formal.type_str, index)
        first = inputs[other]
        if first is not None and _kind(first) != kind:
            return f"its inputs {other} and {index} are {first} and {tensor}: they must be of the same type"
    return ""


def _listed(types: Iterable[str]) -> str:
    """Type constraints as messages show types."""
    codes = {f"tensor({name.lower()})": code for name, code in onnx.TensorProto.DataType.items()}
    codes = {name: code for name, code in codes.items() if name not in ("tensor(undefined)", "tensor(string)")}
    texts = [str(onnx.helper.tensor_dtype_to_np_dtype(codes[t])) if t in codes else t for t in types]
    return ", ".join(sorted(texts))


def _kind(tensor: Tensor) -> str | None:
    """The type as schemas spell it; None for one that is not known exactly."""
    return _proto_kind(tensor.type) if tensor.type is not None else _tensor_kind(tensor.dtype)


@functools.cache
def _tensor_kind(dtype: str) -> str:
    return _element_kind(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _element_kind(elem_type: int) -> str:
    return f"tensor({onnx.TensorProto.DataType.Name(elem_type).lower()})"


def _proto_kind(proto: onnx.TypeProto) -> str | None:
    form = proto.WhichOneof("value")
    if form == "tensor_type":
        return _element_kind(proto.tensor_type.elem_type) if proto.tensor_type.elem_type else None
    if form == "sequence_type":
        inner = _proto_kind(proto.sequence_type.elem_type)
        return inner and f"seq({inner})"
    if form == "optional_type":
        inner = _proto_kind(proto.optional_type.elem_type)
        return inner and f"optional({inner})"
    return None


def _check_ranks(operator: str, schema: Any, inputs: Sequence[Tensor | None]) -> None:
    exact, least, single = _RANKS.get(operator, ()), _LEAST_RANKS.get(operator, ()), _SINGLE.get(operator, ())
    for index, tensor in enumerate(inputs):
        if tensor is None or tensor.is_object:
            continue
        wanted = ""
        if index < len(exact) and exact[index] not in (None, tensor.rank):
            wanted = f"rank {exact[index]}"
        elif index < len(least) and tensor.rank < least[index]:
            wanted = f"rank {least[index]} or more"
        elif index in single and any(isinstance(d, int) and d != 1 for d in tensor.shape):
            wanted = "one element"
        if wanted:
            name = f" ('{_formal(schema, index).name}')" if schema is not None and schema.inputs else ""
            raise ConversionError(f"its input {index}{name} is {tensor}, it must have {wanted}")
