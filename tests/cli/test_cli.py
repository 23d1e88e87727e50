"""The command line: what each verb does, the exit codes, and the text of every error a user can cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from dlc.cli.main import VERBS, main
from dlc.package import FORMAT, Package


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def fails(*arguments: object) -> str:
    """The text of the one line that a wrong call prints."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("dlc: error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("dlc: error: ").rstrip("\n")


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights so small that the softmax does not saturate: a saturated one hides what is before it."""
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def network(seed: int = 0) -> onnx.ModelProto:
    """softmax(relu(x W + b) V) over x of [n, 8], with odd names on purpose."""
    rng = np.random.default_rng(seed)
    arrays = {"W": (8, 16), "b": (16,), "V": (16, 4)}
    weights = [numpy_helper.from_array(_small(rng, s), name) for name, s in arrays.items()]
    nodes = [
        helper.make_node("Gemm", ["x:0", "W", "b"], ["h/1"], name="first"),
        helper.make_node("Relu", ["h/1"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "V"], ["s"], name="second"),
        helper.make_node("Softmax", ["s"], ["y.out"], name="last", axis=1),
    ]
    x = helper.make_tensor_value_info("x:0", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y.out", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx and model.dlc, made once."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save(network(), folder / "model.onnx")
    done("compile", folder / "model.onnx", "-o", folder / "model.dlc", "--target", "reference")
    return folder


# --- what the verbs do -----------------------------------------------------------------------------------------------


def test_help_names_every_verb() -> None:
    text = done("--help")
    assert all(f"\n  {verb} " in text for verb in VERBS)
    for verb in VERBS:
        assert "Usage: dlc" in done(verb, "--help")
    assert done("--version") == "dlc 0.1.0\n"


def test_compile_is_deterministic(files: Path, tmp_path: Path) -> None:
    text = done("compile", files / "model.onnx", "-o", tmp_path / "again.dlc", "--target", "reference")
    assert text.startswith(f"wrote {tmp_path / 'again.dlc'}: ") and "target reference" in text
    assert (tmp_path / "again.dlc").read_bytes() == (files / "model.dlc").read_bytes()


def test_compile_with_shape(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "three.dlc"
    done("compile", files / "model.onnx", "-o", out, "--target", "reference", "--shape", "x:0=3,8")
    assert Package.open(out).manifest["inputs"] == [{"name": "x:0", "shape": [3, 8], "dtype": "float32"}]


def test_run_on_a_file(files: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"x:0": x})
    text = done("run", files / "model.dlc", "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert text.startswith("y.out: float32[5, 4]  min ")
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_allclose(outputs["y.out"].sum(axis=1), np.ones(5), rtol=1e-5)


def test_run_on_a_folder(files: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for n in (1, 2):
        np.savez(tmp_path / "in" / f"{n}.npz", **{"x:0": np.zeros((n, 8), np.float32)})
    done("run", files / "model.dlc", "--inputs", tmp_path / "in", "-o", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.npz", "2.npz"]


def test_run_on_random_inputs(files: Path) -> None:
    first, again, other = (
        json.loads(done("run", files / "model.dlc", "--random", "--seed", seed, "--json")) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first["y.out"]["shape"] == [1, 4]
    shaped = json.loads(done("run", files / "model.dlc", "--random", "--shape", "x:0=7,8", "--json"))
    assert shaped["y.out"]["shape"] == [7, 4]


def test_check_agrees(files: Path) -> None:
    text = done("check", files / "model.dlc", "--against", files / "model.onnx", "--per-node")
    assert text.startswith("oracle: onnxruntime 1.")
    assert "output 'y.out': agrees (largest difference " in text and "no node differs" in text
    report = json.loads(done("check", files / "model.dlc", "--against", files / "model.onnx", "--per-node", "--json"))
    assert [row["name"] for row in report["nodes"]] == ["h/1", "r", "s", "y.out"]


def changed(folder: Path) -> Path:
    """The model with other weights in its second contraction."""
    model = network()
    v = numpy_helper.to_array(model.graph.initializer[2]) * np.float32(1.5)
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(v, "V"))
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_check_names_the_first_node_that_differs(files: Path, tmp_path: Path) -> None:
    result = invoke("check", files / "model.dlc", "--against", changed(tmp_path), "--per-node")
    assert result.exit_code == 1 and result.stderr == ""
    assert "output 'y.out': differs: " in result.stdout
    assert "first node that differs: MatMul 'second' (value 's', kernel numpy): " in result.stdout


def test_check_by_noise(files: Path, tmp_path: Path) -> None:
    assert "agrees" in done("check", files / "model.dlc", "--against", files / "model.onnx", "--snr", 60)
    result = invoke("check", files / "model.dlc", "--against", changed(tmp_path), "--snr", 60)
    assert result.exit_code == 1
    assert "output 'y.out': differs: signal-to-noise ratio " in result.stdout
    assert "dB, at least 60 wanted" in result.stdout


def test_check_without_onnxruntime(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = done("check", files / "model.dlc", "--against", files / "model.onnx", "--per-node")
    assert text.startswith("oracle: onnx.reference ") and "(onnxruntime is not installed)" in text
    assert "no node differs" in text


def test_check_when_onnxruntime_cannot(files: Path, tmp_path: Path) -> None:
    model = network()
    model.opset_import[0].version = 27  # newer than what onnxruntime knows
    onnx.save(model, tmp_path / "new.onnx")
    text = done("check", files / "model.dlc", "--against", tmp_path / "new.onnx")
    assert text.startswith("oracle: onnx.reference ") and "onnxruntime cannot load the model" in text.split("\n")[0]


def test_bench(files: Path) -> None:
    arguments = ("bench", files / "model.dlc", "--iterations", 20, "--warmup", 1)
    rows = json.loads(
        done(*arguments, "--model", files / "model.onnx", "--against", "onnxruntime", "--shape", "x:0=4,8", "--json")
    )
    assert [row["engine"].split()[0] for row in rows] == ["dlc", "onnxruntime"]
    assert rows[0]["iterations"] == 20 and rows[0]["minimum"] <= rows[0]["median"] <= rows[0]["p99"]
    assert rows[1]["low"] <= rows[1]["ratio"] <= rows[1]["high"]
    assert "median us" in done(*arguments)


def test_explain(files: Path) -> None:
    text = done("explain", files / "model.dlc")
    assert "Gemm 'first'" in text and "why not better" in text
    explained = json.loads(done("explain", files / "model.dlc", "--json"))
    assert {row["op"] for row in explained["nodes"]} >= {"dlc.matmul", "relax.nn.softmax"}


def test_inspect_model(files: Path) -> None:
    text = done("inspect", files / "model.onnx")
    assert "opsets: ai.onnx 17" in text and "  x:0: float[n, 8]" in text and "parameters: 208" in text
    summary = json.loads(done("inspect", files / "model.onnx", "--json"))
    assert summary["operators"] == {"Gemm": 1, "MatMul": 1, "Relu": 1, "Softmax": 1}


def test_inspect_ir(files: Path) -> None:
    for stage in ("frontend", "simplify"):
        text = done("inspect", files / "model.onnx", "--ir", stage, "--target", "reference")
        assert "class Module" in text and "dlc.matmul" in text
    error = fails("inspect", files / "model.onnx", "--ir", "nonsense", "--target", "reference")
    assert error.startswith("no stage 'nonsense'; known: frontend, ")


def test_inspect_package(files: Path) -> None:
    text = done("inspect", files / "model.dlc")
    assert "target: reference" in text and "  y.out: float32[n, 4]" in text and "graph.json" in text
    assert json.loads(done("inspect", files / "model.dlc", "--json"))["format"] == FORMAT
    assert "this is a package" in fails("inspect", files / "model.dlc", "--ir", "frontend")


def test_targets_and_doctor() -> None:
    assert "reference" in done("targets")
    assert json.loads(done("targets", "reference", "--json"))["reference"]["available"] is True
    assert "available: yes" in done("targets", "reference")
    assert fails("targets", "nonsense").startswith("unknown target 'nonsense'; known: ")
    report = json.loads(done("doctor", "--json"))
    assert report["targets"]["reference"] is True and report["versions"]["numpy"] == np.__version__
    assert done("doctor").startswith("dlc 0.1.0, Python 3.")


def test_quantised(files: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "int8.dlc", files / "model.onnx"
    common: tuple[object, ...] = ("compile", model, "-o", out, "--target", "reference", "--quantize", "int8")
    done(*common, "--calibration", "random:3")
    manifest = Package.open(out).manifest
    assert manifest["notes"]["calibration data"] == "random:3" and manifest["options"]["quantize"] == "int8"
    done("check", out, "--against", model, "--snr", 15, "--per-node")
    x = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", **{"x:0": x})
    done(*common, "--calibration", tmp_path / "data.npz")
    assert "calibration data" not in Package.open(out).manifest["notes"]
    np.savez(tmp_path / "odd.npz", **{"x:0": x[:, :5]})
    assert "array 'x:0' has shape [40, 5]" in fails(*common, "--calibration", tmp_path / "odd.npz")
    assert "needs calibration data" in fails(*common)
    assert "no such file" in fails(*common, "--calibration", tmp_path / "none.npz")


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nonsense",), "No such command 'nonsense'."),
        (("compile",), "Missing argument 'MODEL'."),
        (("run", "x.dlc", "--nonsense"), "No such option '--nonsense'."),
        (("run", "x.dlc", "--seed", "-1"), "Invalid value for '--seed': -1 is not in the range x>=0."),
        (("run", "none.dlc", "--random"), "cannot read none.dlc: No such file or directory"),
        (("run", "none.dlc"), "give either --inputs FILE.npz or --random"),
        (("compile", "none.onnx", "-o", "x.dlc", "--target", "reference"), "none.onnx: cannot read the model: No such"),
        (
            ("compile", "zoo:nonsense", "-o", "x.dlc", "--target", "reference"),
            "no model 'nonsense' in the zoo (known: ",
        ),
        (("compile", "m.onnx", "-o", "x.dlc", "--target", "tpu"), "unknown target 'tpu'; known: "),
        (
            ("compile", "m.onnx", "-o", "x.dlc", "--quantize", "int3"),
            "unknown quantize 'int3'; known: none, bf16, int8",
        ),
        (
            ("compile", "m.onnx", "-o", "x.dlc", "--arithmetic", "x"),
            "unknown arithmetic 'x'; known: float, fixed, shift",
        ),
        (("compile", "m.onnx", "-o", "x.dlc", "--shape", "x"), "--shape 'x': expected NAME=EXTENTS"),
        (("compile", "m.onnx", "-o", "x.dlc", "--shape", "x=1,-2"), "--shape 'x=1,-2': extent '-2' is neither"),
        (("inspect", "m.onnx", "--shape", "x=1", "--shape", "x=2"), "--shape: input 'x' is given twice"),
        (("compile", "m.onnx", "-o", "/none/x.dlc"), "cannot write /none/x.dlc: there is no folder /none"),
        (("inspect", "none.onnx"), "cannot read none.onnx: No such file or directory"),
        (("explain", "none.dlc"), "cannot read none.dlc: No such file or directory"),
        (("check", "none.dlc", "--against", "m.onnx"), "cannot read none.dlc: No such file or directory"),
        (("bench", "none.dlc"), "cannot read none.dlc: No such file or directory"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails(*arguments).startswith(text)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("length", [0, 10, 200])
def test_truncated_model(files: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.onnx").write_bytes((files / "model.onnx").read_bytes()[:length])
    error = fails("compile", tmp_path / "cut.onnx", "-o", tmp_path / "cut.dlc", "--target", "reference")
    assert error.startswith(f"{tmp_path / 'cut.onnx'}: not a")
    assert not (tmp_path / "cut.dlc").exists()


def test_unknown_operator_names_the_node(tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Widget", "com.example"
    onnx.save(model, tmp_path / "odd.onnx")
    error = fails("compile", tmp_path / "odd.onnx", "-o", tmp_path / "odd.dlc", "--target", "reference")
    assert "odd.onnx: " in error and "Widget" in error and "com.example" in error and "'act'" in error


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((1, 8), np.float32)}, "input 'x:0' is missing; the model takes x:0: float32[n, 8]; got x"),
        ({"x:0": np.zeros((1, 8))}, "input 'x:0' has dtype float64, expected float32"),
        ({"x:0": np.zeros((1, 9), np.float32)}, "input 'x:0' has shape [1, 9], expected [n, 8]"),
        ({"x:0": np.zeros((1, 8), np.float32), "z": np.zeros(1)}, "unknown input 'z'"),
    ],
)
def test_wrong_inputs(files: Path, tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    assert fails("run", files / "model.dlc", "--inputs", path).startswith(f"{path}: {text}")
    assert text in fails("check", files / "model.dlc", "--against", files / "model.onnx", "--inputs", path)


def test_wrong_input_files(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    path.write_bytes(b"nonsense")
    assert f"{path}: not an .npz file" in fails("run", files / "model.dlc", "--inputs", path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "it holds one array without a name" in fails("run", files / "model.dlc", "--inputs", path)
    np.savez(path, **{"x:0": np.array([{}], dtype=object)})
    assert f"{path}: not an .npz file" in fails("run", files / "model.dlc", "--inputs", path)
    assert "No such file" in fails("run", files / "model.dlc", "--inputs", tmp_path / "none.npz")
    assert "holds no .npz file" in fails("run", files / "model.dlc", "--inputs", files)


def test_another_model(files: Path, tmp_path: Path) -> None:
    model = network()
    model.graph.input[0].name = model.graph.node[0].input[0] = "other"
    onnx.save(model, tmp_path / "other.onnx")
    error = fails("check", files / "model.dlc", "--against", tmp_path / "other.onnx")
    assert error == "the model has no input 'x:0': is it what the package was compiled from?"
    assert "no such file" in fails("check", files / "model.dlc", "--against", tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff nonsense")
    assert "bad.onnx: not an ONNX model" in fails("check", files / "model.dlc", "--against", tmp_path / "bad.onnx")


def test_bench_errors(files: Path) -> None:
    package, model = files / "model.dlc", files / "model.onnx"
    assert "needs the model: --model" in fails("bench", package, "--against", "onnxruntime")
    assert "unknown runtime 'tvm'" in fails("bench", package, "--model", model, "--against", "tvm")
    assert "no such file" in fails("bench", package, "--model", files / "none.onnx", "--against", "onnxruntime")
    assert "there is no input 'z' to give a shape to" in fails("bench", package, "--shape", "z=1")


def test_damaged_package(files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "model.dlc").read_bytes())
    data[data.index(b'"nodes"') + 1] ^= 1
    path = tmp_path / "damaged.dlc"
    path.write_bytes(data)
    for arguments in (("run", path, "--random"), ("explain", path), ("check", path, "--against", files / "model.onnx")):
        assert fails(*arguments).startswith(f"{path}: member ")
    path.write_bytes(bytes(data[:1000]))
    assert "the package is truncated or was altered" in fails("run", path, "--random")
    assert f"{path}: not a dlc package" in fails("run", files / "model.onnx", "--random").replace(
        str(files / "model.onnx"), str(path)
    )


def test_threads(files: Path) -> None:
    assert "runs on one thread" in fails("run", files / "model.dlc", "--random", "--threads", 2)


def test_unexpected_exceptions(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect\nof ours")

    monkeypatch.setattr("dlc.load", broken)
    text = "internal error: ZeroDivisionError: a defect of ours"
    assert fails("run", files / "model.dlc", "--random") == f"{text}; run with -v"
    for arguments in (("-v", "run", files / "model.dlc", "--random"), ("run", files / "model.dlc", "--random", "-v")):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback (most recent call last)" in result.stderr and result.stderr.endswith(f"dlc: error: {text}\n")


# --- as a program ----------------------------------------------------------------------------------------------------


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlc.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_as_a_program(files: Path) -> None:
    good = program("run", files / "model.dlc", "--random")
    assert (good.returncode, good.stderr) == (0, "") and good.stdout.startswith("y.out: float32[1, 4]")
    bad = program("compile", files / "model.onnx", "-o", files / "x.dlc", "--target", "nonsense")
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.startswith("dlc: error: unknown target 'nonsense'")
    closed = subprocess.run(
        f"{sys.executable} -m dlc.cli.main inspect {files / 'model.dlc'} | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in closed.stderr


def test_running_imports_no_compiler(files: Path) -> None:
    code = (
        "import sys; from dlc.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'tvm', 'onnx', 'torch', 'tvm_ffi'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "run", files / "model.dlc", "--random"], capture_output=True, text=True, check=True
    )
    assert run.stdout.endswith("[]\n")


def test_a_sequence_in_parts_and_its_explanation(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (int64[1, time] tokens) => (float[1, time, 2] y)
      <float[4, 2] places = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0},
       float[3, 2] table = {1.0, 0.0, 0.0, 1.0, 1.0, 1.0}, int64 zero = {0}, int64 one = {1}, float low = {-10000.0}> {
        e = Gather (table, tokens)
        size = Shape <start = 1> (tokens)
        steps = Squeeze (size)
        line = Range (zero, steps, one)
        place = Gather (places, line)
        x = Add (e, place)
        turned = Transpose <perm = [0, 2, 1]> (x)
        scores = MatMul (x, turned)
        across = Unsqueeze (line, nought)
        down = Unsqueeze (line, first)
        seen = GreaterOrEqual (down, across)
        masked = Where (seen, scores, low)
        shares = Softmax <axis = 2> (masked)
        y = MatMul (shares, x)
    }"""
    model, package = tmp_path / "m.onnx", tmp_path / "m.dlc"
    text = text.replace("float low", "int64[1] nought = {0}, int64[1] first = {1}, float low")
    onnx.save(onnx.parser.parse_model(text), model)
    wanted = "say how long a sequence may become (max_length)"
    assert fails("compile", model, "-o", package, "--stream").endswith(
        f"node Add 'x': it depends on the positions of the steps: {wanted}"
    )
    assert "it must be positive, and is of a model with stream" in fails(
        "compile", model, "-o", package, "--max-length", 3
    )
    assert not package.exists()
    done("compile", model, "-o", package, "--stream", "--max-length", 4)
    rows = json.loads(done("explain", package, "--stream", "--json"))["nodes"]
    assert sum(row["kernel"].endswith(", in place") for row in rows) == 2
    assert not any(
        row["kernel"].endswith(", in place") for row in json.loads(done("explain", package, "--json"))["nodes"]
    )
    done("compile", model, "-o", package)
    assert "the package has no streaming form; compile it with --stream" in fails("explain", package, "--stream")
