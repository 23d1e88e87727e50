"""The largest of a softmax is found without it; what needs more than the largest keeps it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from dlc.ir.rewrite import live_nodes
from dlc.options import Options
from dlc.passes.simplify import SIMPLIFY
from dlc.pipeline import Context, run_passes


def graph_of(softmax: str, axis: int, k: int, largest: int) -> Any:
    """The simplified graph of ArgMax (k = 0) or TopK behind a softmax along the last axis."""
    nodes = [helper.make_node(softmax, ["x"], ["p"], axis=-1)]
    if k:
        nodes.append(helper.make_node("TopK", ["p", "k"], ["unused", "y"], axis=axis, largest=largest))
    else:
        nodes.append(helper.make_node("ArgMax", ["p"], ["y"], axis=axis, keepdims=0))
    shape = [3, 5, k] if k else [3, 5] if axis == -1 else [3, 9]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 5, 9])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, shape)],
        [helper.make_tensor("k", TensorProto.INT64, [1], [k])] if k else [],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return view(run_passes(import_model(model), SIMPLIFY, Context(Options())))


@pytest.mark.parametrize("softmax", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("axis", "k", "largest", "removed"),
    [(-1, 0, 1, True), (1, 0, 1, False), (-1, 1, 1, True), (-1, 1, 0, False), (-1, 2, 1, False)],
)
def test_the_largest_of_a_softmax_needs_no_softmax(
    softmax: str, axis: int, k: int, largest: int, removed: bool
) -> None:
    graph = graph_of(softmax, axis, k, largest)
    assert any("softmax" in node.op for node in live_nodes(graph)) != removed
    x = np.random.default_rng(1).standard_normal((3, 5, 9)).astype(np.float32)
    (got,) = interpret(graph, {graph.inputs[0].name: x})
    if k:
        order = np.argsort(-x if largest else x, -1)
        np.testing.assert_array_equal(got, order[..., :k])
    elif axis == -1:
        np.testing.assert_array_equal(got, x.argmax(-1))
