"""The target: whole models, equal to the reference; packages, explanations, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.explain import read
from dlc.package import Package
from dlc.zoo import samples
from tests.resnet import resnet18

IMAGES = samples("vision", "test")["image"]


def build(target: str, arithmetic: str, model: Any = "zoo:vision", calibration: Any = "zoo:vision") -> Package:
    return dlc.compile(model, target=target, quantize="int8", arithmetic=arithmetic, calibration=calibration)


@pytest.fixture(scope="module")
def q31() -> Package:
    return build("vta", "fixed")


def test_q31_equals_the_reference(q31: Package) -> None:
    expected = dlc.load(build("reference", "fixed")).run({"image": IMAGES[:12]})["logits"]
    actual = dlc.load(q31).run({"image": IMAGES[:12]})["logits"]
    np.testing.assert_array_equal(actual, expected)


@pytest.fixture(scope="module")
def shifted() -> np.ndarray:
    """What the CPU gives in shift arithmetic."""
    logits: np.ndarray = dlc.load(build("cpu", "shift")).run({"image": IMAGES[:6]})["logits"]
    return logits


@pytest.mark.parametrize("target", ["vta:original", "vta:q31"])
def test_shift_arithmetic_equals_the_cpu(target: str, shifted: np.ndarray) -> None:
    package = build(target, "shift")
    np.testing.assert_array_equal(dlc.load(package).run({"image": IMAGES[:6]})["logits"], shifted)
    assert sum(row["kernel"] == "vta conv" for row in read(package).nodes) == 10


def test_explanation_has_cycles_of_each_layer_and_of_the_whole(q31: Package) -> None:
    rows = [row for row in read(q31).nodes if "cycles" in row]
    layers, total = rows[:-1], rows[-1]
    assert len(layers) == 11 and total["op"] == "program"
    assert sum(row["cycles"] for row in layers) == pytest.approx(total["cycles"], abs=50)
    figures = q31.manifest["build"]["vta"]
    assert figures["config"] == "q31" and figures["cycles"] == total["cycles"]
    assert figures["utilisation"] == pytest.approx(figures["macs"] / 256 / figures["cycles"], abs=1e-4)
    assert 0.5 < figures["utilisation"] < 1


def test_trace_gives_every_layer_as_the_reference_has_it(q31: Package) -> None:
    reference = dlc.load(build("reference", "fixed"))
    sizes = {next(iter(reference.inputs[0].shape)): 2}
    expected = {row["value"]: array for row, array in reference.executable.trace([IMAGES[:2]], sizes)}  # type: ignore[union-attr]
    found = list(dlc.load(q31).executable.trace([IMAGES[:2]], sizes))  # type: ignore[union-attr]
    compared = 0
    for row, array in found:
        if row["kernel"].startswith("vta") and row["value"] in expected and array.dtype == np.float32:
            np.testing.assert_array_equal(array, expected[row["value"]].reshape(array.shape), err_msg=row["value"])
            compared += 1
    assert compared >= 9


def test_loading_and_running_need_no_compiler(q31: Package, tmp_path: Path) -> None:
    q31.save(tmp_path / "v.dlc")
    code = (
        "import sys, numpy, dlc\n"
        f"session = dlc.load({str(tmp_path / 'v.dlc')!r})\n"
        "session.run({'image': numpy.zeros((1, 1, 28, 28), numpy.float32)})\n"
        "assert not {'tvm', 'onnx'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_model_gives_the_same_bytes(q31: Package) -> None:
    again = build("vta", "fixed")
    assert again.manifest["members"] == q31.manifest["members"]


# --- what stays on the host ------------------------------------------------------------------------------------------


def _declined(package: Package) -> dict[str, str]:
    return {row["value"]: row["reason"] for row in read(package).declined if row["pass"] == "vta"}


def test_floats_stay_on_the_host_with_the_reason() -> None:
    package = dlc.compile("zoo:vision", target="vta")
    reasons = set(_declined(package).values())
    assert reasons == {"runs on the host: it computes in float32; the accelerator has integers only"}
    assert package.manifest["build"]["vta"]["cycles"] == 0
    x = {"image": IMAGES[:2]}
    expected = dlc.load(dlc.compile("zoo:vision", target="cpu")).run(x)["logits"]
    np.testing.assert_array_equal(dlc.load(package).run(x)["logits"], expected)


def test_a_model_of_both_sides_equals_the_reference() -> None:
    """A sigmoid between two convolutions, and a dense layer that is too large for the weight buffer."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.3, (8, 3, 3, 3)), "v": rng.normal(0, 0.2, (16, 8, 3, 3)),
              "d": rng.normal(0, 0.02, (16 * 576, 5))}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "both", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    package = build("vta:q31", "fixed", model, "random:3")
    reasons = " ".join(_declined(package).values())
    assert "too large for the WGT buffer at its smallest tile: needs 147456 of 130816 bytes" in reasons
    x = {"x": rng.standard_normal((2, 3, 24, 24)).astype(np.float32)}
    expected = dlc.load(build("reference", "fixed", model, "random:3")).run(x)["y"]
    np.testing.assert_array_equal(dlc.load(package).run(x)["y"], expected)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_arithmetic_that_the_configuration_lacks_is_refused() -> None:
    with pytest.raises(DlcError, match=r"target vta:q31 has no float arithmetic: compile with --arithmetic fixed or"):
        build("vta", "float")
    with pytest.raises(DlcError, match=r"target vta:original has no fixed arithmetic: compile with --arithmetic shift"):
        build("vta:original", "fixed")


def test_unknown_configurations_are_named() -> None:
    with pytest.raises(DlcError, match="unknown configuration 'q15' of target vta; known: original, q31"):
        build("vta:q15", "fixed")


def test_another_version_of_the_instruction_set_is_refused(q31: Package) -> None:
    from dlc.targets.vta.runtime import load

    name = next(p for p in q31.manifest["build"]["parts"] if "instructions.bin" in q31.nested(p).members)
    nested = q31.nested(name)
    nested.manifest["build"]["version"] = 9
    with pytest.raises(DlcError, match="its program is for version 9 of vta:q31; this dlc simulates version 1"):
        load(nested, 1)
    with pytest.raises(DlcError, match="target vta runs a session on one thread, not 2"):
        load(nested, 2)


# --- ResNet-18 -------------------------------------------------------------------------------------------------------


def _resnet(size: int, width: int, classes: int) -> Package:
    model = resnet18(size, classes, width=width)
    package = build("vta:q31", "fixed", model, "random:2")
    expected = build("cpu", "fixed", model, "random:2")
    x = {"x": np.random.default_rng(5).standard_normal((1, 3, size, size)).astype(np.float32)}
    np.testing.assert_array_equal(dlc.load(package).run(x)["y"], dlc.load(expected).run(x)["y"])
    kernels = [row["kernel"] for row in read(package).nodes]
    assert (kernels.count("vta conv"), kernels.count("vta max")) == (22, 1)
    return package


def test_a_small_resnet18_runs_on_the_array() -> None:
    _resnet(64, 16, 10)


@pytest.mark.slow
def test_resnet18_runs_on_the_array() -> None:
    package = _resnet(224, 64, 1000)
    figures = package.manifest["build"]["vta"]
    assert figures["macs"] == 1_814_073_344
    assert figures["utilisation"] > 0.89
