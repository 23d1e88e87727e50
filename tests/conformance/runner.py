"""Runs ONNX's own node cases through the importer and a target."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

import dlc
from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.interpret import interpret

Run = Callable[[onnx.ModelProto, Sequence[np.ndarray]], list[np.ndarray]]
_LARGEST_BOUND = 4096


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        status: ``pass``; ``unsupported`` (a DlcError said so); ``wrong`` (another result, or another exception).
        bound: how many of its inputs had to be made constants, because shapes depend on them.
        reason: for what did not pass.
    """

    status: str
    bound: int = 0
    reason: str = ""


# ONNX leaves the generator open; these cases compare with the values of numpy's.
_OTHER_GENERATOR = ("test_bernoulli", "test_training_dropout")

HERE = Path(__file__).parent


def listed(target: str) -> dict[str, str]:
    """The reason why a case is not expected to pass, by the names of all cases; empty for those that are."""
    passing = HERE / f"passing-{target}.txt"
    passing = passing if passing.is_file() else HERE / "passing.txt"
    expected = {line: "" for line in passing.read_text().splitlines()}
    others = dict(line.split("\t", 1) for line in (HERE / "unsupported.txt").read_text().splitlines())
    return {**others, **expected}


def write_lists(outcomes: dict[str, tuple[str, str]], target: str) -> None:
    """Make what was seen the expectation: (status, reason) by name."""
    name = "passing.txt" if target == "reference" else f"passing-{target}.txt"
    passing = sorted(n for n, (status, _) in outcomes.items() if status == "pass")
    (HERE / name).write_text("".join(f"{n}\n" for n in passing))
    if target == "reference":
        rest = sorted((n, reason) for n, (status, reason) in outcomes.items() if status != "pass")
        (HERE / "unsupported.txt").write_text("".join(f"{n}\t{reason}\n" for n, reason in rest))


@functools.cache
def cases() -> dict[str, Any]:
    """All node cases by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in sorted(collect_testcases(None), key=lambda c: c.name)}


def _reference(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    graph = view(import_model(model))
    return interpret(graph, {v.name: a for v, a in zip(graph.inputs, inputs, strict=True)})


def _compiled(target: str) -> Run:
    def run(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        session = dlc.load(dlc.compile(model, target=target))
        results = session.run(dict(zip((i.name for i in session.inputs), inputs, strict=True)))
        return [results[o.name] for o in session.outputs]

    return run


def runner(target: str) -> Run:
    """How to run a model: the interpreter for ``reference``, else the compiler with that target."""
    return _reference if target == "reference" else _compiled(target)


def _bind(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model with some inputs as initialisers."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    kept = [i for i in bound.graph.input if i.name not in values]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in values.items())
    return bound


def _array(value: Any) -> Any:
    """A case's value; types that numpy lacks come as protos."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _attempts(names: Sequence[str], arrays: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Which inputs to bind: none; then what looks like a parameter, the safest guess first."""
    small = [(i, n, a) for i, (n, a) in enumerate(zip(names, arrays, strict=True)) if a.size <= _LARGEST_BOUND]
    seen: list[list[str]] = []
    for chosen in (
        [],
        [(n, a) for i, n, a in small if i and a.dtype.kind in "iub"],
        [(n, a) for i, n, a in small if i and (a.dtype.kind in "iub" or a.ndim <= 1)],
        [(n, a) for _, n, a in small if a.dtype.kind in "iub" or a.ndim <= 1],
    ):
        if [n for n, _ in chosen] not in seen:
            seen.append([n for n, _ in chosen])
            yield dict(chosen)


def _compare(case: Any, expected: Sequence[Any], actual: Sequence[np.ndarray]) -> str:
    """The first difference beyond ONNX's tolerance, empty when there is none."""
    for index, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        if str(wanted.dtype) != str(got.dtype) or wanted.shape != got.shape:
            return f"output {index} is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
        wide = [a if a.dtype.kind in "fiub" else a.astype(np.float32) for a in (wanted, got)]
        if not np.allclose(wide[1], wide[0], rtol=case.rtol, atol=case.atol, equal_nan=True):
            with np.errstate(all="ignore"):
                worst = np.nanmax(np.abs(wide[0].astype(np.float64) - wide[1].astype(np.float64)))
            return f"output {index} differs by up to {worst:g}"
    return ""


def run_case(case: Any, target: str) -> Outcome:
    """Run one case, all of its data sets."""
    run = runner(target)
    most = 0
    for inputs, expected in case.data_sets:
        constants = {t.name for t in case.model.graph.initializer}
        names = [i.name for i in case.model.graph.input if i.name not in constants]
        inputs, expected = ([_array(a) for a in side] for side in (inputs, expected))
        if not all(isinstance(a, np.ndarray | np.generic) for a in [*inputs, *expected]) or len(names) != len(inputs):
            return Outcome("unsupported", reason="sequences and optional values")
        arrays = [np.asarray(a) for a in inputs]
        failure = ""
        for values in _attempts(names, arrays):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rest = [a for n, a in zip(names, arrays, strict=True) if n not in values]
                    actual = run(_bind(case.model, values) if values else case.model, rest)
            except DlcError as error:
                failure = str(error).removeprefix("model: ").replace("operators that are not supported: ", "")
                continue
            except Exception as error:
                return Outcome("wrong", len(values), f"{type(error).__name__}: {' '.join(str(error).split())}")
            difference = _compare(case, [np.asarray(e) for e in expected], actual)
            if difference.startswith("output 0 differs") and case.name.startswith(_OTHER_GENERATOR):
                return Outcome("unsupported", reason="compares the values of another random generator")
            if difference:
                return Outcome("wrong", len(values), difference)
            failure, most = "", max(most, len(values))
            break
        if failure:
            return Outcome("unsupported", reason=failure)
    return Outcome("pass", most)
