"""Cases as files: NAME.onnx beside NAME.npz, which holds the inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.fuzz.generate import Case


def save(case: Case, folder: Path, name: str) -> Path:
    """Write a case; the path of its model."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    np.savez(path.with_suffix(".npz"), **case.inputs)  # type: ignore[arg-type]
    path.write_bytes(case.model.SerializeToString(deterministic=True))
    return path


def load(path: Path) -> Case:
    """Read a case."""
    model = onnx.load_model_from_string(path.read_bytes())
    data = path.with_suffix(".npz")
    inputs = dict(np.load(data)) if data.is_file() else {}
    sizes = {}
    for value in model.graph.input:
        if value.name in inputs:
            for dim, extent in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
                if dim.dim_param:
                    sizes[dim.dim_param] = extent
    return Case(model, inputs, sizes)
