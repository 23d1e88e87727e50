"""CUDA packages on a fake driver: what is called with which arguments, what is given back, what errors say."""

from __future__ import annotations

import gc
import runpy
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlc
from dlc.errors import DlcError
from dlc.package import Package
from dlc.targets.gpu import cuda_driver
from dlc.targets.gpu.target import GpuTarget
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs
from tests.targets.gpu import fake_cuda
from tests.targets.gpu.fake_cuda import FakeCuda

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the fake driver with")
INT8: dict[str, Any] = {"quantize": "int8", "arithmetic": "fixed"}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr("dlc.targets.gpu.target.compile_cuda", fake_cuda.compile_cuda)
    path = fake_cuda.build()
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(path))
    gc.collect()
    fake = FakeCuda(path)
    yield fake
    fake.check()


def _unary(op: str = "Relu", shape: tuple[int | str, ...] = ("N", 3)) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="node")], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _compile(cuda: FakeCuda, model: Any, **options: Any) -> Package:
    package = dlc.compile(model, target="gpu:cuda,sm_86", **options)
    cuda.text = bytes(package.member("kernels.cu")).decode()
    return package


@pytest.mark.parametrize("options", [{}, INT8])
def test_the_embedded_model_is_what_opencl_computes(cuda: FakeCuda, options: dict[str, Any]) -> None:
    images = load_inputs("test")[0]
    more = {**options, "calibration": {"image": load_inputs("calibration")[0][:32]}} if options else {}
    package = _compile(cuda, model_path("vision"), **more)
    session, other = dlc.load(package), dlc.load(dlc.compile(model_path("vision"), target="gpu:opencl", **more))
    for count in (5, 2):
        x = {"image": images[:count]}
        assert np.array_equal(session.run(x)["logits"], other.run(x)["logits"])
    calls = len(package.manifest["build"]["calls"])
    assert sum(line.startswith("cuLaunchKernel") for line in cuda.log()) == 2 * calls
    assert session.run({"image": images[:0]})["logits"].shape == (0, 10)
    assert sum(line.startswith("cuLaunchKernel") for line in cuda.log()) == 2 * calls
    x = [images[:2]]
    ours, theirs = (list(s.executable.trace(x, {"N": 2})) for s in (session, other))  # type: ignore[attr-defined]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)) and len(ours) == calls
    del session
    gc.collect()
    assert cuda.live() == 0


def test_what_one_run_calls(cuda: FakeCuda) -> None:
    session = dlc.load(_compile(cuda, _unary()))
    x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
    for _ in range(2):
        assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    (call,) = session.package.manifest["build"]["calls"]
    begin = [
        "cuInit 0", "cuDevicePrimaryCtxRetain 7", "cuStreamCreate 1", "cuModuleLoadData cubin", "cuStreamSynchronize",
        "cuMemAlloc_v2 24", "cuMemAlloc_v2 24", f"cuModuleGetFunction {call['symbol']}",
    ]  # fmt: skip
    launch = f"cuLaunchKernel {call['symbol']} (1, 1, 1) (256, 1, 1) 0"
    run = ["cuMemcpyHtoDAsync_v2 24", launch, "cuMemcpyDtoHAsync_v2 24", "cuStreamSynchronize"]
    assert cuda.log() == [*begin, *run, *run]
    # Other extents: the old buffers go before new ones come.
    session.run({"x": np.concatenate([x] * 100)})
    again = cuda.log()[len(begin) + 2 * len(run) :]
    assert again[:5] == ["cuMemFree_v2"] * 2 + ["cuMemAlloc_v2 2400"] * 2 + [f"cuModuleGetFunction {call['symbol']}"]
    assert again[6] == f"cuLaunchKernel {call['symbol']} (3, 1, 1) (256, 1, 1) 0"
    before = len(cuda.log())
    del session
    gc.collect()
    end = ["cuMemFree_v2", "cuMemFree_v2", "cuModuleUnload", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2 7"]
    assert cuda.log()[before:] == end and cuda.live() == 0


def test_every_thread_may_run_and_free(cuda: FakeCuda) -> None:
    sessions = [dlc.load(_compile(cuda, _unary("Neg")))]
    results: list[np.ndarray] = []

    def work() -> None:
        session = sessions.pop()
        results.append(session.run({"x": np.ones((4, 3), np.float32)})["y"])
        del session
        gc.collect()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.array_equal(results[0], np.full((4, 3), -1, np.float32)) and cuda.live() == 0


def test_kernels_are_timed_by_events(cuda: FakeCuda) -> None:
    session = dlc.load(_compile(cuda, _unary()))
    session.run({"x": np.ones((2, 3), np.float32)})
    executable: Any = session.executable
    begin = executable.device.record()
    executable.launch({"N": 2})
    live = cuda.live()
    assert executable.device.elapsed(begin, executable.device.record()) == pytest.approx(2.5e-3)
    assert cuda.live() == live - 1 and "HtoD" not in cuda.log()[-2]


def test_ptx_where_the_cubin_is_refused(cuda: FakeCuda) -> None:
    cuda.fail("cuModuleLoadData cubin", 209)
    session = dlc.load(_compile(cuda, _unary()))
    executable: Any = session.executable
    assert executable.device.image == "PTX" and executable.device.driver_version == "12.4"
    assert np.array_equal(session.run({"x": -np.ones((1, 3), np.float32)})["y"], np.zeros((1, 3), np.float32))


def test_the_script_for_a_device_tells_right_from_wrong(
    cuda: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(Path(__file__).parents[3] / "bench" / "cuda_device.py"))
    _compile(cuda, _unary()).save(tmp_path / "relu.dlc")
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    case = {"name": "relu", "rtol": 0.0, "atol": 0.0, "batches": [2]}
    for wrong in (0, 1):
        expected = np.maximum(x, 0)
        expected[0, 0] = wrong
        np.savez(tmp_path / "relu.npz", **{"in:x": x, "out:y": expected})
        assert script["run_case"](tmp_path, case) == (not wrong)
        begin = f"{'FAIL' if wrong else 'ok  '} relu: {wrong} of 12 elements differ; cubin loaded in "
        assert begin in (text := capsys.readouterr().out) and "batch 2: call " in text


# --- what errors say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "advice"), [("sm_90", "compile for gpu:cuda,sm_86"), ("sm_86", "update the driver")])
def test_kernels_that_the_device_refuses(
    cuda: FakeCuda, arch: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.fail("cuModuleLoadData cubin", 209)
    monkeypatch.setattr(fake_cuda, "PTX", b"of another world")
    package = dlc.compile(_unary(), target=f"gpu:cuda,{arch}")
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    assert str(caught.value) == (
        "<package>: device 'Fake 7 (sm_86)', driver of CUDA 12.4, refuses the kernels for "
        f"{arch}: CUDA_ERROR_NO_BINARY_FOR_GPU for the cubin, CUDA_ERROR_INVALID_PTX for the PTX; {advice}"
    )
    del caught
    gc.collect()
    assert cuda.live() == 0


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("cuMemAlloc_v2", 2, "device 'Fake 7 (sm_86)' is out of memory: no room for 24 bytes more"),
        ("cuMemAlloc_v2", 700, "CUDA's cuMemAlloc_v2 failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuModuleGetFunction", 500, "CUDA's cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND"),
        ("cuMemcpyHtoDAsync_v2", 1, "CUDA's cuMemcpyHtoDAsync_v2 failed: CUDA_ERROR_INVALID_VALUE"),
        ("cuLaunchKernel", 1, "CUDA's cuLaunchKernel failed: CUDA_ERROR_INVALID_VALUE"),
        ("cuMemcpyDtoHAsync_v2", 4242, "CUDA's cuMemcpyDtoHAsync_v2 failed: error 4242"),
        ("cuStreamSynchronize", 700, "CUDA's cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_calls_that_fail(cuda: FakeCuda, function: str, code: int, message: str) -> None:
    session = dlc.load(_compile(cuda, _unary()))
    x = {"x": np.ones((2, 3), np.float32)}
    cuda.fail(function, code)
    with pytest.raises(DlcError) as caught:
        session.run(x)
    assert str(caught.value) == message
    cuda.fail("", 0)
    assert np.array_equal(session.run(x)["y"], x["x"])  # nothing is left half done
    del session, caught
    gc.collect()
    assert cuda.live() == 0


def test_more_blocks_than_a_grid_has(cuda: FakeCuda) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2, 2]) for n in "aby"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = dlc.load(_compile(cuda, model))
    x = np.ones((70_000, 2, 2), np.float32)
    with pytest.raises(DlcError, match=r"needs 70000 blocks along axis 2 of its grid; device 'Fake 7 .* 65535 at most"):
        session.run({"a": x, "b": x})
    assert np.array_equal(session.run({"a": x[:3], "b": x[:3]})["y"], 2 * x[:3])


def test_without_a_device(cuda: FakeCuda) -> None:
    package = _compile(cuda, _unary())
    cuda.set_devices(0)
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    message = "<package>: its kernels are for CUDA, and this machine has no CUDA device: compile for gpu:opencl"
    assert str(caught.value) == message
    assert "CUDA: no CUDA device, " in GpuTarget().describe()["description"]


def test_a_broken_driver_is_not_a_missing_one(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _compile(cuda, _unary())
    cuda.fail("cuInit", 999)
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    assert str(caught.value) == "CUDA's cuInit failed: error 999"
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libm.so.6")
    with pytest.raises(DlcError, match="the CUDA driver has no cuInit: update it"):
        dlc.load(package)


def test_devices_are_listed(cuda: FakeCuda) -> None:
    described = GpuTarget().describe()
    assert "CUDA: Fake 7 (sm_86), " in described["description"] and "Fake 7 (sm_86)" in described["devices"]
