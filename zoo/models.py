"""Running what is evaluated: an ONNX file by onnxruntime, or a compiled package by dlc's own runtime."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dlc.errors import DlcError

#: How `compiled` can quantise.
QUANTIZED: tuple[Literal["none", "int8"], ...] = ("none", "int8")
#: Samples a call where the model leaves the batch open.
BATCH = 100


class Model(Protocol):
    """A model that is ready to run.

    Attributes:
        path: of its file.
        inputs: the shape of each input by name; an extent without a fixed value is a str.
    """

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, for one array an input."""


class OnnxModel:
    """The ONNX model at a path, run by onnxruntime on one thread."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            DlcError: onnxruntime is not installed, or it cannot load the file.
        """
        try:
            import onnxruntime
        except ImportError:
            raise DlcError("evaluating an ONNX file needs onnxruntime: pip install 'dlc[bench]'") from None
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise DlcError(f"onnxruntime cannot load {path}: {error}") from error
        self.inputs: Mapping[str, tuple[int | str, ...]] = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))


class PackageModel:
    """The compiled package at a path, run by dlc's own runtime."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = importlib.import_module("dlc").load(path)
        self.inputs: Mapping[str, tuple[int | str, ...]] = {i.name: tuple(i.shape) for i in self._session.inputs}

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(self._session.run(dict(feed)))


def compiled(name: str, quantize: Literal["none", "int8"]) -> PackageModel:
    """The committed model of the family `name` as a package for this machine, calibrated with the family's samples."""
    import dlc

    calibration = f"zoo:{name}" if quantize == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.dlc"
        dlc.compile(f"zoo:{name}", quantize=quantize, calibration=calibration).save(path)
        return PackageModel(path)


def run_in_batches(model: Model, feed: Mapping[str, np.ndarray], batch: int = BATCH) -> dict[str, np.ndarray]:
    """Run any number of independent samples, which lie along the first axis of every input and output.

    Args:
        model: takes a fixed number of samples a call, which is kept to, or any number.
        feed: one array an input, equally many samples in each and at least one.
        batch: samples a call where the model leaves it open.

    Returns:
        The outputs by name. The last call is filled up with zeros, whose outputs are dropped.
    """
    fixed = next(iter(model.inputs.values()))[0]
    size = fixed if isinstance(fixed, int) else batch
    count = len(next(iter(feed.values())))
    parts = []
    for start in range(0, count, size):
        chunk = {name: array[start : start + size] for name, array in feed.items()}
        filling = size - min(size, count - start)
        if filling:
            chunk = {
                name: np.concatenate([array, np.zeros((filling, *array.shape[1:]), array.dtype)])
                for name, array in chunk.items()
            }
        parts.append(model.run(chunk))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
