"""What becomes of every ONNX operator on every target: found by importing ONNX's node cases and asking the targets.

No column is kept by hand. The versions are the importer's; the places are the targets' (`Target.places`); the int8
column is what the quantise passes make of the operator between two contractions; the counts are the conformance lists'.
Operators of com.microsoft have no node cases; the models of their tests stand in.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlc.compiler import common_module
from dlc.errors import DlcError
from dlc.frontends.onnx import supported
from dlc.frontends.onnx.functions import has_body, is_supported
from dlc.frontends.onnx.registry import lookup
from dlc.ir.convert import view
from dlc.ir.graph import Graph
from dlc.options import Options
from dlc.passes.quantize.plan import CONTRACTIONS
from dlc.placement import placements
from dlc.targets.base import HOST, KERNEL, NOWHERE, find_target
from dlc.targets.gpu.source import UNSUPPORTED
from tests.conformance import runner
from tests.frontends import test_vendor

TARGETS = ("reference", "cpu", "gpu", "vta")
VENDOR = "com.microsoft"
_ORDER = ("numpy", KERNEL, "cpu", HOST, NOWHERE)
Operator = tuple[str, str]  # domain and name


@dataclass
class Facts:
    """What was seen of one operator.

    Attributes:
        placed: whether it was seen in a model that was imported.
        units, reasons: by target, where its nodes run; why not in a kernel.
        int8: what quantisation made of it, in any of its cases.
        array: whether the accelerator took it then.
        cases, passed: ONNX's node cases that contain it, and how many of them pass on the CPU.
    """

    placed: bool = False
    units: dict[str, set[str]] = field(default_factory=lambda: {t: set() for t in TARGETS})
    reasons: dict[str, set[str]] = field(default_factory=lambda: {t: set() for t in TARGETS})
    int8: set[str] = field(default_factory=set)
    array: bool = False
    cases: int = 0
    passed: int = 0


# --- the corpus ------------------------------------------------------------------------------------------------------


def vendor_models() -> list[onnx.ModelProto]:
    """The models of the tests of com.microsoft."""
    found: list[onnx.ModelProto] = []
    build = test_vendor.graph_of

    def record(proto: onnx.ModelProto, **shapes: Any) -> Graph:
        found.append(proto)
        return build(proto, **shapes)

    with mock.patch.object(test_vendor, "graph_of", record), contextlib.redirect_stdout(io.StringIO()) as said:
        if pytest.main(["-q", "-p", "no:cacheprovider", str(test_vendor.__file__)]):
            raise SystemExit(f"the tests of com.microsoft fail: {said.getvalue()}")
    return found


def operators_of(graph: onnx.GraphProto) -> set[Operator]:
    """The operators of a graph; subgraphs are left out."""
    return {("" if n.domain == "ai.onnx" else n.domain, n.op_type) for n in graph.node}


def survey(models: Iterable[onnx.ModelProto], names: Collection[str]) -> dict[Operator, Facts]:
    """The facts of every operator that occurs in `models` and in ONNX's node cases, of which `names` are imported."""
    found: dict[Operator, Facts] = {}
    for model in models:
        _place(model, found)
    refused = {name for name, reason in runner.listed("cpu").items() if reason}
    for name, case in runner.cases().items():
        for operator in operators_of(case.model.graph):
            facts = found.setdefault(operator, Facts())
            facts.cases += 1
            facts.passed += name not in refused
        if name in names:
            if _place(case.model, found):
                _place(_with_constants(case), found)
            _probe(case, found)
    return found


def plain_cases() -> list[str]:
    """The node cases but those that are other cases, written as their operators' definitions."""
    return [name for name in runner.cases() if "expanded" not in name]


def _with_constants(case: Any) -> onnx.ModelProto:
    """A case with all inputs but the first constant, as the parameters of most models are."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = list(zip(case.model.graph.input, case.data_sets[0][0], strict=True))
    kept = [v for k, (v, a) in enumerate(inputs) if not k or not isinstance(a, np.ndarray) or a.dtype.kind in "OUS"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    names = {v.name for v in kept}
    model.graph.initializer.extend(numpy_helper.from_array(a, v.name) for v, a in inputs if v.name not in names)
    return model


def _place(model: onnx.ModelProto, found: dict[Operator, Facts]) -> bool:
    """Add where the nodes of a model run; whether some run on the host."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = common_module(model, Options("reference"))
        except DlcError:
            return False
    placed = placements(view(module), [find_target(name) for name in TARGETS])
    on_host = False
    for operator in operators_of(model.graph):
        facts = found.setdefault(operator, Facts())
        facts.placed = True
        for target, what in placed.get(operator[1], {}).items():
            facts.units[target] |= set(what.units)
            facts.reasons[target] |= {reason for unit, reason in what.reasons if unit != "cpu"}
            on_host |= HOST in what.units
    return on_host


# --- between two contractions, in int8 -------------------------------------------------------------------------------


def _contraction(x: str, y: str, weight: str, shape: Sequence[int]) -> tuple[onnx.NodeProto, np.ndarray]:
    """A product that keeps its input's values: a 1x1 convolution, or a matrix product."""
    if len(shape) == 2:
        return helper.make_node("MatMul", [x, weight], [y]), np.eye(shape[1], dtype=np.float32)
    ones = [1] * (len(shape) - 2)
    return helper.make_node("Conv", [x, weight], [y]), np.eye(shape[1], dtype=np.float32).reshape(
        shape[1], shape[1], *ones
    )


def _wrapped(case: Any) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]] | None:
    """A case of one operator of floats between two contractions, other operands constant; with its calibration data."""
    inputs, outputs = case.data_sets[0]
    arrays = [a for a in (*inputs, *outputs[:1]) if isinstance(a, np.ndarray)]
    graph = case.model.graph
    if len(graph.node) != 1 or len(arrays) != len(inputs) + 1 or not inputs:
        return None
    x, y = arrays[0], arrays[-1]
    if any(a.dtype != np.float32 or a.ndim < 2 or not a.size for a in (x, y)) or not np.isfinite(y).all():
        return None
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[0])
    first, result = graph.input[0].name, graph.output[0].name
    node.input[:] = ["_before" if name == first else name for name in node.input]
    before, weight = _contraction(first, "_before", "_w", x.shape)
    after, last = _contraction(result, "_after", "_v", y.shape)
    constants = {"_w": weight, "_v": last} | {v.name: a for v, a in zip(graph.input[1:], inputs[1:], strict=True)}
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [before, node, after], "probe",
        [value(first, TensorProto.FLOAT, x.shape)], [value("_after", TensorProto.FLOAT, y.shape)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=case.model.opset_import, ir_version=case.model.ir_version)
    return model, [{first: x}]


def _probe(case: Any, found: dict[Operator, Facts]) -> None:
    """Add what ``--quantize int8`` makes of a case's operator."""
    made = _wrapped(case)
    if made is None:
        return
    model, samples = made
    facts = found[next(iter(operators_of(case.model.graph)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = common_module(model, Options("reference", "int8", "fixed"), samples)
        except DlcError:
            return
    nodes = view(module).nodes
    last = max(k for k, node in enumerate(nodes) if node.op in CONTRACTIONS)
    inner = nodes[: last + 1]
    if any(node.output.dtype.startswith("float") for node in inner):
        facts.int8.add("float")
        return
    facts.int8.add("table" if any(node.op == "dlc.table" for node in inner) else "integer")
    places = find_target("vta").places(view(module))
    facts.array |= all(places[n.output.name].unit == "array" for n in inner if n.op != "dlc.quantize")


# --- the table -------------------------------------------------------------------------------------------------------


@functools.cache
def _versions() -> dict[Operator, set[int]]:
    """The versions of every standard operator."""
    found: dict[Operator, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    return found


def _since(operator: Operator) -> str:
    """From which version on something takes the operator, and what does."""
    domain, name = operator
    versions = sorted(_versions().get(operator, ()))
    if not versions:  # of no standard
        return str(min(supported()[operator]))
    taken = next((v for v in versions if is_supported(domain, name, v)), None)
    if taken is None:
        return "not supported"
    newest = versions[-1]
    if lookup(domain, name, newest) is not None:
        return str(taken)
    return f"{taken}, by its definition" if has_body(name, newest, domain) else f"{taken}, {HOST}"


def _cell(facts: Facts, target: str) -> str:
    units = [unit for unit in _ORDER if unit in facts.units[target] and unit != NOWHERE]
    if target == "vta" and facts.array:
        units.insert(0, "array in int8")
    if not units and not facts.units[target]:
        return "folded"
    reasons = {_short(reason) for reason in facts.reasons[target]} if target != "reference" else set()
    lacking = sorted(reason.removeprefix(_TYPES) for reason in reasons if reason.startswith(_TYPES))
    others = sorted(reason for reason in reasons if not reason.startswith(_TYPES))
    text = ", ".join(units) or NOWHERE
    text += f": {'; '.join(others)}" if others else ""
    return text + (f"; not for {', '.join(lacking)}" if lacking else "")


_TYPES = UNSUPPORTED.format("")
_UNDECIDED = "cannot tell whether"


def _short(reason: str) -> str:
    """A reason without the target's name and without what is the case's own."""
    if reason.startswith(_UNDECIDED):
        return "extents that only the data tell"
    return re.sub(r"^target \w+ has ", "", reason.split(":")[0] if reason.startswith("no kernel handles") else reason)


def rows(found: Mapping[Operator, Facts]) -> Iterator[list[str]]:
    """The table's rows, sorted: operator, since, reference, cpu, int8, gpu, vta, cases."""
    schemas = {(s.domain, s.name) for s in onnx.defs.get_all_schemas() if not s.deprecated}
    for operator in sorted(schemas | set(supported())):
        facts, since = found.get(operator, Facts()), _since(operator)
        if not facts.placed and since.endswith(HOST):
            facts = replace(facts, placed=True, units={t: {HOST} for t in TARGETS})
        places = [_cell(facts, target) if facts.placed else "" for target in TARGETS]
        int8 = next((kind for kind in ("integer", "table", "float") if kind in facts.int8), "")
        passed = f"{facts.passed} of {facts.cases}" if facts.cases else ""
        label = f"{operator[0]}.{operator[1]}" if operator[0] else operator[1]
        yield [label, since, *places[:2], int8, *places[2:], passed]


def failing() -> Iterator[list[str]]:
    """The node cases that do not pass: name, targets, reason."""
    reference = runner.listed("reference")
    for name, reason in sorted(runner.listed("cpu").items()):
        if reason:
            yield [name, "reference, cpu" if reference[name] else "cpu", reason]
