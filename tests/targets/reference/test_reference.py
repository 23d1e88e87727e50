"""The reference target: a graph through the package and back, without TVM on the way back."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import tirx

import dlc
from dlc.compiler import compile_module
from dlc.errors import DlcError
from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Origin
from dlc.ir.interpret import interpret
from dlc.ir.serial import graph_from_json, graph_to_json
from dlc.options import Options
from dlc.package import Package
from dlc.pipeline import Context, Declined
from dlc.targets.base import find_target, target_names


def module() -> Any:
    """z = relu(pad(x w)), f = z flattened, and an attribute of every kind on the way."""
    builder, n = FunctionBuilder(), tirx.Var("n", "int64")
    x = builder.input("x", (n, 4), "float32")
    w = builder.constant(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))
    y = builder.emit("dlc.matmul", [x, w], {"out_dtype": "float32"}, Origin("MatMul", "mm", "y"))
    padding = {"pad_width": (0, 0, 1, 1), "mode": "constant", "value": float("-inf")}
    p = builder.emit("relax.nn.pad", [y], padding)
    z = builder.emit("relax.nn.relu", [p], {}, Origin("Relu", "r", "z"))
    f = builder.emit("relax.reshape", [z], {"shape": (n * 5,)}, Origin("Reshape", "", "f"))
    attrs = {"inputs": ["x:0"], "outputs": ["z/out", "f"], "scales": {"y": [0.5, 3]}}
    return builder.finish([z, f], attrs)


def package() -> Package:
    context = Context(Options(target="reference"), target=find_target("reference"))
    context.declined.append(Declined("fold", Origin("Relu", "r", "z"), "only an example"))
    return compile_module(module(), context)


X = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)


def test_graph_survives() -> None:
    graph = view(module())
    record, constants = graph_to_json(graph)
    copy = graph_from_json(record, constants)
    assert [n.op for n in copy.nodes] == [n.op for n in graph.nodes]
    assert [n.origin for n in copy.nodes] == [n.origin for n in graph.nodes]
    assert copy.inputs[0].shape == ("n", 4) and copy.attrs["dlc.scales"] == {"y": (0.5, 3)}
    assert copy.nodes[1].attrs["value"] == float("-inf")
    assert graph_to_json(copy)[0] == record
    for first, second in zip(interpret(graph, {"x": X}), interpret(copy, {"x": X}), strict=True):
        np.testing.assert_array_equal(first, second)


def test_run() -> None:
    made = package()
    session = dlc.load(made)
    assert [str(i) for i in session.inputs] == ["x:0: float32[n, 4]"]
    assert [i.name for i in session.outputs] == ["z/out", "f"]
    outputs = session.run({"x:0": X})
    w = made.constants("constants.safetensors")["c0"]
    np.testing.assert_allclose(outputs["z/out"][:, 1:4], np.maximum(X @ w, 0), rtol=1e-6)
    assert outputs["f"].shape == (30,)


def test_threads_share_a_session() -> None:
    session = dlc.load(package())
    expected = session.run({"x:0": X})["f"]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: session.run({"x:0": X})["f"], range(40)):
            np.testing.assert_array_equal(result, expected)


def test_manifest_and_explanation(tmp_path: Path) -> None:
    made = package()
    assert made.manifest["target"] == "reference" and made.manifest["versions"]["dlc"] == dlc.__version__
    explained = made.json("explain.json")
    assert [row["node"] for row in explained["nodes"]] == ["MatMul 'mm'", "''", "Relu 'r'", "Reshape 'f'"]
    assert explained["declined"] == [{"pass": "fold", "node": "Relu 'r'", "value": "z", "reason": "only an example"}]
    made.save(tmp_path / "first.dlc")
    package().save(tmp_path / "second.dlc")
    assert (tmp_path / "first.dlc").read_bytes() == (tmp_path / "second.dlc").read_bytes()


def test_trace() -> None:
    executable: Any = dlc.load(package()).executable
    steps = list(executable.trace([X], {"n": 6}))
    assert [row["value"] for row, _ in steps] == ["y", "z", "f"]
    assert steps[2][1].shape == (30,)


def test_errors() -> None:
    with pytest.raises(DlcError, match="unknown target 'reference:fast': reference takes no suffix"):
        find_target("reference:fast")
    with pytest.raises(DlcError, match=r"unknown target 'nonsense'; known: .*reference"):
        find_target("nonsense")
    assert "reference" in target_names()
    with pytest.raises(DlcError, match="target 'reference' runs on one thread, got threads=2"):
        dlc.load(package(), threads=2)
    made = package()
    members = {name: made.member(name) for name in made.members}
    with pytest.raises(DlcError, match=r"member 'graph\.json' is not a graph"):
        dlc.load(Package.create(made.manifest, {**members, "graph.json": b"{}"}))


def test_loading_imports_no_compiler(tmp_path: Path) -> None:
    package().save(tmp_path / "m.dlc")
    code = (
        "import sys, dlc, numpy as np\n"
        "s = dlc.load(sys.argv[1]); s.run({'x:0': np.zeros((2, 4), np.float32)})\n"
        "print(sorted({'tvm', 'onnx', 'torch', 'tvm_ffi', 'rich', 'click'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "m.dlc"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
