"""Writing an exported model, once it has been compared with what it was made from, and reading its notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dlc.errors import DlcError
from dlc.runtime.files import atomic_write


def run_exported(content: bytes, output: str, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    """One output of a serialised ONNX model, by onnxruntime, or by onnx's slower evaluator where that is missing."""
    session: Any
    try:
        from onnxruntime import InferenceSession

        session = InferenceSession(content, providers=["CPUExecutionProvider"])
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(onnx.load_from_string(content))
    return np.asarray(session.run([output], dict(feed))[0])


def write_model(content: bytes, path: Path, difference: float, limit: float, unit: str, source: str = "") -> float:
    """Write the bytes of an ONNX model whose outputs differ from its source's by at most `limit`.

    Args:
        content: the serialised model.
        path: where to write; its folder is made.
        difference, limit: in `unit`.
        unit: what differs, for the message: ``a logit``.
        source: what it was compared with, for the message: ``from torch``.

    Returns:
        `difference`.

    Raises:
        DlcError: it is larger; nothing is written.
    """
    if not difference <= limit:
        compared = f"differs {source}" if source else "differs"
        raise DlcError(f"the exported ONNX {compared} by {difference:g} in {unit} (limit {limit:g})")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return difference


def add_notes(proto: onnx.ModelProto, notes: Mapping[str, Any]) -> None:
    """Let a model carry the notes on its training, for `read_notes`."""
    proto.metadata_props.add(key="notes", value=json.dumps(dict(notes)))


def read_notes(path: Path, name: str) -> dict[str, Any]:
    """The notes on its training that an exported file of the family `name` carries, as JSON under ``notes``.

    Raises:
        DlcError: it has none.
    """
    for entry in onnx.load(path).metadata_props:
        if entry.key == "notes":
            return dict(json.loads(entry.value))
    raise DlcError(f"{path} has no notes on its training: write it by `dlc zoo export {name} --weights`")


def count_parameters(path: Path) -> int:
    """The elements of all initialisers of a file."""
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
