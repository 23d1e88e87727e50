"""Shape arithmetic disappears when a model is imported, with symbolic extents too."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import dlc
from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from dlc.ir.convert import view
from tests.frontends.build import graph_of, model, node, ops, run

INT64 = TensorProto.INT64


def constants(**values: list[int] | int) -> dict[str, np.ndarray]:
    return {name: np.array(v, np.int64) for name, v in values.items()}


def test_the_flatten_of_old_torch() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "front"], ["n1"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["y"]),
    ]
    graph = graph_of(model(nodes, {"x": ["batch", 4, 5]}, ["y"], constants(zero=0, front=[0], rest=[-1])))
    assert ops(graph) == ["reshape"]
    assert [str(d) for d in graph.nodes[0].output.shape] == ["batch", "20"]
    assert graph.nodes[0].origin.value == "y"


def test_the_heads_of_attention() -> None:
    """(batch, length, 32) -> (batch, length, 4, 8), with both extents read from the input."""
    nodes = [node("Shape", ["x"], ["s"])]
    for i, name in enumerate(("batch", "length")):
        nodes.append(node("Gather", ["s", f"i{i}"], [f"g{i}"], axis=0))
        nodes.append(node("Unsqueeze", [f"g{i}", "front"], [name]))
    nodes += [
        node("Div", ["width", "heads"], ["depth"]),
        node("Concat", ["batch", "length", "heads", "depth"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["split"]),
        node("Transpose", ["split"], ["y"], perm=[0, 2, 1, 3]),
    ]
    values = constants(i0=0, i1=1, front=[0], heads=[4], width=[32])
    graph = graph_of(model(nodes, {"x": ["b", "n", 32]}, ["y"], values))
    assert ops(graph) == ["reshape", "permute_dims"]
    assert [str(d) for d in graph.nodes[-1].output.shape] == ["b", "4", "n", "8"]


def test_the_expand_of_torch() -> None:
    """Expand to where(shape == -1, 1, shape): the comparison with a symbol is decided when importing."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "minus"], ["free"]),
        node("ConstantOfShape", ["two"], ["ones"], value=helper.make_tensor("v", INT64, [1], [1])),
        node("Where", ["free", "ones", "s"], ["to"]),
        node("Expand", ["c", "to"], ["y"]),
    ]
    values = {**constants(minus=-1, two=[2]), "c": np.ones((1, 3), np.float32)}
    graph = graph_of(model(nodes, {"x": ["n", 3]}, ["y"], values))
    assert ops(graph) == ["broadcast_to"]
    (y,) = run(graph, np.zeros((5, 3), np.float32))
    assert y.shape == (5, 3)


def test_slices_of_a_symbolic_extent() -> None:
    nodes = [
        node("Slice", ["x", "one", "far", "axis"], ["tail"]),
        node("Slice", ["x", "zero", "last", "axis"], ["head"]),
    ]
    values = constants(one=[1], zero=[0], last=[-1], far=[2**63 - 1], axis=[0])
    graph = graph_of(model(nodes, {"x": ["n", 2]}, ["tail", "head"], values))
    assert ops(graph) == ["strided_slice", "strided_slice"]
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    tail, head = run(graph, x)
    np.testing.assert_array_equal(tail, x[1:])
    np.testing.assert_array_equal(head, x[:-1])


def test_a_slice_of_everything_is_nothing() -> None:
    values = constants(zero=[0], far=[1_000_000_000], axis=[0])
    proto = model(
        [node("Slice", ["x", "zero", "far", "axis"], ["s"]), node("Relu", ["s"], ["y"])], {"x": ["n"]}, ["y"], values
    )
    assert ops(graph_of(proto)) == ["nn.relu"]


def test_a_range_over_a_symbolic_extent() -> None:
    nodes = [
        node("Shape", ["x"], ["s"], start=0, end=1),
        node("Squeeze", ["s"], ["n"]),
        node("Range", ["zero", "n", "one"], ["r"]),
        node("Gather", ["table", "r"], ["y"]),
    ]
    table = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    graph = graph_of(model(nodes, {"x": ["n"]}, ["y"], {**constants(zero=0, one=1), "table": table}))
    assert ops(graph) == ["dlc.positions", "take"]
    (y,) = run(graph, np.zeros(5, np.float32))
    np.testing.assert_array_equal(y, table[:5])


def test_a_shape_that_is_data() -> None:
    """x divided by its own extent: the shape is computed when running."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["x", "f"], ["y"]),
    ]
    graph = graph_of(model(nodes, {"x": ["n"]}, ["y"]))
    assert ops(graph) == ["dlc.extents", "astype", "divide"]
    (y,) = run(graph, np.ones(4, np.float32))
    np.testing.assert_allclose(y, 0.25)


def test_an_output_that_is_a_shape() -> None:
    graph = graph_of(model([node("Shape", ["x"], ["y"])], {"x": ["n", 3]}, ["y"]))
    (y,) = run(graph, np.zeros((7, 3), np.float32))
    assert y.tolist() == [7, 3] and y.dtype == np.int64


def test_given_shapes_fix_symbols_everywhere() -> None:
    proto = model([node("Add", ["x", "z"], ["y"])], {"x": ["n", 3], "z": ["n", 1]}, ["y"])
    assert [v.shape for v in graph_of(proto, x=[4, 3]).inputs] == [(4, 3), (4, 1)]
    named = graph_of(proto, x=["m", 3], z=["m", 1])
    assert [str(v.shape[0]) for v in named.inputs] == ["m", "m"]


@pytest.mark.parametrize("name", ["2 * n", "lambda", "int", "größe", "a.b", "max"])
def test_odd_symbol_names(name: str) -> None:
    graph = graph_of(model([node("Relu", ["x"], ["y"])], {"x": [name, 2]}, ["y"]))
    (y,) = run(graph, np.ones((3, 2), np.float32))
    assert y.shape == (3, 2)


def test_two_unnamed_dimensions_are_two_symbols() -> None:
    graph = graph_of(model([node("Add", ["x", "z"], ["y"])], {"x": [None], "z": [None]}, ["y"]))
    assert ops(graph) == ["dlc.onnx", "dlc.item"]
    assert graph.nodes[0].attrs["reason"] == (
        "cannot tell whether the extents of [x_0] and [z_0] agree; "
        "give the inputs' shapes, with one name for extents that are always equal"
    )


def test_constants_are_folded() -> None:
    nodes = [
        node("Mul", ["a", "b"], ["m"]),
        node("Transpose", ["m"], ["t"]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = graph_of(model(nodes, {"x": [4, 3]}, ["y"], {"a": a, "b": a}))
    assert ops(graph) == ["dlc.matmul"]
    np.testing.assert_array_equal(graph.constants[graph.nodes[0].inputs[1]], (a * a).T)


def test_weights_of_a_qdq_model_stay_quantised() -> None:
    nodes = [node("DequantizeLinear", ["w", "s"], ["f"]), node("MatMul", ["x", "f"], ["y"])]
    values = {"w": np.ones((3, 2), np.int8), "s": np.float32(0.5).reshape(())}
    graph = view(import_model(model(nodes, {"x": [1, 3]}, ["y"], values)))
    assert ops(graph) == ["dlc.dequantize", "dlc.matmul"]


def test_an_extent_that_would_be_negative_is_refused_before_anything_runs() -> None:
    proto = model([node("Conv", ["x", "w"], ["c"], name="wide"), node("Relu", ["c"], ["y"])],
                  {"x": [1, 1, "n"]}, ["y"], {"w": np.ones((1, 1, 9), np.float32)})  # fmt: skip
    session = dlc.load(dlc.compile(proto))
    assert session.run({"x": np.ones((1, 1, 12), np.float32)})["y"].shape == (1, 1, 4)
    with pytest.raises(DlcError, match=r"its output would have the extents \[1, -\d+, 1\] for n = 2"):
        session.run({"x": np.ones((1, 1, 2), np.float32)})


def test_what_stands_for_any_extent_is_no_name() -> None:
    graph = graph_of(model([node("Relu", ["x"], ["y"])], {"x": ["?", "?", -1]}, ["y"]))
    assert len({str(d) for d in graph.inputs[0].shape}) == 3
