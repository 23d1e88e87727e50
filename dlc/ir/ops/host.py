"""Operators that no kernel computes: control flow, and ONNX operators that run on the host.

Their results are a tuple, of which ``dlc.item`` (attribute index) reads one. Attributes shapes and dtypes declare the
results; a symbol that stands in no input is an extent that depends on the data, and gets its size when the result is
there: attribute tells has their names. Results that are no tensors (sequences, strings, optional values) have a dtype
that begins with ``object``.

- ``dlc.loop(trips, condition, carried..., scanned..., captured...)``, one block. Attributes: carried and scanned (how
  many), has_trips, has_condition (the operands are left out where they are not). The block takes (iteration, condition,
  carried..., one slice along axis 0 of each scanned, captured...) and returns (condition, carried..., what each
  iteration adds to the stacked results...). Results: the carried values behind the last iteration, then the stacks
  along a new axis 0. This is ONNX's Loop; a Scan is the same with scanned inputs and a condition that stays true.
- ``dlc.if(condition, captured...)``, two blocks that take the captured values: what ONNX's If is.
- ``dlc.steps(trips)``: max(trips, 0) times true. A loop that scans it stacks that many results, whatever data say.
- ``dlc.first(x, count)``: the first `count` slices of x: what a loop that ended early has stacked.
- ``dlc.fail()``: attribute reason. A branch that no sizes of this code fit: an error where it is taken.
- ``dlc.onnx(inputs...)``: attributes model (a model of one node, base64), op_type and node (its names), reason (why
  there is no kernel). It is imported when it runs (`dlc.ir.ops.host_import`); what no importer has a meaning for is
  run, and so defined, by onnx's reference implementation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.ops.host_import import parsed, run_imported
from dlc.ir.ops.registry import OpSpec, register

ITEM, LOOP, IF, ONNX = "dlc.item", "dlc.loop", "dlc.if", "dlc.onnx"
STEPS, FIRST, FAIL = "dlc.steps", "dlc.first", "dlc.fail"

#: Iterations that `STEPS` counts at most: memory for the results of each is taken before the first.
MOST_STEPS = 1 << 24


def _item(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    return inputs[0][attrs["index"]]


@functools.lru_cache(maxsize=256)
def _evaluator(model: str) -> Any:
    proto = parsed(model)
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(proto)


def _onnx(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    imported = run_imported(attrs["model"], inputs)
    if imported is not None:
        return tuple(imported)
    evaluator = _evaluator(attrs["model"])
    label = f"node '{attrs['node']}' ({attrs['op_type']})"
    try:
        results = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
    except Exception as error:  # the reference implementation raises what numpy raises, in wrappers of its own
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise DlcError(f"{label}: cannot be run on what it is given: {' '.join(str(reason).split())}") from error
    # The reference implementation makes an optional value a list of one; ours is the value itself, or None.
    return tuple(r[0] if attrs["op_type"] == "Optional" and r else r for r in results)


def _steps(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    trips = int(np.asarray(inputs[0]).reshape(-1)[0])
    if trips > MOST_STEPS:
        raise DlcError(f"a loop that stacks results is to run {trips} times, more than the limit of {MOST_STEPS}")
    return (np.ones(max(trips, 0), np.bool_),)


def _first(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    return (inputs[0][: int(np.asarray(inputs[1]).reshape(-1)[0])],)


def _fail(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    raise DlcError(attrs["reason"])


def _interpreted(inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    raise AssertionError("control flow is run by dlc.ir.interpret")


register(OpSpec(ITEM, "host", _item))
register(OpSpec(ONNX, "host", _onnx))
register(OpSpec(STEPS, "host", _steps))
register(OpSpec(FIRST, "host", _first))
register(OpSpec(FAIL, "host", _fail))
register(OpSpec(LOOP, "host", _interpreted))
register(OpSpec(IF, "host", _interpreted))
