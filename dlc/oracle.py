"""Other implementations of ONNX, behind one small interface: what `dlc check` compares with."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import DlcError


class Oracle(ABC):
    """Runs an ONNX model.

    Attributes:
        name: the implementation and its version, and why it was chosen where that needs saying.
    """

    name: str

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name."""

    @abstractmethod
    def values(self, inputs: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `names` that are values of the graph, inner ones too."""


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _known(names: Iterable[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    known = set(names)
    unknown = sorted(set(inputs) - known)
    if unknown:
        raise DlcError(f"the model has no input '{unknown[0]}': is it what the package was compiled from?")
    return {name: np.asarray(array) for name, array in inputs.items()}


class OnnxRuntime(Oracle):
    """onnxruntime on one thread of the CPU."""

    def __init__(self, source: Any, name: str) -> None:
        import onnxruntime

        self.name = f"onnxruntime {onnxruntime.__version__}"
        self._source, self._label = source, name
        self._session = self._open(source)

    def _open(self, source: Any) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what matters comes as an exception
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def _run(self, session: Any, names: list[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds = _known([i.name for i in session.get_inputs()], inputs)
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as error:
            raise DlcError(f"{self._label}: onnxruntime cannot run it: {_first_line(error)}") from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name."""
        return self._run(self._session, [o.name for o in self._session.get_outputs()], inputs)

    def values(self, inputs: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `names` that are values of the graph; runs a copy that has them as outputs."""
        import onnx

        model = _load(self._source, self._label)
        wanted = _graph_values(model, names)
        present = {o.name for o in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in present)
        try:
            session = self._open(model.SerializeToString())
        except Exception as error:
            raise DlcError(f"{self._label}: onnxruntime cannot show inner values: {_first_line(error)}") from error
        return self._run(session, wanted, inputs)


class OnnxReference(Oracle):
    """onnx.reference: the operators as onnx itself defines them, in numpy; slow."""

    def __init__(self, source: Any, name: str, why: str = "") -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.name = f"onnx.reference {onnx.__version__}{f' ({why})' if why else ''}"
        self._label = name
        try:
            self._model = _load(source, name)
            self._evaluator = ReferenceEvaluator(self._model)
        except DlcError:
            raise
        except Exception as error:
            raise DlcError(f"{name}: onnx.reference cannot load it: {_first_line(error)}") from error

    def _run(self, names: list[str], inputs: Mapping[str, np.ndarray], evaluator: Any) -> dict[str, np.ndarray]:
        feeds = _known([i.name for i in self._model.graph.input], inputs)
        try:
            results = evaluator.run(names, feeds)
        except Exception as error:
            raise DlcError(f"{self._label}: onnx.reference cannot run it: {_first_line(error)}") from error
        return {name: np.asarray(array) for name, array in zip(names, results, strict=True)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs by name."""
        return self._run([o.name for o in self._model.graph.output], inputs, self._evaluator)

    def values(self, inputs: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `names` that are values of the graph."""
        return self._run(_graph_values(self._model, names), inputs, self._evaluator)


def _load(source: Any, name: str, external: bool = True) -> Any:
    """The model, its external data too where those are wanted."""
    import onnx

    try:
        if isinstance(source, str):
            return onnx.load(source, load_external_data=external)
        return onnx.load_model_from_string(source)
    except Exception as error:
        raise DlcError(f"{name}: not an ONNX model: {_first_line(error)}") from error


def _graph_values(model: Any, names: Iterable[str]) -> list[str]:
    made = {output for node in model.graph.node for output in node.output}
    return [name for name in dict.fromkeys(names) if name in made]


def find_oracle(model: str | os.PathLike[str] | Any) -> Oracle:
    """onnxruntime if it is installed and can load the model, else onnx.reference.

    Args:
        model: a path, ``zoo:NAME`` or an ``onnx.ModelProto``.

    Raises:
        DlcError: the file cannot be read, or neither can load the model.
    """
    from dlc.compiler import model_source

    source = model_source(model)
    if isinstance(source, str | os.PathLike):
        label = str(source)
        if not Path(label).is_file():
            raise DlcError(f"cannot read {label}: no such file")
        source = label
    else:
        label, source = "model", source.SerializeToString()
    _load(source, label, external=False)  # says what is wrong with the file in words of its own
    try:
        return OnnxRuntime(source, label)
    except ImportError:
        return OnnxReference(source, label, "onnxruntime is not installed")
    except Exception as error:
        return OnnxReference(source, label, f"onnxruntime cannot load the model: {_first_line(error)}")
