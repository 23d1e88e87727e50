"""Structure: functions, bodies, versions of operators, names, outputs of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlc.frontends.onnx import FUNCTION_MATCHERS, functions, import_model
from dlc.ir.convert import view
from tests.frontends.build import FLOAT, graph_of, model, node, ops, run

RNG = np.random.default_rng(0)


def with_function() -> onnx.ModelProto:
    """y = F(F(x)), F(a) = relu(a) * alpha with alpha an attribute of the call, 2 by default."""
    body = helper.make_function(
        "my.domain",
        "F",
        ["a"],
        ["b"],
        [
            node("Relu", ["a"], ["t"], "inner"),
            node("Constant", [], ["k"]),
            node("Mul", ["t", "k"], ["b"], "scale"),
        ],
        [helper.make_opsetid("", 20)],
        attribute_protos=[helper.make_attribute("alpha", 2.0)],
    )
    body.node[1].attribute.add(name="value_float", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    nodes = [
        node("F", ["x"], ["t"], "first", domain="my.domain"),
        node("F", ["t"], ["y"], "second", domain="my.domain", alpha=3.0),
    ]
    return model(nodes, {"x": ["n"]}, ["y"], functions=[body], imports=[helper.make_opsetid("my.domain", 1)])


def test_local_functions_are_inlined() -> None:
    graph = graph_of(with_function())
    assert ops(graph) == ["nn.relu", "multiply", "nn.relu", "multiply"]
    assert [n.origin.node for n in graph.nodes] == ["first/inner", "first/scale", "second/inner", "second/scale"]
    assert [n.origin.value for n in graph.nodes] == ["first/t", "t", "second/t", "y"]
    (y,) = run(graph, np.array([-1.0, 1.0], np.float32))
    assert y.tolist() == [0.0, 6.0]


def test_a_known_function_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    def match(c: Any, body: onnx.FunctionProto, inputs: Any) -> Any:
        assert body.name == "F" and len(body.node) == 3
        return [c.emit("exp", inputs[0])] if c.node.name == "first" else None

    monkeypatch.setitem(FUNCTION_MATCHERS, ("my.domain", "F"), match)
    assert ops(graph_of(with_function())) == ["exp", "nn.relu", "multiply"]


@pytest.mark.parametrize("op", ["MeanVarianceNormalization", "Gelu", "AffineGrid", "CenterCropPad"])
def test_an_operator_with_a_body_is_known(op: str) -> None:
    assert functions.has_body(op, 20, "")


def test_a_body_that_depends_on_the_call() -> None:
    """CenterCropPad has no converter of its own; ONNX builds its body from the attributes and types."""
    proto = model(
        [node("CenterCropPad", ["x", "to"], ["y"], "crop", axes=[1])], {"x": [2, 5]}, ["y"], {"to": np.array([3])}
    )
    graph = graph_of(proto)
    assert {(n.origin.op, n.origin.node) for n in graph.nodes} == {("CenterCropPad", "crop")}
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    np.testing.assert_array_equal(run(graph, x)[0], x[:, 1:4])


def test_softmax_before_and_after_13() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    for opset, axes in ((11, (1, 2)), (13, (1,))):
        proto = model([node("Softmax", ["x"], ["y"], axis=1)], {"x": [2, 3, 4]}, ["y"], opset=opset)
        e = np.exp(x)
        np.testing.assert_allclose(run(graph_of(proto), x)[0], e / e.sum(axis=axes, keepdims=True), rtol=1e-5)


def test_clip_and_squeeze_as_attribute_and_as_input() -> None:
    x = RNG.standard_normal((1, 4)).astype(np.float32)
    old = [node("Clip", ["x"], ["c"], min=-0.5, max=0.5), node("Squeeze", ["c"], ["y"], axes=[0])]
    new = [node("Clip", ["x", "low", "high"], ["c"]), node("Squeeze", ["c", "axes"], ["y"])]
    values = {"low": np.float32(-0.5).reshape(()), "high": np.float32(0.5).reshape(()), "axes": np.array([0])}
    for proto in (model(old, {"x": [1, 4]}, ["y"], opset=9), model(new, {"x": [1, 4]}, ["y"], values, opset=13)):
        graph = graph_of(proto)
        assert ops(graph) == ["maximum", "minimum", "reshape"]
        np.testing.assert_array_equal(run(graph, x)[0], x.clip(-0.5, 0.5)[0])


def test_add_with_an_axis_before_opset_7() -> None:
    proto = model(
        [node("Add", ["x", "b"], ["y"], broadcast=1, axis=1)],
        {"x": [2, 3, 4]},
        ["y"],
        {"b": np.arange(3, dtype=np.float32)},
        opset=6,
    )
    (y,) = run(graph_of(proto), np.zeros((2, 3, 4), np.float32))
    np.testing.assert_array_equal(y[0, :, 0], [0, 1, 2])


def test_batch_normalisation_is_a_multiplication_and_an_addition() -> None:
    parameters = {n: RNG.uniform(0.5, 1.5, 3).astype(np.float32) for n in ("g", "b", "m", "v")}
    proto = model([node("BatchNormalization", ["x", *parameters], ["y"])], {"x": ["n", 3, 4, 4]}, ["y"], parameters)
    graph = graph_of(proto)
    assert ops(graph) == ["multiply", "add"]
    assert {a.shape for a in graph.constants.values()} == {(3, 1, 1)}


def test_the_last_node_of_a_composition_carries_the_name() -> None:
    proto = model([node("Gelu", ["x"], ["y"], "act")], {"x": ["n"]}, ["y"])
    nodes = graph_of(proto).nodes
    assert {(n.origin.op, n.origin.node) for n in nodes} == {("Gelu", "act")}
    assert [n.origin.value for n in nodes][-1] == "y" and not any(n.origin.value for n in nodes[:-1])


def test_outputs_that_are_inputs_constants_or_twice_the_same() -> None:
    nodes = [node("Identity", ["x"], ["a"]), node("Identity", ["w"], ["b"]), node("Relu", ["x"], ["y"])]
    w = np.arange(3, dtype=np.float32)
    proto = model(nodes, {"x": [3]}, ["a", "b", "y", "x", "w"], {"w": w})
    module = import_model(proto)
    x = np.array([-1, 0, 1], np.float32)
    results = run(view(module), x)
    for got, wanted in zip(results, [x, w, x.clip(0), x, w], strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_names_of_inputs_and_outputs_are_kept() -> None:
    names = ["input.1", "input_1", "c0", "0", "größe"]
    proto = model([node("Sum", names, ["out:0"])], {n: [2] for n in names}, ["out:0"])
    graph = graph_of(proto)
    assert graph.attrs["dlc.inputs"] == names and graph.attrs["dlc.outputs"] == ["out:0"]
    assert len({v.name for v in graph.inputs}) == len(names)
    arrays = [np.full(2, 10.0**i, np.float32) for i in range(len(names))]
    np.testing.assert_allclose(run(graph, *arrays)[0], 11111)


def test_values_may_have_the_names_of_constants() -> None:
    nodes = [node("Exp", ["c0"], ["c1"]), node("Add", ["c1", "k"], ["c2"]), node("Mul", ["c2", "k"], ["y"])]
    graph = graph_of(model(nodes, {"c0": [2]}, ["y"], {"k": np.array([2, 3], np.float32)}))
    np.testing.assert_allclose(run(graph, np.zeros(2, np.float32))[0], [6, 12])


def test_an_initialiser_that_is_an_input_is_a_constant() -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [2], "w": [2]}, ["y"], {"w": np.ones(2, np.float32)})
    graph = graph_of(proto)
    assert [v.name for v in graph.inputs] == ["x"]
    assert run(graph, np.zeros(2, np.float32))[0].tolist() == [1, 1]


def test_external_data_is_read(tmp_path: Path) -> None:
    weight = RNG.normal(size=64).astype(np.float32)
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [64]}, ["y"], {"w": weight})
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size >= weight.nbytes
    (y,) = run(view(import_model(path)), np.ones(64, np.float32))
    np.testing.assert_array_equal(y, weight + 1)


def test_outputs_may_be_left_out() -> None:
    normal = node("LayerNormalization", ["x", "g"], ["y", "", "inverse"], epsilon=0.0)
    proto = model([normal], {"x": [1, 2]}, ["y", "inverse"], {"g": np.ones(2, np.float32)})
    y, inverse = run(graph_of(proto), np.array([[1, 5]], np.float32))
    assert y.tolist() == [[-1, 1]] and inverse.tolist() == [[0.5]]


def test_what_no_output_needs_is_not_written() -> None:
    nodes = [node("Exp", ["x"], ["dead"]), node("Split", ["x"], ["a", "b"], num_outputs=2), node("Relu", ["b"], ["y"])]
    assert ops(graph_of(model(nodes, {"x": [4]}, ["y"]))) == ["strided_slice", "nn.relu"]


def test_if_on_a_constant() -> None:
    def branch(op: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info("z", FLOAT, [2])
        return helper.make_graph([node(op, ["x"], ["z"])], "b", [], [value])

    choice = node("If", ["c"], ["y"], then_branch=branch("Exp"), else_branch=branch("Relu"))
    graph = graph_of(model([choice], {"x": [2]}, ["y"], {"c": np.array(False)}))
    assert ops(graph) == ["nn.relu"]


@pytest.mark.parametrize(
    "equation",
    ["ij,jk->ik", "bij,bkj->bik", "bhid,bhjd->bhij", "i,j->ij", "ii->i", "ij->", "...ij,...jk->...ik", "ab,bc,cd->ad",
     "ij,ij->j", "bi,bi", "ijk->kji", "a,ab,b->"],
)  # fmt: skip
def test_einsum(equation: str) -> None:
    extents = {"a": 3, "b": 2, "c": 4, "d": 5, "h": 3, "i": 4, "j": 6, "k": 7}
    terms = equation.split("->")[0].split(",")
    shapes = [[extents[label] for label in term.replace("...", "bh")] for term in terms]
    arrays = [RNG.standard_normal(s).astype(np.float32) for s in shapes]
    names = [f"x{i}" for i in range(len(arrays))]
    proto = model([node("Einsum", names, ["y"], equation=equation)], dict(zip(names, shapes, strict=True)), ["y"])
    np.testing.assert_allclose(run(graph_of(proto), *arrays)[0], np.einsum(equation, *arrays), rtol=1e-4, atol=1e-5)


def test_a_dequantised_result_has_the_type_of_its_scale() -> None:
    proto = model(
        [node("DequantizeLinear", ["x", "s"], ["y"])],
        {"x": (TensorProto.INT8, [2])},
        ["y"],
        {"s": np.float16(0.5).reshape(())},
        opset=19,
    )
    (y,) = run(graph_of(proto), np.array([2, -4], np.int8))
    assert y.dtype == np.float16 and y.tolist() == [1.0, -2.0]
