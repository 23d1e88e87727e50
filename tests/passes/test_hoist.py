"""What need not be computed in each iteration leaves the loop, and the results stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import dlc
from dlc.compiler import module_at
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node
from dlc.ir.ops.host import LOOP
from dlc.options import Options
from tests.loops import BOOL, FLOAT, INT64, STATE, loop_model, op, value

RNG = np.random.default_rng(21)
W = {"w": RNG.standard_normal((4, 4)).astype(np.float32) * 0.4, "b": RNG.standard_normal(4).astype(np.float32)}
ONE = np.array(1, np.int64)
ROWS = RNG.standard_normal((9, 4, 3)).astype(np.float32)


def hoisted(model: Any) -> tuple[Graph, Node]:
    """``main`` behind the pass, and its loop."""
    graph = view(module_at(model, Options(), "hoist"))
    (loop,) = (node for node in graph.nodes if node.op == LOOP)
    return graph, loop


def hold(model: Any) -> None:
    """Hold the reference and the CPU to onnxruntime."""
    feed = {v.name: RNG.random(STATE).astype(np.float32) for v in model.graph.input}
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = peer.run(None, feed)
    for target in ("reference", "cpu"):
        got = dlc.load(dlc.compile(model, target=target)).run(feed)
        for info, array in zip(peer.get_outputs(), wanted, strict=True):
            np.testing.assert_allclose(got[info.name], array, rtol=2e-5, atol=2e-5)


def operators(graph: Graph) -> list[str]:
    return [node.op.rpartition(".")[2] for node in graph.nodes]


def test_what_depends_on_captured_values_alone_is_computed_once() -> None:
    body = [op("MatMul", "x w", "p"), op("Tanh", "p", "q"), op("Add", "a q", "a1")]
    model = loop_model(body, {"a": "a1"}, constants=W)
    graph, loop = hoisted(model)
    assert operators(graph)[:2] == ["matmul", "tanh"] and operators(loop.blocks[0]) == ["add"]
    hold(model)


def test_a_state_that_stays_is_captured() -> None:
    model = loop_model([op("Mul", "a b", "a1")], {"a": "a1", "b": "b"})
    _, loop = hoisted(model)
    assert loop.attrs["carried"] == 1 and len(loop.blocks[0].inputs) == 4
    hold(model)


COUNTER = {"start": np.array(3, np.int64), "two": np.array(2, np.int64)}


@pytest.mark.parametrize("used", [False, True])
def test_counters_are_computed_from_the_iteration(used: bool) -> None:
    model = loop_model([op("Cast", "t", "f", to=FLOAT), op("Add", "a f", "a1"), op("Add", "t two", "t1")],
                       {"a": "a1", "t": "t1"}, ["a1"], constants=COUNTER)  # fmt: skip
    body = next(a.g for a in model.graph.node[0].attribute if a.name == "body")
    for infos, name in ((body.input, "t"), (body.output, "t1")):
        next(v for v in infos if v.name == name).CopyFrom(value(name, INT64, []))
    node = model.graph.node[0]
    node.input[:] = [i if i != "t_0" else "start" for i in node.input]
    model.graph.input.remove(next(v for v in model.graph.input if v.name == "t_0"))
    end = next(v for v in model.graph.output if v.name == "t_end")
    if used:
        end.CopyFrom(value("t_end", INT64, []))
    else:
        model.graph.output.remove(end)
    _, loop = hoisted(model)
    assert loop.attrs["carried"] == (2 if used else 1)
    hold(model)


@pytest.mark.parametrize(("axis", "trips", "scanned"), [(0, 9, 1), (0, 5, 1), (1, 4, 1), (2, 2, 1)])
def test_rows_that_are_taken_in_order_are_scanned(axis: int, trips: int, scanned: int) -> None:
    rows = np.moveaxis(RNG.standard_normal((9, *STATE)).astype(np.float32), 0, axis)
    body = [helper.make_node("Gather", ["many", "i"], ["row"], axis=axis), op("Add", "a row", "a1")]
    model = loop_model(body, {"a": "a1"}, ["a1"], trips=trips, constants={"many": rows})
    # A constant would be inside the block: it is to be a value around the loop.
    model.graph.node.insert(0, helper.make_node("Add", ["many", "nothing"], ["large"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    body_graph = next(a.g for a in model.graph.node[1].attribute if a.name == "body")
    body_graph.node[0].input[0] = "large"
    model.graph.input.append(value("y"))
    model.graph.node[0].input[1] = "shift"
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["y"], ["shift"], keepdims=0))
    _, loop = hoisted(model)
    assert loop.attrs["scanned"] == scanned and "take" not in operators(loop.blocks[0])
    hold(model)


def test_an_input_projection_becomes_one_product() -> None:
    """A recurrent cell that is spelled out, as a Scan."""
    inner = helper.make_graph(
        [op("MatMul", "row w", "p"), op("Add", "p b", "q"), op("MatMul", "h w", "r"), op("Add", "q r", "s"),
         op("Tanh", "s", "h1"), op("Identity", "h1", "y")],
        "body", [value("h", FLOAT, [1, 4]), value("row", FLOAT, [1, 4])],
        [value("h1", FLOAT, [1, 4]), value("y", FLOAT, [1, 4])],
    )  # fmt: skip
    node = helper.make_node("Scan", ["h0", "rows"], ["last", "all"], "scan", body=inner, num_scan_inputs=1)
    main = helper.make_graph(
        [op("Reshape", "x shape", "rows"), op("ReduceSum", "x axes", "total", keepdims=1),
         op("MatMul", "total ones", "h0"), node],
        "g", [value("x")], [value("last", FLOAT, [1, 4]), value("all", FLOAT, [3, 1, 4])],
        [numpy_helper.from_array(a, n) for n, a in {
            **W, "shape": np.array([3, 1, 4]), "axes": np.array([0, 1]), "ones": np.ones((1, 4), np.float32)}.items()],
    )  # fmt: skip
    model = helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph, loop = hoisted(model)
    assert [n.output.shape for n in graph.nodes if n.op == "dlc.matmul"][-1] == (3, 1, 4)
    assert operators(loop.blocks[0]) == ["matmul", "add", "tanh"]
    hold(model)


def test_what_depends_on_a_state_stays() -> None:
    model = loop_model([op("MatMul", "a w", "p"), op("Add", "p x", "a1")], {"a": "a1"}, constants=W)
    graph, loop = hoisted(model)
    assert operators(loop.blocks[0]) == ["matmul", "add"] and "matmul" not in operators(graph)


def test_inner_loops_give_what_they_can_to_the_outer_one() -> None:
    inner = helper.make_graph(
        [op("MatMul", "x w", "p"), op("Mul", "s p", "t"), op("Identity", "g2", "g3")], "inner",
        [value("j", INT64, []), value("g2", BOOL, []), value("s")], [value("g3", BOOL, []), value("t")],
    )  # fmt: skip
    body = [helper.make_node("Loop", ["three", "", "a"], ["a1"], "inner", body=inner)]
    model = loop_model(body, {"a": "a1"}, constants={**W, "three": np.array(3, np.int64)})
    graph, loop = hoisted(model)
    assert "matmul" in operators(graph) and operators(loop.blocks[0]) == ["loop", "item"]
    hold(model)
