"""The compile cache's key: a hash of everything that can change a package.

That is the model's bytes and those of its external data, the options, the calibration data's content, the target with
what it detected, the machine, dlc's own sources, and the versions of what takes part in compiling. Nothing here imports
TVM, and onnx only for a model with external data: a hit must not cost what a compilation does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dlc.options import Options
from dlc.targets.base import Target

#: What takes part in compiling besides dlc itself.
DISTRIBUTIONS = (
    "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "numpy", "onnx", "ml_dtypes", "safetensors", "protobuf",
)  # fmt: skip
_FOLDERS = ("dlc", "dlc.frontends", "dlc.passes", "dlc.targets", "dlc.zoo")
_EXTERNAL = b"location"  # the key that every reference to external data has, as text, in the model's file


class NotCacheableError(Exception):
    """An input whose content cannot be told without using it up, or cannot be read; says which."""


class _Hash:
    """SHA-256 over labelled parts; their lengths are part of it, so no two sequences of parts run together."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def data(self, label: str, data: Any) -> None:
        view = memoryview(data).cast("B")
        self._hash.update(f"{label}:{len(view)}\n".encode())
        self._hash.update(view)

    def json(self, label: str, value: Any) -> None:
        self.data(label, json.dumps(value, default=repr).encode())

    def file(self, label: str, path: Path) -> None:
        with path.open("rb") as file:
            self.data(label, hashlib.file_digest(file, "sha256").digest())

    def array(self, label: str, value: Any) -> None:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise NotCacheableError(f"{label} is an array of objects")
        self.json(f"{label} type", [array.dtype.str, str(array.dtype), list(array.shape)])
        self.data(label, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def compile_key(model: Any, options: Options, calibration: Any, target: Target) -> str:
    """The key of one compilation, 64 hexadecimal digits.

    Args:
        model: a path or an ``onnx.ModelProto`` (`dlc.compiler.model_source` of what the user gave).
        options, calibration: as for `dlc.compiler.compile_model`.
        target: what ``options.target`` names.

    Raises:
        NotCacheableError: there is no telling whether another compilation has the same input.
    """
    key = _Hash()
    try:
        _add_model(key, model)
        _add_calibration(key, calibration)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise NotCacheableError(f"an input cannot be read: {error}") from error
    key.json("options", options.as_json())
    key.json("target", {"class": f"{type(target).__module__}.{type(target).__qualname__}", "spec": target.spec})
    key.json("detected", target.identity())
    key.json("machine", _machine())
    key.json("sources", source_digest(type(target).__module__.partition(".")[0]))
    key.json("versions", versions())
    return key.hexdigest()


# --- the input -------------------------------------------------------------------------------------------------------


def _add_model(key: _Hash, model: Any) -> None:
    if not isinstance(model, str | os.PathLike):
        try:
            data = model.SerializeToString(deterministic=True)
        except Exception as error:  # protobuf's limit of 2 GB, or no model at all
            raise NotCacheableError(f"the model cannot be serialised: {error}") from error
        key.data("model", data)
        return
    path = Path(model)
    content = path.read_bytes()
    key.data("model", content)
    if _EXTERNAL in content:
        for location in sorted(_external_locations(content)):
            key.json("external name", location)
            key.file("external data", path.parent / location)


def _external_locations(content: bytes) -> set[str]:
    """The files that a model's tensors refer to, those of subgraphs and functions too."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        raise NotCacheableError("the model cannot be parsed") from error
    nodes = [node for function in model.functions for node in function.node]
    tensors = [*_tensors(model.graph), *_node_tensors(nodes)]
    return {e.value for tensor in tensors for e in tensor.external_data if e.key == _EXTERNAL.decode()}


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from (tensor for sparse in graph.sparse_initializer for tensor in (sparse.values, sparse.indices))
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _add_calibration(key: _Hash, calibration: Any) -> None:
    if isinstance(calibration, str) and calibration.startswith("zoo:"):
        from dlc.zoo import samples

        calibration = samples(calibration.removeprefix("zoo:"), "calibration")
    if calibration is None or (isinstance(calibration, str) and calibration.partition(":")[0] == "random"):
        key.json("calibration", calibration)
    elif isinstance(calibration, str | os.PathLike):
        path = Path(calibration)
        for file in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
            key.file("calibration file", file)
    elif isinstance(calibration, Mapping):
        _add_sample(key, calibration)
    elif isinstance(calibration, list | tuple):
        for sample in calibration:
            if not isinstance(sample, Mapping):
                raise NotCacheableError("a calibration sample is not a dict")
            _add_sample(key, sample)
    else:
        raise NotCacheableError("calibration data that can only be iterated is not read twice; a list would be")


def _add_sample(key: _Hash, sample: Mapping[Any, Any]) -> None:
    key.json("sample", len(sample))
    for name, array in sample.items():
        key.array(f"array {name!r}", array)


# --- the compiler ----------------------------------------------------------------------------------------------------


def _machine() -> dict[str, Any]:
    """Instruction sets, caches, measured speeds; the number of cores in use and the processor's name decide nothing."""
    from dlc.hardware import measured_machine

    found = asdict(measured_machine())
    return {**{k: v for k, v in found.items() if k not in ("cores", "model")}, "features": sorted(found["features"])}


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and what takes part in compiling; a distribution that is not there has the version ''."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return ""

    return {"python": platform.python_version(), **{name: installed(name) for name in DISTRIBUTIONS}}


@functools.cache
def source_digest(package: str) -> str:
    """A hash over the sources of dlc, and of the top-level `package` that a target from elsewhere comes from."""
    key = _Hash()
    for name in _FOLDERS if package == "dlc" else (*_FOLDERS, package):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name  # it is imported
        roots = [Path(root) for root in spec.submodule_search_locations or ()]
        if not roots and spec.origin:  # one module, not a package
            key.file("module", Path(spec.origin))
        for root in roots:
            for file in sorted(root.rglob("*.py")):
                key.json("source name", [name, file.relative_to(root).as_posix()])
                key.data("source", file.read_bytes())
    return key.hexdigest()
