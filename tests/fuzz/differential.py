"""One random graph through the compiler: does every target give what the oracle gives?"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import dlc
from dlc.errors import DlcError
from tests.fuzz.generate import Case
from tests.fuzz.oracle import Expected, OracleError, difference, expectations

TARGETS = ("reference", "cpu")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a case.

    Attributes:
        kind: target and class of failure; a smaller case must fail with the same.
        text: one line for people.
    """

    kind: str
    text: str


def _runs(case: Case) -> int:
    """How many disturbed copies to run: roundings to codes need more of them to be seen."""
    steps = any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in case.model.graph.node)
    return 8 if steps else 3


#: Whether a pool whose window is larger than its image has a result is open: a refusal, or nothing.
_NO_WINDOW = re.compile(r"does not fit extent|has shape \[([^\]]*\b)?0\b")


def _lenient(case: Case) -> bool:
    """Whether an oracle takes sizes that ONNX does not allow.

    onnxruntime does not hold a GatherND's batches to be as many in both operands, repeats extents of one in an Einsum
    and in the input of a PRelu, and drops what a Compress's condition has too much; onnx.reference does not hold a
    ReverseSequence's lengths to be as many as its batches, nor the sizes of a Split to be all of its input.
    """
    return any(
        node.op_type in ("Einsum", "Compress", "PRelu", "ReverseSequence", "Split")
        or (node.op_type == "GatherND" and any(a.name == "batch_dims" and a.i for a in node.attribute))
        for node in case.model.graph.node
    )


def _failure(target: str, stage: str, error: Exception) -> Finding:
    what = "refused" if isinstance(error, DlcError) else type(error).__name__
    return Finding(
        f"{target} {stage} {what}", f"{target}, {stage}: {type(error).__name__}: {' '.join(str(error).split())}"
    )


def compare(session: dlc.Session, target: str, case: Case, expected: Sequence[Expected]) -> Finding | None:
    """Run a loaded model and compare its outputs."""
    try:
        results = session.run(case.inputs)
    except Exception as error:
        return _failure(target, "run", error)
    for wanted in expected:
        text = difference(wanted, np.asarray(results[wanted.name]))
        if text:
            return Finding(f"{target} differs", f"{target}: {text}")
    return None


def check(case: Case, others: Sequence[Case] = (), targets: Sequence[str] = TARGETS) -> tuple[Finding | None, str]:
    """(what is wrong, the oracle's name); `others` are the same model with inputs of other sizes.

    The oracle's name is empty where no oracle runs the case, which then says nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            oracle, expected = expectations(case.model, case.inputs, _runs(case))
        except OracleError:
            return None, ""
        also = []
        for other in () if _lenient(case) else others:
            try:
                wanted = expectations(other.model, other.inputs, _runs(other), oracle)[1]
            except OracleError:  # a constant in the graph belongs to the first sizes
                continue
            if all(w.array.size for w in wanted):  # else some window does not fit
                also.append((other, wanted))
        for target in targets:
            try:
                session = dlc.load(dlc.compile(case.model, target=target))
            except Exception as error:
                return _failure(target, "compile", error), oracle
            for each, wanted in [(case, expected), *also]:
                found = compare(session, target, each, wanted)
                if found is not None and not (each is not case and _NO_WINDOW.search(found.text)):
                    return found, oracle
    return None, oracle
