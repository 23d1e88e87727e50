"""Calibration data in every form that `dlc.compile` takes, as samples by the IR's input names.

Files and random data are read by `dlc.passes.quantize.samples`; this adds arrays in memory and iterables, and speaks of
inputs by their ONNX names, which may not be identifiers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Value
from dlc.runtime.session import TensorInfo

_BATCH = 32  # samples at once where the model's batch is symbolic


@dataclass(frozen=True)
class Renamed:
    """Samples whose arrays are called by ONNX names, by the IR's."""

    samples: Any
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for sample in self.samples:
            if not isinstance(sample, Mapping):
                raise DlcError(f"calibration: a sample is a {type(sample).__name__}, expected a dict of arrays")
            yield {self.names.get(name, name): np.asarray(array) for name, array in sample.items()}


class _Stream(Renamed):
    """The same for an iterable of unknown length."""

    __len__ = None  # type: ignore[assignment]


def samples_of(calibration: Any, module: Any) -> Iterable[Mapping[str, np.ndarray]]:
    """The samples of any form of calibration data.

    Args:
        calibration: a path, ``zoo:NAME``, ``random[:SEED]``, a dict of arrays with a leading
            sample axis, or an iterable of dicts.
        module: the IRModule, for the inputs' names, extents and dtypes.

    Raises:
        DlcError: the data do not match the inputs.
    """
    from dlc.ir.convert import view
    from dlc.passes.quantize.samples import calibration_samples

    graph = view(module)
    onnx_names = graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs]
    names = {name: value.name for name, value in zip(onnx_names, graph.inputs, strict=True)}
    renamed = replace(
        graph, inputs=tuple(replace(v, name=name) for name, v in zip(onnx_names, graph.inputs, strict=True))
    )
    if isinstance(calibration, str) and calibration.startswith("zoo:"):
        from dlc.zoo import samples

        calibration = samples(calibration.removeprefix("zoo:"), "calibration")
    if isinstance(calibration, str | os.PathLike):
        text = os.fspath(calibration)
        if text.partition(":")[0] == "random":
            return calibration_samples(text, graph)
        return Renamed(calibration_samples(text, renamed), names)
    if isinstance(calibration, Mapping):
        return Renamed(cut(calibration, renamed.inputs), names)
    if isinstance(calibration, Iterable):
        return (Renamed if hasattr(calibration, "__len__") else _Stream)(calibration, names)
    raise DlcError(f"calibration is a {type(calibration).__name__}; expected a path, arrays, samples or 'random'")


def cut(arrays: Mapping[str, Any], inputs: Sequence[Value | TensorInfo]) -> list[dict[str, np.ndarray]]:
    """One dict a sample, from arrays with a leading sample axis; `_BATCH` at once where the inputs' batch is symbolic.

    Raises:
        DlcError: the arrays do not match the inputs.
    """
    given = {str(name): np.asarray(array) for name, array in arrays.items()}
    known = {value.name: value for value in inputs}
    for name in known:
        if name not in given:
            raise DlcError(f"calibration: no array for input '{name}'; it has {', '.join(given) or 'none'}")
    for name in given:
        if name not in known:
            raise DlcError(f"calibration: array '{name}' is no input; the inputs are {', '.join(known)}")
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in given.items()}
    if len(set(counts.values())) > 1:
        raise DlcError(f"calibration: the arrays hold different numbers of samples: {counts}")
    steps = {_step(value, given[name]) for name, value in known.items()}
    if len(steps) > 1:
        raise DlcError("calibration: some arrays have an extra sample axis and others do not")
    (step,) = steps
    count = next(iter(counts.values()), 0)
    if step == 0:
        return [{name: array[i] for name, array in given.items()} for i in range(count)]
    # A symbolic batch takes the rest as it is; a fixed one must be filled.
    fixed = any(isinstance(value.shape[0], int) for value in known.values())
    ends = range(step, count + (1 if fixed else step), step)
    return [{name: array[end - step : end] for name, array in given.items()} for end in ends]


def _step(value: Value | TensorInfo, array: np.ndarray) -> int:
    """How many entries of the leading axis make a sample; 0 when each entry is one whole input."""

    def fits(shape: tuple[int, ...], expected: tuple[Any, ...]) -> bool:
        pairs = zip(shape, expected, strict=False)
        return len(shape) == len(expected) and all(not isinstance(d, int) or d == n for n, d in pairs)

    if array.dtype != np.dtype(value.dtype):
        raise DlcError(f"calibration: array '{value.name}' is {array.dtype}, but the input is {value.dtype}")
    if value.shape and fits(array.shape[1:], value.shape[1:]):
        batch = value.shape[0] if isinstance(value.shape[0], int) else _BATCH
        if isinstance(value.shape[0], int) and array.shape[0] < batch:
            raise DlcError(f"calibration: {array.shape[0]} samples do not fill the batch of {batch} of '{value.name}'")
        return int(batch)
    if array.ndim and fits(array.shape[1:], value.shape):
        return 0
    expected = ", ".join(str(d) for d in value.shape)
    raise DlcError(
        f"calibration: array '{value.name}' has shape {list(array.shape)}, but the input has shape [{expected}]: "
        "expected that with a leading sample axis, or with samples along its first axis"
    )
