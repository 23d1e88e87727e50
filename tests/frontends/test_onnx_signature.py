"""Nodes whose inputs are not what their operator takes: refused before a converter sees them, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlc.frontends.onnx.context import NodeView
from dlc.frontends.onnx.signature import check_signature
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from tests.frontends.build import graph_of, model, node, ops, run
from tests.frontends.test_onnx_errors import message, save

_INPUTS = {"x": [2, 3], "s": [], "i": (TensorProto.INT64, [2, 3]), "b": (TensorProto.BOOL, [2, 3])}
_CONSTANTS = {
    "one": np.float32([1]),
    "small": np.int8([2, 3]),
    "two": np.array([1, 2]),
    "w": np.zeros((4, 3, 1), "f4"),
    "k0": np.array(0),
}


def _view(operator: str, domain: str = "") -> NodeView:
    return NodeView(operator, domain, "n", (), (), {}, onnx.NodeProto())


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "text"),
    [
        ("Where", ["x", "x", "x"], {}, "its input 0 ('condition') is float32[2, 3], it takes bool"),
        ("Reshape", ["x", "one"], {}, "its input 1 ('shape') is float32[1], it takes int64"),
        ("Expand", ["x", "small"], {}, "its input 1 ('shape') is int8[2], it takes int64"),
        ("Tile", ["x", "x"], {}, "its input 1 ('repeats') is float32[2, 3], it takes int64"),
        ("Neg", ["b"], {}, "its input 0 ('X') is bool[2, 3], it takes bfloat16, float16, float32, float64, int16, "
         "int32, int64, int8"),
        ("Concat", ["x", "x", "i"], {"axis": 0},
         "its inputs 0 and 2 are float32[2, 3] and int64[2, 3]: they must be of the same type"),
        ("LSTM", ["x", "w", "w"], {}, "its input 0 ('X') is float32[2, 3], it must have rank 3"),
        ("Conv", ["w", "w", "x"], {}, "its input 2 ('B') is float32[2, 3], it must have rank 1"),
        ("Range", ["two", "two", "two"], {}, "its input 0 ('start') is int64[2], it must have one element"),
        ("GatherND", ["x", "k0"], {}, "its input 1 ('indices') is int64[], it must have rank 1 or more"),
        ("MaxPool", ["w"], {"kernel_shape": [1], "strides": [0]}, "attribute 'strides' is [0], it must be positive"),
        ("GatherND", ["x", "i"], {"batch_dims": -1}, "indices int64[2, 3] with batch_dims -1 do not fit float32[2, 3]"),
        ("Celu", ["x"], {"alpha": 0.0}, "attribute 'alpha' is 0, by which the operator divides"),
        ("Split", ["s"], {"num_outputs": 1}, "axis 0 of a tensor with 0 dimensions"),
        ("Concat", ["s", "s"], {"axis": 0}, "axis 0 of a tensor with 0 dimensions"),
        ("Sum", ["x", ""], {}, "its input 1 ('data_0') is left out"),
    ],
)  # fmt: skip
def test_inputs_that_an_operator_does_not_take(
    tmp_path: Path, operator: str, inputs: list[str], attributes: dict[str, Any], text: str
) -> None:
    proto = model([node(operator, inputs, ["y"], "n", **attributes)], _INPUTS, ["y"], _CONSTANTS)
    assert message(save(tmp_path, proto)) == f"node 'n' ({operator}): {text}"


def test_numbers_of_inputs() -> None:
    x = Tensor((2,), "float32")
    with pytest.raises(ConversionError, match=r"^it has 2 inputs, the operator takes 1$"):
        check_signature(_view("Reshape"), 1, [x, x])
    with pytest.raises(ConversionError, match=r"^it has 2 inputs, the operator takes 3 to 5$"):
        check_signature(_view("Slice"), 13, [x, x])
    with pytest.raises(ConversionError, match=r"^it has 0 inputs, the operator takes 1 or more$"):
        check_signature(_view("Concat"), 13, [])


_BITS = {"K": 32, "N": 2, "bits": 4, "block_size": 16}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "text"),
    [
        ("FastGelu", ["x", "x", "x"], {}, "it has 3 inputs, the operator takes 1 to 2"),
        ("FastGelu", ["", "x"], {}, "its input 0 ('x') is left out"),
        ("Attention", ["x", "x"], {"num_heads": 1}, "its input 0 is float32[2, 3], it must have rank 3"),
        ("QLinearConcat", ["one", "small", "small"], {"axis": 0}, "1 inputs behind the output's, they come in threes"),
        ("MatMulNBits", ["x", "small", "one"], _BITS, "a weight of shape [2] cannot be [2, 2, -1]"),
        ("MatMulNBits", ["x", "codes", "one"], _BITS, "rows of 16 numbers of 4 bits must be packed in uint8, got "
         "uint8[2, 2, 2]"),
        ("MatMulNBits", ["x", "codes", "one"], {**_BITS, "block_size": 0}, "K = 32, N = 2 and block_size = 0 must be "
         "positive"),
    ],
)  # fmt: skip
def test_an_operator_without_a_schema(
    tmp_path: Path, operator: str, inputs: list[str], attributes: dict[str, Any], text: str
) -> None:
    constants = {**_CONSTANTS, "codes": np.zeros((2, 2, 2), np.uint8)}
    one = node(operator, inputs, ["y"], "n", domain="com.microsoft", **attributes)
    proto = model([one], _INPUTS, ["y"], constants, imports=[helper.make_opsetid("com.microsoft", 1)])
    assert message(save(tmp_path, proto)) == f"node 'n' (com.microsoft.{operator}): {text}"


def test_a_call_with_more_than_a_function_takes(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
    body = helper.make_function("my", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], imports)
    proto = model([node("F", ["x", "x"], ["y"], "n", domain="my")], {"x": [1]}, ["y"], functions=[body],
                  imports=imports[1:])  # fmt: skip
    assert message(save(tmp_path, proto)) == "node 'n' (my.F): it has 2 inputs, the function takes 1"


def test_types_of_a_later_version_are_taken() -> None:
    """ReLU of integers is newer than opset 9; what it means is the same."""
    inputs = {"x": (TensorProto.INT32, [3])}
    graph = graph_of(model([node("Relu", ["x"], ["y"])], inputs, ["y"], opset=9, ir_version=8))
    assert run(graph, np.int32([-1, 0, 2]))[0].tolist() == [0, 0, 2]


# --- the model as a whole ----------------------------------------------------------------------------------------


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Identity", ["x"], ["QQQQ"], "inside")], "g", [], [
        helper.make_tensor_value_info("QQQQ", TensorProto.FLOAT, [2])
    ])  # fmt: skip
    proto = model([node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
                  {"x": [2], "c": (TensorProto.BOOL, [])}, ["y"])  # fmt: skip
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"QQQQ", b"QQ\xff\xfe"))
    assert message(path) == "not a valid ONNX model: a name or another text is not UTF-8"


def test_remarks_that_are_not_utf8(tmp_path: Path) -> None:
    """Nothing depends on a remark: a model with one in Latin-1 is imported."""
    proto = model([node("Relu", ["x"], ["y"], doc_string="QQQQ")], {"x": [2]}, ["y"])
    read = onnx.load_model_from_string(proto.SerializeToString().replace(b"QQQQ", b"QQ\xff\xfe"))
    assert run(graph_of(read), np.float32([-1, 1]))[0].tolist() == [0, 1]


def test_two_versions_of_a_domain(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], imports=[helper.make_opsetid("ai.onnx", 20)])
    graph_of(proto)
    proto.opset_import[1].version = 1
    assert message(save(tmp_path, proto)) == "it imports two versions of the operators of 'ai.onnx': 20 and 1"


def test_names_with_line_breaks(tmp_path: Path) -> None:
    proto = model([node("Reshape", ["x", "k"], ["y"], "a\nb\u2028\x00é")], {"x": [2]}, ["y"], {"k": np.array([3])})
    expected = r"node 'a\nb\u2028\x00é' (Reshape): cannot reshape float32[2] to [3]"
    assert message(save(tmp_path, proto)) == expected


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0, -1])
def test_scales_of_resize(tmp_path: Path, scale: float) -> None:
    proto = model([node("Resize", ["x", "", "k"], ["y"], "n")], {"x": [2]}, ["y"], {"k": np.float32([scale])})
    assert message(save(tmp_path, proto)).startswith("node 'n' (Resize): scales [")


def test_depths_of_one_hot(tmp_path: Path) -> None:
    """A billion places are no constant of a package, and a depth of less than one is none."""

    def one_hot(depth: int) -> onnx.ModelProto:
        inputs = {"x": (TensorProto.INT64, [2])}
        constants = {"d": np.array(depth), "v": np.float32([0, 1])}
        return model([node("OneHot", ["x", "d", "v"], ["y"], "n")], inputs, ["y"], constants)

    assert "dlc.positions" in ops(graph_of(one_hot(10**9)))
    assert message(save(tmp_path, one_hot(-3))) == "node 'n' (OneHot): a depth of -3"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ngram_counts", [1, 2], "attribute 'ngram_counts' is [1, 2], it must begin with 0"),
        ("ngram_counts", [0, 1], "attribute 'ngram_counts' [0, 1] does not divide a pool of 4"),
        ("ngram_indexes", [0, 1], "attribute 'ngram_indexes' [0, 1] does not place 3 n-grams"),
        ("weights", [1.0], "1 weights for 3 n-grams"),
    ],
)
def test_pools_of_n_grams(tmp_path: Path, name: str, value: list[Any], text: str) -> None:
    attributes = {"ngram_counts": [0, 2], "ngram_indexes": [0, 1, 2], "weights": [1.0, 1.0, 1.0], name: value}
    one = node("TfIdfVectorizer", ["x"], ["y"], "n", pool_int64s=[1, 2, 3, 4], mode="TFIDF", min_gram_length=1,
               max_gram_length=2, max_skip_count=0, **attributes)  # fmt: skip
    proto = model([one], {"x": (TensorProto.INT64, [4])}, ["y"])
    assert message(save(tmp_path, proto)) == f"node 'n' (TfIdfVectorizer): {text}"


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"num_scan_inputs": 3}, "attribute 'num_scan_inputs' is 3, but there are 2 inputs"),
        (
            {"num_scan_inputs": 1, "scan_input_axes": [0, 0]},
            "attribute 'scan_input_axes' is [0, 0], it must have 1 values",
        ),
    ],
)
def test_scans(tmp_path: Path, attributes: dict[str, Any], text: str) -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in ("a", "b", "c")]
    body = helper.make_graph([node("Add", ["a", "b"], ["c"])], "body", infos[:2], infos[2:])
    proto = model([node("Scan", ["s", "x"], ["y"], "n", body=body, **attributes)], {"s": [], "x": [3]}, ["y"])
    assert message(save(tmp_path, proto)) == f"node 'n' (Scan): {text}"


def test_scanned_sequences_have_one_length(tmp_path: Path) -> None:
    """Compiled code takes as many steps as the first one has: names that may differ become one."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in ("a", "b", "c")]
    body = helper.make_graph([node("Add", ["a", "b"], ["c"])], "body", infos[:2], infos[2:])
    scan = node("Scan", ["x", "z"], ["y"], "n", body=body, num_scan_inputs=2)
    text = message(save(tmp_path, model([scan], {"x": [3], "z": [2]}, ["y"])))
    assert text == "node 'n' (Scan): the lengths of the scanned sequences differ: 2 and 3"
    x, z = graph_of(model([scan], {"x": ["m"], "z": ["k"]}, ["y"])).inputs
    assert str(x.shape) == str(z.shape)


def test_the_parts_of_a_split_say_how_long_a_named_extent_is(tmp_path: Path) -> None:
    """The slices would reach beyond a shorter one."""
    split = node("Split", ["x", "parts"], ["y", "z"], "n")
    proto = model([split], {"x": ["m"]}, ["y", "z"], {"parts": np.array([2, 3])})
    assert graph_of(proto).inputs[0].shape == (5,)
    proto = model([split], {"x": ["m"]}, ["y", "z"], {"parts": np.array([7, -2])})
    assert message(save(tmp_path, proto)) == "node 'n' (Split): parts [7, -2] do not add up to the extent m"
