"""The GPU target as users see it: the embedded model, ResNet-18, what is explained, and what errors say."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import dlc
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.explain import read
from dlc.targets.gpu import cuda_driver
from dlc.targets.gpu.nvcc import compile_cuda, find_nvcc, parse_resources
from dlc.targets.gpu.target import GpuTarget
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs
from tests.targets.gpu.resnet import resnet18

ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on PATH")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_inputs("test")[0]


@functools.cache
def _embedded(target: str, arithmetic: str = "") -> dlc.Package:
    """The embedded model, in int8 where an arithmetic is named."""
    if not arithmetic:
        return dlc.compile(model_path("vision"), target=target)
    calibration = {"image": load_inputs("calibration")[0][:32]}
    options: dict[str, Any] = {"quantize": "int8", "calibration": calibration, "arithmetic": arithmetic}
    return dlc.compile(model_path("vision"), target=target, **options)


def test_the_embedded_model_in_fp32(images: np.ndarray) -> None:
    session = dlc.load(_embedded("gpu:opencl"))
    oracle = onnxruntime.InferenceSession(str(model_path("vision")), providers=["CPUExecutionProvider"])
    for count in (7, 100, 7):  # buffers are made anew when the batch changes
        batch = images[:count]
        expected = np.asarray(oracle.run(None, {"image": batch})[0])
        assert np.abs(session.run({"image": batch})["logits"] - expected).max() < 1e-3
    assert session.run({"image": images[:0]})["logits"].shape == (0, 10)


@pytest.mark.parametrize(("arithmetic", "count"), [("fixed", 1000), ("float", 100), ("shift", 100)])
def test_the_embedded_model_in_int8_is_the_same_bits(arithmetic: str, count: int, images: np.ndarray) -> None:
    x = {"image": images[:count]}
    expected = dlc.load(_embedded("reference", arithmetic)).run(x)["logits"]
    package = _embedded("gpu:opencl", arithmetic)
    assert np.array_equal(dlc.load(package).run(x)["logits"], expected)
    kernels = [row["kernel"] for row in read(package).nodes]
    assert sum(k == "implicit GEMM, dp4a" for k in kernels) == 9


def test_the_values_of_all_kernels_can_be_seen(images: np.ndarray, tmp_path: Path) -> None:
    package = _embedded("gpu:opencl")
    package.save(tmp_path / "vision.dlc")
    np.savez(tmp_path / "x.npz", image=images[:2])
    arguments = ["check", str(tmp_path / "vision.dlc"), "--against", "zoo:vision", "--inputs", str(tmp_path / "x.npz")]
    result = CliRunner().invoke(main, [*arguments, "--per-node"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_resnet18() -> None:
    model, rng = resnet18(64), np.random.default_rng(1)
    x = {"x": rng.standard_normal((1, 3, 64, 64)).astype(np.float32)}
    actual, expected = (dlc.load(dlc.compile(model, target=t)).run(x)["y"] for t in ("gpu:opencl", "cpu"))
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
    calibration = {"x": rng.standard_normal((2, 1, 3, 64, 64)).astype(np.float32)}
    options: dict[str, Any] = {"quantize": "int8", "arithmetic": "fixed", "calibration": calibration}
    actual, expected = (dlc.load(dlc.compile(model, target=t, **options)).run(x)["y"] for t in ("gpu:opencl", "cpu"))
    assert np.array_equal(actual, expected)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("arithmetic", ["", "fixed"])
def test_nothing_of_the_embedded_model_spills(arch: str, arithmetic: str) -> None:
    package = _embedded("gpu:cuda,sm_80", arithmetic)
    cubin, ptx, resources = compile_cuda(bytes(package.member("kernels.cu")).decode(), arch)
    assert all(used.spills == 0 and 0 < used.registers <= 128 for used in resources.values())
    assert f".target {arch}" in ptx.decode() and cubin[:4] == b"\x7fELF"
    # The generator knows what ptxas says of shared memory.
    rows = read(_embedded("gpu:opencl", arithmetic)).nodes
    assert [resources[row["symbol"]].shared for row in rows] == [row["shared_bytes"] for row in rows]
    assert {row["symbol"] for row in read(package).nodes if row["spill_bytes"] == 0} == set(resources)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_of_resnet18_spills(arch: str) -> None:
    model, rng = resnet18(224), np.random.default_rng(0)
    calibration = {"x": rng.standard_normal((1, 1, 3, 224, 224)).astype(np.float32)}
    for options in ({}, {"quantize": "int8", "arithmetic": "fixed", "calibration": calibration}):
        rows = read(dlc.compile(model, target=f"gpu:cuda,{arch}", **options)).nodes
        assert [row["node"] for row in rows if row["spill_bytes"]] == []


@needs_nvcc
def test_both_languages_have_the_same_kernels(tmp_path: Path) -> None:
    opencl, cuda = _embedded("gpu:opencl"), _embedded("gpu:cuda,sm_80")
    texts = [bytes(p.member(n)).decode() for p, n in ((opencl, "kernels.cl"), (cuda, "kernels.cu"))]
    assert len({text[text.index("KERNEL(256)") :] for text in texts}) == 1
    cuda.save(tmp_path / "vision.dlc")
    result = CliRunner().invoke(main, ["explain", str(tmp_path / "vision.dlc")])
    assert all(heading in result.output for heading in ("registers", "shared bytes", "spill bytes"))


def test_resources_are_read_from_what_ptxas_prints() -> None:
    report = """ptxas info    : Compiling entry function 'k0' for 'sm_80'
ptxas info    : Function properties for k0
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 5184 bytes smem, 380 bytes cmem[0]
"""
    (found,) = parse_resources(report).values()
    assert (found.registers, found.shared, found.spills) == (40, 5184, 20)


# --- what errors say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["gpu:cuda", "gpu:cuda,volta", "gpu:metal", "gpu:opencl,sm_80"])
def test_unknown_suffixes(spec: str) -> None:
    with pytest.raises(DlcError) as caught:
        GpuTarget.parse(spec)
    assert str(caught.value) == f"unknown target '{spec}': gpu takes opencl or cuda,<arch>, such as gpu:cuda,sm_80"


def test_gpu_alone_is_opencl() -> None:
    assert GpuTarget.parse("gpu").spec == "gpu:opencl"
    assert GpuTarget.parse("gpu:cuda,sm_90a").spec == "gpu:cuda,sm_90a"


def _small() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlc.targets.gpu.nvcc.shutil.which", lambda name: None)
    message = "no nvcc on PATH: install NVIDIA's CUDA toolkit, or compile for gpu:opencl"
    with pytest.raises(DlcError, match=message):
        dlc.compile(_small(), target="gpu:cuda,sm_80")
    assert GpuTarget().describe()["nvcc"] == "none"


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know() -> None:
    with pytest.raises(DlcError, match=r"nvcc failed: .*sm_10"):
        dlc.compile(_small(), target="gpu:cuda,sm_10")


def test_without_pyopencl(monkeypatch: pytest.MonkeyPatch) -> None:
    package = dlc.compile(_small(), target="gpu:opencl")
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    assert str(caught.value) == "pyopencl is not installed: pip install 'dlc[gpu]'"
    assert "pyopencl is not installed" in GpuTarget().describe()["description"]


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyopencl

    package = dlc.compile(_small(), target="gpu:opencl")
    monkeypatch.setattr(pyopencl, "get_platforms", list)
    with pytest.raises(DlcError) as caught:
        dlc.load(package)
    message = "no OpenCL device: install a driver, or PoCL with scripts/install-system-packages.sh"
    assert str(caught.value) == message
    assert message in GpuTarget().describe()["description"]


@needs_nvcc
def test_without_a_cuda_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-of-no-machine.so.1")
    with pytest.raises(DlcError) as caught:
        dlc.load(dlc.compile(_small(), target="gpu:cuda,sm_80"))
    message = "its kernels are for CUDA, and this machine has no CUDA driver (libcuda.so.1): compile for gpu:opencl"
    assert str(caught.value) == f"<package>: {message}"
    assert "CUDA: no CUDA driver (libcuda.so.1), nvcc " in GpuTarget().describe()["description"]


def test_several_threads_are_refused() -> None:
    with pytest.raises(DlcError, match="target gpu is driven by one thread, not 2"):
        dlc.load(dlc.compile(_small(), target="gpu:opencl"), threads=2)


def test_what_has_no_kernel_is_named() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [4]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(DlcError) as caught:
        dlc.compile(model, target="gpu:opencl")
    assert str(caught.value) == "node Relu 'relu': target gpu has no kernel: elements of float16"


def test_operators_without_a_kernel_run_on_the_host_between_kernels() -> None:
    """A cubic resize and a determinant between elementwise kernels: the same as the reference, and explained."""
    make = helper.make_node
    nodes = [
        make("Relu", ["x"], ["a"], "relu"),
        make("Resize", ["a", "", "", "sizes"], ["b"], "grow", mode="cubic"),
        make("Add", ["b", "b"], ["c"], "double"),
        make("Det", ["c"], ["d"], "det"),
        make("Abs", ["d"], ["y"], "abs"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 2, 4, 4])], [value("y", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 2, 6, 6])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x = {"x": np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)}
    package = dlc.compile(model, target="gpu:opencl")
    expected = dlc.load(dlc.compile(model, target="reference")).run(x)["y"]
    np.testing.assert_allclose(dlc.load(package).run(x)["y"], expected, rtol=1e-4, atol=1e-5)
    assert {row["op"]: (row["part"], row["why_not_better"]) for row in read(package).nodes} == {
        "Relu": ("part0 (gpu:opencl)", ""),
        "dlc.resize": ("host", "target gpu has no kernel for dlc.resize"),
        "Add": ("part1 (gpu:opencl)", ""),
        "dlc.determinant": ("host", "target gpu has no kernel for dlc.determinant"),
        "Abs": ("part2 (gpu:opencl)", ""),
    }


def test_targets_lists_the_device_and_nvcc() -> None:
    result = CliRunner().invoke(main, ["targets"])
    assert result.exit_code == 0 and "OpenCL: " in result.output and "CUDA: " in result.output
