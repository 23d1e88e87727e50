"""What a user reads when a target has no kernel for a node: file, node, operator, reason; exit code 2."""

from __future__ import annotations

from pathlib import Path

import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper

from dlc.cli.main import main


def test_file_node_and_operator_are_named(tmp_path: Path) -> None:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"], name="product")
    shapes = {"a": (TensorProto.UINT8, [4, 3]), "b": (TensorProto.INT8, [3, 5])}
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.INT32, [4, 5])
    graph = helper.make_graph([node], "g", inputs, [output])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    result = CliRunner().invoke(main, ["compile", str(path), "-o", str(tmp_path / "out.dlc")])
    assert result.exit_code == 2
    assert (
        f"{path}: node MatMulInteger 'product': target cpu has no kernel: integer contraction of two" in result.output
    )
    assert not (tmp_path / "out.dlc").exists()
