"""Reading a model: the file, the protobuf, ONNX's own checker, versions, external data. All failures are DlcError."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the small floats with numpy)
import numpy as np
import onnx
import onnx.checker
import onnx.external_data_helper

from dlc.errors import DlcError
from dlc.frontends.onnx.nodes import domain_of

OLDEST_OPSET = 1  # an operator may start later: the table of converters decides
_OLDEST_IR = 3


@dataclass(frozen=True)
class Loaded:
    """A model that parsed: its proto, how messages call it, and the folder of its external data."""

    proto: onnx.ModelProto
    name: str
    folder: Path | None
    path: Path | None = None


def parse(model: str | Path | onnx.ModelProto) -> Loaded:
    """Parse the model and check its versions; external data is not read yet."""
    if isinstance(model, onnx.ModelProto):
        loaded = Loaded(model, "model", None)
    else:
        path = Path(model)
        loaded = Loaded(_parse_file(path), str(path), path.parent, path)
    _check_versions(loaded)
    return loaded


def _parse_file(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DlcError(f"{path}: cannot read the model: {error.strerror or error}") from error
    if not data:
        raise DlcError(f"{path}: not an ONNX model: the file is empty")
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:
        raise DlcError(f"{path}: not an ONNX model, or a truncated one: {_one_line(error)}") from error


def _check_versions(loaded: Loaded) -> None:
    proto, name = loaded.proto, loaded.name
    if not proto.HasField("graph") or not proto.ir_version:
        raise DlcError(f"{name}: not an ONNX model: it has no graph or no IR version")
    if not _OLDEST_IR <= proto.ir_version <= onnx.IR_VERSION:
        raise DlcError(f"{name}: IR version {proto.ir_version} is not in [{_OLDEST_IR}, {onnx.IR_VERSION}]")
    if not all(isinstance(text, str) for text in _texts(proto)):
        raise DlcError(f"{name}: not a valid ONNX model: a name or another text is not UTF-8")
    for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
        _check_opsets(imports, name)
    if not proto.opset_import:
        raise DlcError(f"{name}: not a valid ONNX model: it imports no operator set")


def _check_opsets(imports: Iterable[onnx.OperatorSetIdProto], name: str) -> None:
    newest, versions = onnx.defs.onnx_opset_version(), dict[str, int]()
    for entry in imports:
        domain = domain_of(entry.domain)
        if not domain and not OLDEST_OPSET <= entry.version <= newest:
            raise DlcError(f"{name}: opset {entry.version} is not in [{OLDEST_OPSET}, {newest}]")
        if versions.setdefault(domain, entry.version) != entry.version:
            text = f"{versions[domain]} and {entry.version}"
            raise DlcError(f"{name}: it imports two versions of the operators of '{domain or 'ai.onnx'}': {text}")


_UNREAD = {"doc_string", "producer_name", "producer_version", "metadata_props"}  # free text that nothing depends on


def _texts(message: Any) -> Iterator[str | bytes]:
    """The strings in a message. Protobuf returns one that is not UTF-8 as bytes, which would fail anywhere."""
    for field, value in message.ListFields():
        if field.name in _UNREAD:
            continue
        if field.type == field.TYPE_STRING:
            yield from (value if field.is_repeated else [value])
        elif field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _texts(inner)


def check(loaded: Loaded) -> None:
    """Hold the model to `onnx.checker`."""
    outside = _outside(loaded.proto)
    if outside and loaded.folder is None:  # the checker would look for the file in the working directory
        raise DlcError(f"{loaded.name}: tensor '{outside[0].name}' is in an external file: give the model's path")
    try:
        # The path form also checks external data, and models beyond protobuf's 2 GB.
        onnx.checker.check_model(str(loaded.path) if loaded.path is not None else loaded.proto)
    except Exception as error:
        raise DlcError(f"{loaded.name}: not a valid ONNX model: {_one_line(error)}") from error


def read_external(loaded: Loaded) -> dict[str, np.ndarray]:
    """The graph's initialisers that lie in other files, by name: mapped, not read, for they may be many gigabytes.

    Tensors of attributes and of functions, and types narrower than a byte, are read into the proto.

    Raises:
        DlcError: a file is missing, too short or outside the model's folder; names the tensor.
    """
    initializers = {id(t) for t in loaded.proto.graph.initializer}
    mapped = {}
    for tensor in _outside(loaded.proto):
        assert loaded.folder is not None
        try:
            data, dtype = _data(tensor, loaded.folder), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if id(tensor) in initializers and str(dtype) not in _PACKED:
                mapped[tensor.name] = data.view(dtype).reshape(tensor.dims)
                continue
            tensor.raw_data = data.tobytes()
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        except Exception as error:
            reason = _one_line(error)
            raise DlcError(f"{loaded.name}: cannot read the external data of '{tensor.name}': {reason}") from error
    return mapped


def _outside(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for t in _tensors(proto) if onnx.external_data_helper.uses_external_data(t)]


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors_of(proto.graph.node)
    yield from proto.graph.initializer
    for function in proto.functions:
        yield from _tensors_of(function.node)


def _tensors_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from [attribute.t, *attribute.tensors]
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer
            yield from _tensors_of(graph.node)


_PACKED = {"int4": 2, "uint4": 2, "float4_e2m1fn": 2, "int2": 4, "uint2": 4}  # elements a byte


def _data(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The tensor's bytes, mapped from its file. ValueError or OSError where they are not there."""
    info = onnx.external_data_helper.ExternalDataInfo(tensor)
    path = folder / info.location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"'{info.location}' is outside the model's folder")
    dtype, begin = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), int(info.offset or 0)
    needed = -(-math.prod(tensor.dims) * dtype.itemsize // _PACKED.get(str(dtype), 1))
    size = path.stat().st_size
    if begin + needed > size:
        raise ValueError(f"'{info.location}' has {size} bytes, the tensor needs {needed} from {begin} on")
    if info.length and int(info.length) != needed:
        raise ValueError(f"it is said to be {int(info.length)} bytes long, its shape and type need {needed}")
    return np.memmap(path, np.uint8, "r", begin, needed) if needed else np.empty(0, np.uint8)


def _one_line(error: Exception) -> str:
    """The first informative line of a message from onnx or protobuf, whose errors run over several."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.startswith("==> Context")), type(error).__name__)
    context = next((line.removeprefix("==> Context: ") for line in lines if line.startswith("==> Context")), "")
    return f"{text} ({context})" if context else text
