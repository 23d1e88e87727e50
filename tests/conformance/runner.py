"""Runs ONNX's own node cases through the importer and a target."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Sequence
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

Run = Callable[[onnx.ModelProto, Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        status: ``pass``; ``unsupported`` (a DlcError said so); ``wrong`` (another result, or another exception).
        reason: for what did not pass.
    """

    status: str
    reason: str = ""


# Cases whose expected values another correct implementation need not give, by the beginning of their names.
_GENERATOR = "compares with the values of numpy's random generator, which ONNX leaves open"
_NOT_COMPARABLE = {
    "test_bernoulli": _GENERATOR,
    "test_training_dropout": _GENERATOR,
    "test_dft_inverse": "expects the rounding errors of numpy's transform where the result is zero",
}

HERE = Path(__file__).parent


DIFFERS = "differs: "  # begins the reason of a case whose results a target is known to make otherwise
_SAMPLE = 250


def _lines(name: str) -> list[str]:
    path = HERE / name
    return path.read_text().splitlines() if path.is_file() else []


def listed(target: str) -> dict[str, str]:
    """The reason why a case is not expected to pass, by the names of all cases; empty for those that are.

    ``passing.txt`` and ``unsupported.txt`` are the reference's; ``unsupported-TARGET.txt`` says what else fails.
    """
    expected = dict.fromkeys(_lines("passing.txt"), "")
    others = dict(line.split("\t", 1) for line in _lines("unsupported.txt") + _lines(f"unsupported-{target}.txt"))
    return {**expected, **others}


def sample() -> list[str]:
    """The cases of the quick run of a compiled target: each operator, and some more."""
    return _lines("sample.txt")


def operators(case: Any) -> set[str]:
    """The ONNX operators of a case's graph."""
    return {node.op_type for node in case.model.graph.node}


def choose_sample(names: Sequence[str]) -> list[str]:
    """A seeded choice of cases among `names` in which every operator of theirs occurs."""
    shuffled = random.Random(0).sample(sorted(names), len(names))
    covered: set[str] = set()
    chosen = []
    for name in shuffled:
        if not operators(cases()[name]) <= covered:
            chosen.append(name)
            covered |= operators(cases()[name])
    rest = [name for name in shuffled if name not in set(chosen)]
    return sorted(chosen + rest[: max(0, _SAMPLE - len(chosen))])


def write_lists(outcomes: dict[str, tuple[str, str]], target: str) -> None:
    """Make what was seen the expectation: (status, reason) by name."""
    passing = sorted(n for n, (status, _) in outcomes.items() if status == "pass")
    failing = sorted((n, reason) for n, (status, reason) in outcomes.items() if status != "pass")
    if target == "reference":
        (HERE / "passing.txt").write_text("".join(f"{n}\n" for n in passing))
        (HERE / "sample.txt").write_text("".join(f"{n}\n" for n in choose_sample(passing)))
        name = "unsupported.txt"
    else:
        own, reference = listed(target), listed("reference")
        failing = [(n, own[n] if own[n].startswith(DIFFERS) else r) for n, r in failing if not reference[n]]
        name = f"unsupported-{target}.txt"
    (HERE / name).write_text("".join(f"{n}\t{reason}\n" for n, reason in failing))


@functools.cache
def cases() -> dict[str, Any]:
    """All node cases by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in sorted(collect_testcases(None), key=lambda c: c.name)}


def _reference(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    graph = view(import_model(model))
    return interpret(graph, {v.name: a for v, a in zip(graph.inputs, inputs, strict=True)})


def _compiled(target: str) -> Run:
    def run(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
        session = dlc.load(dlc.compile(model, target=target))
        results = session.run(dict(zip((i.name for i in session.inputs), inputs, strict=True)))
        return [results[o.name] for o in session.outputs]

    return run


def runner(target: str) -> Run:
    """How to run a model: the interpreter for ``reference``, else the compiler with that target."""
    return _reference if target == "reference" else _compiled(target)


def _value(value: Any) -> Any:
    """A case's value; types that numpy lacks come as protos."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else value


def _compare(case: Any, expected: Sequence[Any], actual: Sequence[Any]) -> str:
    """The first difference beyond ONNX's tolerance, empty when there is none."""
    for index, (wanted, got) in enumerate(zip(expected, actual, strict=True)):
        difference = _difference(case, wanted, got)
        if difference:
            return f"output {index} {difference}"
    return ""


def _difference(case: Any, wanted: Any, got: Any) -> str:
    if wanted is None or isinstance(wanted, list):
        if (wanted is None) != (got is None) or (wanted is not None and len(wanted) != len(got)):
            return f"is {got}, not {wanted}"
        found = [_difference(case, w, g) for w, g in zip(wanted or [], got or [], strict=True)]
        return next((text for text in found if text), "")
    wanted, got = np.asarray(wanted), np.asarray(got)
    if wanted.dtype.kind in "OUS":  # strings
        same = wanted.shape == got.shape and bool(np.all(wanted.astype(str) == got.astype(str)))
        return "" if same else f"is {got}, not {wanted}"
    if str(wanted.dtype) != str(got.dtype) or wanted.shape != got.shape:
        return f"is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
    wide = [a if a.dtype.kind in "fiub" else a.astype(np.float32) for a in (wanted, got)]
    if not np.allclose(wide[1], wide[0], rtol=case.rtol, atol=case.atol, equal_nan=True):
        with np.errstate(all="ignore"):
            worst = np.nanmax(np.abs(wide[0].astype(np.float64) - wide[1].astype(np.float64)))
        return f"differs by up to {worst:g}"
    return ""


def run_case(case: Any, target: str) -> Outcome:
    """Run one case, all of its data sets."""
    run = runner(target)
    for inputs, expected in case.data_sets:
        given, wanted = ([_value(a) for a in side] for side in (inputs, expected))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                actual = run(case.model, given)
        except DlcError as error:
            failure = str(error).removeprefix("model: ").replace("operators that are not supported: ", "")
            return Outcome("unsupported", failure)
        except Exception as error:
            return Outcome("wrong", f"{type(error).__name__}: {' '.join(str(error).split())}")
        difference = _compare(case, wanted, actual)
        if " differs by up to " in difference:
            for name, reason in _NOT_COMPARABLE.items():
                if case.name.startswith(name):
                    return Outcome("unsupported", reason)
        if difference:
            return Outcome("wrong", difference)
    return Outcome("pass")
