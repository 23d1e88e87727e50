"""What a bad model or bad shapes get: one DlcError whose text names file, node and operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from tests.frontends.build import FLOAT, model


def save(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def message(path: Path | onnx.ModelProto, **shapes: Any) -> str:
    with pytest.raises(DlcError) as caught:
        import_model(path, shapes or None)
    text = str(caught.value)
    assert "\n" not in text
    if isinstance(path, Path):
        assert text.startswith(f"{path}: ")
        return text.removeprefix(f"{path}: ")
    return text


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], "r")], {"x": ["batch", 3]}, ["y"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert message(tmp_path / "none.onnx") == "cannot read the model: No such file or directory"


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert message(path) == "not an ONNX model: the file is empty"


@pytest.mark.parametrize("data", [b"hello, world", b"\x00" * 40, b"PK\x03\x04" + b"z" * 60])
def test_garbage(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert message(path).startswith("not an ONNX model")


def test_a_truncated_file(tmp_path: Path) -> None:
    data = (Path(__file__).parents[2] / "zoo" / "vision" / "vision.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: len(data) // 2])
    assert message(path).startswith("not an ONNX model, or a truncated one")


def test_versions(tmp_path: Path) -> None:
    proto = relu()
    proto.opset_import[0].version = 0
    assert message(save(tmp_path, proto)).startswith("opset 0 is not in [1, ")
    proto.opset_import[0].version = 1000
    assert message(save(tmp_path, proto)).startswith("opset 1000 is not in [1, ")
    proto = relu()
    proto.ir_version = 99
    assert message(save(tmp_path, proto)).startswith("IR version 99 is not in [3, ")


def test_all_unsupported_nodes_are_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Magic", ["x"], ["a"], "m1", domain="acme"),
        helper.make_node("Relu", ["a"], ["b"], "r"),
        helper.make_node("Magic", ["b"], ["c"], "m2", domain="acme"),
        helper.make_node("Trick", ["c"], ["y"], domain="acme"),
    ]
    proto = model(nodes, {"x": [1]}, ["y"], imports=[helper.make_opsetid("acme", 1)])
    assert message(save(tmp_path, proto)) == (
        "operators that are not supported: Magic of domain 'acme' in 'm1', 'm2'; Trick of domain 'acme' in 'y'"
    )


def test_unsupported_nodes_in_subgraphs_and_functions_are_listed_too(tmp_path: Path) -> None:
    """All at once: those of branches and of functions, behind the names of the nodes around them."""
    acme = helper.make_opsetid("acme", 1)
    inner = helper.make_graph([helper.make_node("Trick", ["x"], ["z"], "t", domain="acme")], "inner", [], [])
    nested = helper.make_node("If", ["c"], ["z"], "second", then_branch=inner, else_branch=inner)
    body = helper.make_graph([nested], "outer", [], [])
    function = helper.make_function(
        "own", "Double", ["a"], ["b"], [helper.make_node("Magic", ["a"], ["b"], "m", domain="acme")], [acme]
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], "first", then_branch=body, else_branch=body),
        helper.make_node("Double", ["x"], ["d"], "call", domain="own"),
        helper.make_node("Double", ["d"], ["e"], "again", domain="own"),
        helper.make_node("Magic", ["e"], ["f"], "last", domain="acme"),
    ]
    proto = model(nodes, {"x": [1], "c": (TensorProto.BOOL, [])}, ["y"], imports=[acme, helper.make_opsetid("own", 1)])
    proto.functions.append(function)
    sides = ("else_branch", "then_branch")  # as they lie in the proto
    branches = [f"'first/{outer}/second/{inner}/t'" for outer in sides for inner in sides]
    assert message(save(tmp_path, proto)) == (
        "operators that are not supported: Magic of domain 'acme' in 'call/m', 'last'; "
        f"Trick of domain 'acme' in {', '.join(branches)}"
    )


def test_control_flow_is_named(tmp_path: Path) -> None:
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], "walk", body=body)
    proto = model([node], {"x": [1]}, ["y"], {"n": np.array(3)})
    assert message(save(tmp_path, proto)) == "node 'walk' (Loop): the body 'body' takes 0 values, it is given 3"


def test_branches_of_different_types(tmp_path: Path) -> None:
    branches = [
        helper.make_graph([helper.make_node("Cast", ["x"], ["z"], to=kind)], "b", [], [
            helper.make_tensor_value_info("z", kind, [1])
        ])
        for kind in (FLOAT, TensorProto.INT64)
    ]  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], "choose", then_branch=branches[0], else_branch=branches[1]),
    ]
    text = message(save(tmp_path, model(nodes, {"x": [1]}, ["y"])))
    assert text == "node 'choose' (If): output 0 is float32[1] and int64[1]"


def test_the_checker_speaks(tmp_path: Path) -> None:
    proto = model([helper.make_node("Relu", ["x", "x"], ["y"], "r")], {"x": [1]}, ["y"])
    assert message(save(tmp_path, proto)).startswith("not a valid ONNX model: Node(r) with")


@pytest.mark.parametrize(
    ("node", "constants", "text"),
    [
        (helper.make_node("Concat", ["x", "k"], ["y"], "n", axis=1), {"k": np.zeros(3, np.float32)},
         "(Concat): cannot join float32[2, 6] and float32[3]: their ranks differ"),
        (helper.make_node("Reshape", ["x", "k"], ["y"], "n"), {"k": np.array([2**62, 3])},
         "(Reshape): the extents [4611686018427387904, 3] are too large"),
        (helper.make_node("DequantizeLinear", ["q", "k"], ["y"], "n", axis=0), {"k": np.ones(6, np.float32)},
         "(DequantizeLinear): a scale [6] does not fit [2, 6] along axis 0"),
        (helper.make_node("DequantizeLinear", ["q", "k"], ["y"], "n"), {"k": np.ones(6, np.int8)},
         "(DequantizeLinear): its input 1 ('x_scale') is int8[6], it takes bfloat16, float16, float32"),
        (helper.make_node("DequantizeLinear", ["b", "k"], ["y"], "n"), {"k": np.ones((), np.float32)},
         "(DequantizeLinear): its input 0 ('x') is bool[2, 6], it takes float8_e4m3fn, float8_e4m3fnuz, float8_e5m2, "
         "float8_e5m2fnuz, int32, int8, uint8"),
    ],
)  # fmt: skip
def test_operands_that_do_not_fit(
    tmp_path: Path, node: onnx.NodeProto, constants: dict[str, np.ndarray], text: str
) -> None:
    inputs = {"x": [2, 6], "q": (TensorProto.INT8, [2, 6]), "b": (TensorProto.BOOL, [2, 6])}
    assert message(save(tmp_path, model([node], inputs, ["y"], constants))) == f"node 'n' {text}"


def test_wrong_channels_name_node_and_operator(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "n1")
    proto = model([node], {"x": [1, 3, 8, 8]}, ["y"], {"w": np.zeros((4, 5, 3, 3), np.float32)})
    assert message(save(tmp_path, proto)) == (
        "node 'n1' (Conv): 3 input channels, but the weight [4, 5, 3, 3] expects 5 x 1 groups"
    )


def test_wrong_types_name_node_and_operator(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "c", to=TensorProto.INT32),
        helper.make_node("Add", ["x", "i"], ["y"], "sum"),
    ]
    text = message(save(tmp_path, model(nodes, {"x": [2]}, ["y"])))
    assert text == "node 'sum' (Add): its inputs 0 and 1 are float32[2] and int32[2]: they must be of the same type"


def test_shapes_that_do_not_broadcast(tmp_path: Path) -> None:
    proto = model([helper.make_node("Add", ["x", "z"], ["y"], "sum")], {"x": [2, 3], "z": [4, 3]}, ["y"])
    assert message(save(tmp_path, proto)).startswith("node 'sum' (Add): ")


def test_a_reshape_that_does_not_fit(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"], "r")
    proto = model([node], {"x": [3, 8]}, ["y"], {"s": np.array([-1, 5])})
    assert message(save(tmp_path, proto)) == "node 'r' (Reshape): cannot reshape float32[3, 8] to [-1, 5]"


def test_shapes_of_the_user(tmp_path: Path) -> None:
    path = save(tmp_path, relu())
    assert message(path, z=[1]) == "there is no input 'z' to give a shape to; the inputs are 'x'"
    assert message(path, x=[1]) == "input 'x' has 2 dimensions, the given shape 1"
    assert message(path, x=[1, 4]) == "input 'x': dimension 1 is 3, the given shape says 4"
    assert message(path, x=[-1, 3]) == "input 'x': the given shape [-1, 3] has a negative extent"


def test_one_symbol_two_sizes(tmp_path: Path) -> None:
    proto = model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n"], "z": ["n"]}, ["y"])
    text = message(save(tmp_path, proto), x=[2], z=[3])
    assert text == "input 'z': dimension 'n' is given as 3 and as 2"


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    assert message(save(tmp_path, proto)) == "not a valid ONNX model: Field 'shape' of 'type' is required but missing."


def test_missing_external_data(tmp_path: Path) -> None:
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [64]}, ["y"], {"w": np.zeros(64, np.float32)})
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    import_model(path)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in message(path)


def test_a_string_input(tmp_path: Path) -> None:
    proto = relu()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "Relu" in message(save(tmp_path, proto))


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    body = helper.make_function(
        "my", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="my")], [helper.make_opsetid("my", 1)]
    )
    node = helper.make_node("F", ["x"], ["y"], "call", domain="my")
    proto = model([node], {"x": [1]}, ["y"], imports=[helper.make_opsetid("my", 1)], functions=[body])
    message(save(tmp_path, proto))
