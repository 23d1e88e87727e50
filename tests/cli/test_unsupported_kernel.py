"""What a user reads when a target has no kernel for a node: file, node, operator, reason; exit code 2."""

from __future__ import annotations

from pathlib import Path

import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper

from dlc.cli.main import main


def test_file_node_and_operator_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["a", "", "scales"], ["y"], name="wider", mode="linear")
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [2], [1.0, 2.0])
    inputs = [helper.make_tensor_value_info("a", TensorProto.BOOL, [4, 3])]
    output = helper.make_tensor_value_info("y", TensorProto.BOOL, [4, 6])
    graph = helper.make_graph([node], "g", inputs, [output], initializer=[scales])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    result = CliRunner().invoke(main, ["compile", str(path), "-o", str(tmp_path / "out.dlc")])
    assert result.exit_code == 2
    reason = "target cpu has no kernel: linear interpolation of bool"
    assert f"{path}: node Resize 'wider': {reason}" in result.output
    assert not (tmp_path / "out.dlc").exists()
