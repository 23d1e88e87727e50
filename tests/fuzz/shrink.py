"""A failing case made smaller: fewer outputs, fewer nodes, fixed extents, as long as it fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from tests.fuzz.generate import Case
from tests.fuzz.graph import info, reads
from tests.fuzz.oracle import OracleError, run_oracle

Fails = Callable[[Case], bool]


def _copy(case: Case) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    return Case(model, dict(case.inputs), dict(case.sizes))


def pruned(case: Case) -> Case:
    """The case without what no output needs."""
    result = _copy(case)
    graph = result.model.graph
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(reads(node))
    kept.reverse()
    for field, items in (
        (graph.node, kept),
        (graph.initializer, [t for t in graph.initializer if t.name in needed]),
        (graph.input, [i for i in graph.input if i.name in needed]),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(copies)
    inputs = {i.name: case.inputs[i.name] for i in graph.input}
    return Case(result.model, inputs, result.sizes)


def _fewer_outputs(case: Case) -> Iterator[Case]:
    for output in case.model.graph.output if len(case.model.graph.output) > 1 else []:
        result = _copy(case)
        kept = [o for o in result.model.graph.output if o.name == output.name]
        del result.model.graph.output[:]
        result.model.graph.output.extend(kept)
        yield pruned(result)


def _inner(case: Case) -> dict[str, np.ndarray]:
    """Every value of the outer graph."""
    model = _copy(case).model
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, run_oracle(model, case.inputs)[1], strict=True))


def _fewer_nodes(case: Case) -> Iterator[Case]:
    """Candidates in which a node has become inputs, or constants, that hold what it gave; or an output of its own."""
    try:
        held = _inner(case)
    except OracleError:
        return
    nodes = case.model.graph.node
    for index in range(len(nodes)):  # an earlier output instead of all that follows
        result = _copy(case)
        names = [n for n in nodes[index].output if n]
        del result.model.graph.output[:]
        result.model.graph.output.extend(info(n, held[n], [None] * held[n].ndim) for n in names)
        smaller = pruned(result)
        if len(smaller.model.graph.node) < len(nodes):
            yield smaller
    for index in reversed(range(len(nodes))):
        names = [n for n in nodes[index].output if n]
        if nodes[index].op_type == "Constant" or any(o.name in names for o in case.model.graph.output):
            continue
        for constant in (False, True):
            result = _copy(case)
            del result.model.graph.node[index]
            for name in names:
                if constant:
                    result.model.graph.initializer.append(numpy_helper.from_array(held[name], name))
                else:
                    result.model.graph.input.append(info(name, held[name]))
                    result.inputs[name] = held[name]
            yield pruned(result)


def _plainer(case: Case) -> Iterator[Case]:
    """All extents numbers; inputs constants; initialisers for Constant nodes."""
    result = _copy(case)
    del result.model.graph.input[:]
    result.model.graph.input.extend(info(n, a) for n, a in case.inputs.items())
    yield Case(result.model, result.inputs, {})
    for name, array in case.inputs.items():
        result = _copy(case)
        kept = [i for i in result.model.graph.input if i.name != name]
        del result.model.graph.input[:]
        result.model.graph.input.extend(kept)
        result.model.graph.initializer.append(numpy_helper.from_array(array, name))
        result.inputs.pop(name)
        yield result


def _size(case: Case) -> tuple[int, int, int, int]:
    graph = case.model.graph
    dims = sum(d.HasField("dim_param") for i in graph.input for d in i.type.tensor_type.shape.dim)
    return len(graph.node), len(graph.output), len(graph.input), dims


def shrink(case: Case, fails: Fails, budget: int = 60) -> Case:
    """The smallest case found with `budget` tries that still `fails`."""
    progress = True
    while progress and budget > 0:
        progress = False
        for step in (_fewer_outputs, _fewer_nodes, _plainer):
            for candidate in step(case):
                if _size(candidate) >= _size(case):
                    continue
                budget -= 1
                if fails(candidate):
                    case, progress = candidate, True
                    break
                if budget <= 0:
                    return case
    return case
