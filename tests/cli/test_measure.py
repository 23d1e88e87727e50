"""`dlc explain --measure` and `dlc bench --memory`: what they say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import dlc
from dlc import explain, measured, memory
from dlc.errors import DlcError
from dlc.zoo.graphs import Graph, info
from tests.cli.test_cli import done, fails, network
from tests.loops import loop_model, op


def _several() -> onnx.ModelProto:
    """A convolution, a depthwise one, a pool, a mean and a product: kernels of all kinds."""
    net, rng = Graph({}), np.random.default_rng(0)

    def weight(*shape: int) -> str:
        return net.constant(f"w{shape}", (0.1 * rng.standard_normal(shape)).astype(np.float32))

    x = net.op("Relu", [net.op("Conv", ["x", weight(32, 3, 3, 3)], kernel_shape=[3, 3], pads=[1] * 4)])
    x = net.op("Conv", [x, weight(32, 1, 3, 3)], kernel_shape=[3, 3], group=32)
    x = net.op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])])
    net.op("Softmax", [net.op("MatMul", [x, weight(32, 10)])], ["y"])
    given, made = info("x", TensorProto.FLOAT, [1, 3, 32, 32]), info("y", TensorProto.FLOAT, [1, 10])
    return net.model("net", [given], [made])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    onnx.save(network(), folder / "model.onnx")
    onnx.save(_several(), folder / "several.onnx")
    for name in ("model", "several"):
        done("compile", folder / f"{name}.onnx", "-o", folder / f"{name}.dlc")
    done("compile", folder / "model.onnx", "-o", folder / "reference.dlc", "--target", "reference")
    return folder


def test_every_kernel_has_both_times(files: Path) -> None:
    found = json.loads(done("explain", files / "several.dlc", "--measure", "--json"))
    assert len(found["nodes"]) >= 6
    for row in found["nodes"]:
        assert row["predicted_us"] > 0 and row["measured_us"] > 0, row
    assert 0 <= found["predicted_close"] <= 1
    assert found["predicted_close"] == pytest.approx(measured.share_close(found["nodes"]))
    text = done("explain", files / "several.dlc", "--measure")
    assert "measured us" in text and "predicted us" in text
    last = text.strip().splitlines()[-1]
    assert last.startswith("predicted within 1.5 of measured: kernels of ") and last.endswith(" % of the time")


def test_without_measuring_nothing_runs(files: Path) -> None:
    found = json.loads(done("explain", files / "several.dlc", "--json"))
    assert "predicted_close" not in found and not any("measured_us" in row for row in found["nodes"])


def test_symbolic_extents(files: Path) -> None:
    """A prediction for a guess is scaled to what is measured, and says so."""
    rows = {}
    for n in (64, 640):
        found = json.loads(done("explain", files / "model.dlc", "--measure", "--shape", f"x:0={n},8", "--json"))
        rows[n] = found["nodes"][0]
        assert rows[n]["predicted_for"] == f"n={n}"
    assert rows[640]["predicted_us"] == pytest.approx(10 * rows[64]["predicted_us"])
    assert "'x:0'" in fails("explain", files / "model.dlc", "--measure", "--shape", "x:0=4,9")


def test_it_computes_what_it_did(files: Path) -> None:
    """Measuring leaves a session as it was."""
    session = dlc.load(files / "several.dlc")
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    before = session.run(feed)["y"]
    measured.measure(session, explain.read(session.package), feed, 0.001)
    np.testing.assert_array_equal(session.run(feed)["y"], before)


def test_a_loop_counts_as_one_kernel() -> None:
    body = [op("Tanh", "a", "t"), op("Add", "t x", "a1")]
    package = dlc.compile(loop_model(body, {"a": "a1"}, ["t"]), cache=False)
    feed = {name: np.ones((3, 4), np.float32) for name in ("a_0", "x")}
    rows = measured.measure(dlc.load(package), explain.read(package), feed, 0.001).nodes
    assert any("inside" in row for row in rows)
    for row in rows:
        assert ("measured_us" in row) == ("inside" not in row), row


def test_targets_that_do_not_measure(files: Path) -> None:
    error = fails("explain", files / "reference.dlc", "--measure")
    assert error.endswith("target 'reference' does not measure its kernels one by one")


def test_share_close() -> None:
    rows = [
        {"measured_us": 3.0, "predicted_us": 2.0},
        {"measured_us": 2.0, "predicted_us": 3.0},
        {"measured_us": 1.0, "predicted_us": 1.51},
        {"measured_us": 4.0, "predicted_us": None},
        {"predicted_us": 100.0},
    ]
    assert measured.share_close(rows) == pytest.approx(0.5)
    assert measured.share_close([]) == 1.0


def test_memory(files: Path) -> None:
    common = ("bench", files / "model.dlc", "--shape", "x:0=4,8", "--iterations", 2, "--memory")
    (alone,) = json.loads(done(*common, "--json"))
    assert alone["peak"] > 10e6 and "compile_peak" not in alone
    pytest.importorskip("onnxruntime")
    ours, peer = json.loads(done(*common, "--model", files / "model.onnx", "--against", "onnxruntime", "--json"))
    assert min(ours["peak"], peer["peak"]) > 10e6 and ours["compile_peak"] > ours["peak"]
    text = done(*common, "--model", files / "model.onnx", "--against", "onnxruntime")
    assert "compiling" in text and text.count(" MB") == 3


def test_memory_of_what_fails(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match=r"none.dlc: peak memory of dlc: .*none.dlc"):
        memory.running("dlc", tmp_path / "none.dlc", {})
    with pytest.raises(DlcError, match=r"none.onnx: peak memory of compile: .*none.onnx"):
        memory.compiling(tmp_path / "none.onnx", {"quantize": "none"})
