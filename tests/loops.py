"""ONNX models of one Loop, for the tests of control flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
STATE = [3, 4]


def value(name: str, kind: int = FLOAT, shape: Sequence[int | str] = STATE) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def loop_model(
    body: Sequence[Any],
    carried: dict[str, str],
    stacked: Sequence[str] = (),
    trips: int | None = 5,
    going: str = "going",
    constants: dict[str, np.ndarray] | None = None,
    start: bool = False,
) -> Any:
    """A Loop of `body` nodes; `carried` maps the name of a state inside to that of its new value."""
    nodes = list(body)
    if going == "going":
        nodes.append(helper.make_node("Identity", ["going"], ["stays"]))
        going = "stays"
    graph = helper.make_graph(
        nodes, "body",
        [value("i", INT64, []), value("going", BOOL, []), *(value(name) for name in carried)],
        [value(going, BOOL, []), *(value(name) for name in (*carried.values(), *stacked))],
    )  # fmt: skip
    outputs = [f"{name}_end" for name in carried] + [f"{name}_all" for name in stacked]
    known = dict(constants or {})
    if trips is not None:
        known["trips"] = np.array(trips, np.int64)
    inputs = ["trips" if trips is not None else "", "start" if start else "", *carried]
    node = helper.make_node("Loop", [i if i not in carried else f"{i}_0" for i in inputs], outputs, "loop", body=graph)
    main = helper.make_graph(
        [node], "g",
        [*(value(f"{name}_0") for name in carried), value("x"), *([value("start", BOOL, [])] if start else [])],
        [value(f"{name}_end") for name in carried] + [value(f"{n}_all", FLOAT, ["t", *STATE]) for n in stacked],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )  # fmt: skip
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def op(kind: str, inputs: str, output: str, **attrs: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], **attrs)
