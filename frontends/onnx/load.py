"""Reading a model: the file, the protobuf, ONNX's own checker, versions, external data. All failures are DlcError."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.checker
import onnx.external_data_helper

from dlc.errors import DlcError

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
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not OLDEST_OPSET <= entry.version <= newest:
            raise DlcError(f"{name}: opset {entry.version} is not in [{OLDEST_OPSET}, {newest}]")
    if not proto.opset_import:
        raise DlcError(f"{name}: not a valid ONNX model: it imports no operator set")
    if not all(isinstance(text, str) for text in _texts(proto)):
        raise DlcError(f"{name}: not a valid ONNX model: a name is not UTF-8")


def _texts(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    """The names in a model. Protobuf returns a string field that is not UTF-8 as bytes, which would fail anywhere."""
    graph = proto.graph
    yield from (e.domain for e in proto.opset_import)
    for function in proto.functions:
        yield from (function.name, function.domain, function.overload, *function.input, *function.output)
        yield from (e.domain for e in function.opset_import)
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    yield from (
        dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_param")
    )
    for node in [*graph.node, *(n for f in proto.functions for n in f.node)]:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        yield from (text for a in node.attribute for text in (a.name, a.ref_attr_name))


def check(loaded: Loaded) -> None:
    """Hold the model to `onnx.checker`."""
    try:
        # The path form also checks external data, and models beyond protobuf's 2 GB.
        onnx.checker.check_model(str(loaded.path) if loaded.path is not None else loaded.proto)
    except Exception as error:
        raise DlcError(f"{loaded.name}: not a valid ONNX model: {_one_line(error)}") from error


def read_external(loaded: Loaded) -> None:
    """Read external data into the proto."""
    outside = [t.name for t in loaded.proto.graph.initializer if onnx.external_data_helper.uses_external_data(t)]
    if not outside:
        return
    if loaded.folder is None:
        raise DlcError(f"{loaded.name}: initializer '{outside[0]}' is in an external file: give the model's path")
    try:
        onnx.external_data_helper.load_external_data_for_model(loaded.proto, str(loaded.folder))
    except Exception as error:
        reason = _one_line(error)
        raise DlcError(f"{loaded.name}: cannot read the external data of its initializers: {reason}") from error


def _one_line(error: Exception) -> str:
    """The first informative line of a message from onnx or protobuf, whose errors run over several."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.startswith("==> Context")), type(error).__name__)
    context = next((line.removeprefix("==> Context: ") for line in lines if line.startswith("==> Context")), "")
    return f"{text} ({context})" if context else text
