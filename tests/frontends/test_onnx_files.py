"""What lies around a model's graph: data in other files, defaults of inputs, functions, and names of any characters."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

import dlc
from dlc.cli.common import save_npz
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.frontends.onnx import import_model
from tests.frontends.build import graph_of, model, node, run

# --- data in other files ---------------------------------------------------------------------------------------------


def _outside(name: str, dtype: int, dims: list[int], **place: int | str) -> onnx.TensorProto:
    """A tensor whose content is in another file."""
    tensor = onnx.TensorProto(name=name, data_type=dtype, dims=dims, raw_data=b"")
    set_external_data(tensor, **place)
    tensor.ClearField("raw_data")
    return tensor


def _save(folder: Path, tensor: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None) -> Path:
    """x (64) plus w."""
    proto = model(nodes or [node("Add", ["x", "w"], ["y"], "sum")], {"x": [64]}, ["y"])
    proto.graph.initializer.append(tensor)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _message(path: Path) -> str:
    with pytest.raises(DlcError) as caught:
        import_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_a_part_of_a_file(tmp_path: Path) -> None:
    data = np.arange(200, dtype=np.float32)
    data.tofile(tmp_path / "w.bin")
    path = _save(tmp_path, _outside("w", TensorProto.FLOAT, [64], location="w.bin", offset=400, length=256))
    (result,) = dlc.load(dlc.compile(path, target="reference")).run({"x": np.zeros(64, np.float32)}).values()
    np.testing.assert_array_equal(result, data[100:164])


def test_the_file_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(255))
    path = _save(tmp_path, _outside("w", TensorProto.FLOAT, [64], location="w.bin"))
    text = "cannot read the external data of 'w': 'w.bin' has 255 bytes, the tensor needs 256 from 0 on"
    assert _message(path) == text


def test_the_length_is_not_that_of_the_shape(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(999))
    path = _save(tmp_path, _outside("w", TensorProto.FLOAT, [64], location="w.bin", length=300))
    text = "cannot read the external data of 'w': it is said to be 300 bytes long, its shape and type need 256"
    assert _message(path) == text


def test_the_file_is_missing(tmp_path: Path) -> None:
    text = _message(_save(tmp_path, _outside("w", TensorProto.FLOAT, [64], location="w.bin")))
    assert "w.bin" in text and "tensor name: w" in text


@pytest.mark.parametrize("where", ["../w.bin", "deep/../../w.bin"])
def test_the_file_is_outside_the_folder(tmp_path: Path, where: str) -> None:
    inner = tmp_path / "inner"
    (inner / "deep").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(bytes(256))
    text = _message(_save(inner, _outside("w", TensorProto.FLOAT, [64], location=where)))
    assert "w.bin" in text and ("outside" in text or ".." in text)


def test_a_parsed_model_has_no_folder() -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [64]}, ["y"])
    proto.graph.initializer.append(_outside("w", TensorProto.FLOAT, [64], location="w.bin"))
    with pytest.raises(DlcError, match="model: tensor 'w' is in an external file: give the model's path"):
        import_model(proto)


def test_constants_and_branches_with_data_in_other_files(tmp_path: Path) -> None:
    data = np.arange(128, dtype=np.float32)
    data.tofile(tmp_path / "w.bin")
    first = _outside("c", TensorProto.FLOAT, [64], location="w.bin")
    second = _outside("v", TensorProto.FLOAT, [64], location="w.bin", offset=256)
    output = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [64])]
    branch = helper.make_graph([node("Identity", ["v"], ["z"])], "b", [], output, [second])
    nodes = [
        node("Constant", [], ["c"], value=first),
        node("If", ["yes"], ["d"], then_branch=branch, else_branch=branch),
        node("Sum", ["x", "c", "d"], ["y"]),
    ]
    path = _save(tmp_path, numpy_helper.from_array(np.array(True), "yes"), nodes)
    (result,) = dlc.load(dlc.compile(path, target="reference")).run({"x": np.zeros(64, np.float32)}).values()
    np.testing.assert_array_equal(result, data[:64] + data[64:])


def test_types_of_all_widths(tmp_path: Path) -> None:
    """A type narrower than a byte is packed in the file."""
    for kind, dtype in ((TensorProto.BFLOAT16, "bfloat16"), (TensorProto.INT4, "int4"), (TensorProto.INT64, "int64")):
        values = np.arange(-4, 4).repeat(8)
        proto = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
        (tmp_path / "w.bin").write_bytes(proto.raw_data)
        nodes = [node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), node("Add", ["x", "f"], ["y"])]
        path = _save(tmp_path, _outside("w", kind, [64], location="w.bin"), nodes)
        (result,) = dlc.load(dlc.compile(path, target="reference")).run({"x": np.zeros(64, np.float32)}).values()
        np.testing.assert_array_equal(result, values, err_msg=dtype)


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    """A table of 2.2 GB (a sparse file, mapped), its package, and a run of it: rows from both sides of 2^31."""
    if shutil.disk_usage(tmp_path).free < 6 << 30:
        pytest.skip("less than 6 GB of room")
    rows, width = 550_000, 1024
    place, data = tmp_path / "table.bin", {0: 1.0, 524_288: 2.0, rows - 1: 3.0}
    with place.open("wb") as file:
        file.truncate(4 * rows * width)
        for row, value in data.items():
            file.seek(4 * row * width)
            file.write(np.full(width, value, np.float32).tobytes())
    proto = model([node("Gather", ["table", "rows"], ["y"])], {"rows": (TensorProto.INT64, ["n"])}, ["y"])
    proto.graph.initializer.append(_outside("table", TensorProto.FLOAT, [rows, width], location="table.bin"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    dlc.compile(tmp_path / "model.onnx").save(tmp_path / "model.dlc")
    place.unlink()
    session = dlc.load(tmp_path / "model.dlc")
    (result,) = session.run({"rows": np.array([1, *data])}).values()
    np.testing.assert_array_equal(result[:, 0], [0.0, *data.values()])
    np.testing.assert_array_equal(result, result[:, :1].repeat(width, 1))


# --- defaults, functions ---------------------------------------------------------------------------------------------


def _with_default() -> onnx.ModelProto:
    return model([node("Mul", ["x", "w"], ["y"])], {"x": [3], "w": [3]}, ["y"], {"w": np.full(3, 2, np.float32)})


def test_a_default_is_a_constant() -> None:
    session = dlc.load(dlc.compile(_with_default(), target="reference"))
    assert [info.name for info in session.inputs] == ["x"]
    np.testing.assert_array_equal(session.run({"x": np.ones(3, np.float32)})["y"], [2, 2, 2])


def test_a_default_for_which_a_shape_is_given_is_an_input() -> None:
    session = dlc.load(dlc.compile(_with_default(), target="reference", shapes={"w": [3]}))
    feed = {"x": np.ones(3, np.float32), "w": np.arange(3, dtype=np.float32)}
    np.testing.assert_array_equal(session.run(feed)["y"], [0, 1, 2])


def test_a_function_in_a_function_with_attributes() -> None:
    inner = helper.make_function(
        "my", "Bend", ["a"], ["b"], [node("LeakyRelu", ["a"], ["b"])], [helper.make_opsetid("", 20)], ["alpha"]
    )
    inner.node[0].attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=1))
    calls = [node("Bend", ["a"], ["t"], domain="my", alpha=0.25), node("Bend", ["t"], ["b"], domain="my", alpha=0.5)]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
    outer = helper.make_function("my", "Twice", ["a"], ["b"], calls, imports)
    proto = model([node("Twice", ["x"], ["y"], domain="my")], {"x": [2]}, ["y"], imports=imports[1:])
    proto.functions.extend([inner, outer])
    (result,) = run(graph_of(proto), np.array([-8, 3], np.float32))
    np.testing.assert_array_equal(result, [-1, 3])


def test_a_host_node_carries_functions_only_where_it_may_call_them() -> None:
    function = helper.make_function(
        "my", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    nodes = [node("F", ["x"], ["r"], domain="my"), node("Unique", ["r"], ["y"], "distinct")]
    proto = model(nodes, {"x": [5]}, ["y"], imports=[helper.make_opsetid("my", 1)])
    proto.functions.append(function)
    (host,) = [n for n in graph_of(proto).nodes if n.op == "dlc.onnx"]
    inner = onnx.ModelProto.FromString(base64.b64decode(host.attrs["model"]))
    assert [n.op_type for n in inner.graph.node] == ["Unique"] and not inner.functions


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    ("x y", "a b"), ("scope/x:0", "scope/y:0"), ("größe", "結果"), (" ", "."), ("../x", "/y"), ("x=1,2", "--help"),
    ("1", "class"), ("a.npy", "b.npy"), ("x", "x_1"),
]  # fmt: skip


def _call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def _read(path: Path) -> Mapping[str, np.ndarray]:
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize(("source", "target"), NAMES)
def test_names_of_any_characters_from_end_to_end(tmp_path: Path, source: str, target: str) -> None:
    nodes = [
        node("MatMul", [source, "w w"], [f"{target}/inner"], f"{source} {target}"),
        node("Softsign", [f"{target}/inner"], [target], ""),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    proto = model(nodes, {source: ["batch/größe", 4]}, [target], {"w w": weight}, ir_version=8)
    path, package = tmp_path / "model file.onnx", tmp_path / "model file.dlc"
    path.write_bytes(proto.SerializeToString())
    _call("compile", path, "-o", package, "--quantize", "int8", "--calibration", "random")
    _call("compile", path, "-o", package)
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    save_npz(tmp_path / "in.npz", {source: x})
    checked = _call("check", package, "--against", path, "--inputs", tmp_path / "in.npz", "--per-node")
    assert f"output '{target}': agrees" in checked and "no node differs" in checked
    _call("check", package, "--against", path, f"--shape={source}=2,4")
    _call("run", package, "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    wanted = x @ weight
    np.testing.assert_allclose(_read(tmp_path / "out.npz")[target], wanted / (1 + abs(wanted)), rtol=1e-5)
    assert f"  {source}: float32[" in _call("inspect", package)
    _call("explain", package)
