"""Compiling for several workers: the plans mean what the whole model means, and the package says who does what."""

from __future__ import annotations

import builtins
import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.errors import DlcError
from dlc.targets.base import find_target
from dlc.targets.multi import tensor
from dlc.targets.multi.program import Plan
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs
from tests.property.graphs import inputs_of, quantizable_models
from tests.targets.multi.plans import simulate

FORMS = ("2xreference", "3xreference", "2xreference,tensor", "3xreference,tensor")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quantize", ["none", "int8"])
@settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(drawn=quantizable_models())
def test_the_parts_mean_the_whole(form: str, quantize: Any, drawn: tuple) -> None:
    model, seed = drawn
    x = inputs_of(model, seed)
    options: dict[str, Any] = {"quantize": quantize}
    if quantize == "int8":
        options |= {"arithmetic": "fixed", "calibration": {"x": np.stack([inputs_of(model, seed + 1)])}}
    expected = dlc.load(dlc.compile(model, target="reference", **options)).run({"x": x})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor, "LEAST", 2)  # the random models are narrow
        try:
            package = dlc.compile(model, target=f"multi:{form}", **options)
        except DlcError as error:
            assert "too few for" in str(error) or "can be split" in str(error)
            return
    actual = simulate(package, {"x": x})
    for name, array in expected.items():
        if quantize == "int8":
            np.testing.assert_array_equal(actual[name], array)
        else:
            # numpy may sum a matrix product of another shape in another order
            np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-5 * max(1, np.abs(array).max()))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return load_inputs("test")[0]


def test_the_rows_carry_their_stage(images: np.ndarray) -> None:
    package = dlc.compile(model_path("vision"), target="multi:2xcpu")
    explained = package.json("explain.json")
    plan = Plan.from_json(package.manifest["build"])
    stages = [row["stage"] for row in explained["nodes"]]
    assert stages == sorted(stages) and set(stages) == {"0", "1"}
    for row in explained["nodes"]:
        assert row["predicted_stage_us"] == plan.stages[int(row["stage"])]["predicted_us"] > 0
    (reason,) = [d["reason"] for d in explained["declined"] if d["pass"] == "multi"]
    assert reason.startswith("stage 0 is predicted at ") and "; cut one operator " in reason
    weights = [stage["weights"] for stage in plan.stages]
    whole = dlc.compile(model_path("vision"), target="reference").constants("constants.safetensors")
    assert sum(weights) == sum(array.nbytes for array in whole.values())
    single = dlc.load(dlc.compile(model_path("vision"), target="cpu")).run({"image": images[:3]})["logits"]
    np.testing.assert_allclose(simulate(package, {"image": images[:3]})["logits"], single, rtol=1e-5, atol=1e-5)


def test_the_tensor_form_halves_the_weights() -> None:
    package = dlc.compile(model_path("vision"), target="multi:2xreference,tensor")
    explained = package.json("explain.json")
    assert {row["stage"] for row in explained["nodes"]} == {"1/2 on each", "on each"}
    split = [row["node"] for row in explained["nodes"] if row["stage"] == "1/2 on each"]
    assert len([node for node in split if node.startswith("Conv")]) >= 4
    reasons = [d["reason"] for d in explained["declined"] if d["pass"] == "multi"]
    assert "runs on every worker: 10 output channels are fewer than 16 for each of 2 workers" in reasons
    whole = dlc.compile(model_path("vision"), target="reference").constants("constants.safetensors")
    total = sum(array.nbytes for array in whole.values())
    for stage in Plan.from_json(package.manifest["build"]).stages:
        assert 0.5 * total <= stage["weights"] < 0.6 * total


def test_a_stage_that_does_not_fit_its_device() -> None:
    needs = r"needs [\d.]+ MB \(weights [\d.]+ MB, activations [\d.]+ MB\) and a device has 0.1 MB; take more "
    with pytest.raises(
        DlcError, match=r"multi:2xcpu,memory=100K: no cut into 2 stages fits: at best, stage \d " + needs
    ):
        dlc.compile(model_path("vision"), target="multi:2xcpu,memory=100K")
    with pytest.raises(DlcError, match="multi:2xcpu,tensor,memory=100K: a worker " + needs):
        dlc.compile(model_path("vision"), target="multi:2xcpu,tensor,memory=100K")
    package = dlc.compile(model_path("vision"), target="multi:2xreference,memory=5M")
    assert package.manifest["target"] == "multi:2xreference,memory=5M"


@pytest.mark.parametrize("spec", ["multi:cpu", "multi:0xcpu", "multi:2x", "multi:2xcpu,fast", "multi:2xcpu,memory=x"])
def test_specs_that_mean_nothing(spec: str) -> None:
    with pytest.raises(DlcError, match=r"unknown target '|unknown instruction set|',fast'|fast"):
        find_target(spec)


def test_specs() -> None:
    assert find_target("multi").describe()["description"].startswith("a model over several processes, such as multi:")
    target: Any = find_target("multi:3xcpu:avx2,memory=2G,tensor")
    assert (target.count, target.inner.spec, target.tensor, target.memory) == (3, "cpu:avx2", True, 2 * 10**9)
    with pytest.raises(DlcError, match="unknown target 'multi:cpu': expected multi:<n>x<target>, as in multi:2xcpu"):
        find_target("multi:cpu")
    with pytest.raises(DlcError, match="unknown target 'multi:2xmulti:2xcpu': multi cannot be its own inner target"):
        find_target("multi:2xmulti:2xcpu")


def test_describe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("ray", "torch") else real(name))
    described = find_target("multi").describe()
    assert described == {"available": False, "reason": "ray and torch not installed: install dlc[distributed]"}


def test_compiling_needs_neither_ray_nor_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("ray", "torch"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert dlc.compile(model_path("vision"), target="multi:2xreference").manifest["build"]["form"] == "pipeline"


def test_too_few_operators() -> None:
    with pytest.raises(DlcError, match=r"multi:200xcpu: the model has \d+ operators, too few for 200 stages"):
        dlc.compile(model_path("vision"), target="multi:200xcpu")


def test_nothing_to_split() -> None:
    with pytest.raises(DlcError, match="no convolution or matmul can be split: each needs constant weights and 16 out"):
        dlc.compile(model_path("vision"), target="multi:50xcpu,tensor")


def test_outputs_that_are_inputs_or_constants() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["w"], ["fixed"]),
        helper.make_node("Identity", ["z"], ["twice"]),
    ]
    w = np.arange(16, dtype=np.float32).reshape(4, 4)
    rows = {"y": "n", "z": "n", "same": "n", "fixed": 4, "twice": "n"}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, 4]) for name, n in rows.items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = dlc.load(dlc.compile(model, target="reference")).run({"x": data})
    actual = simulate(dlc.compile(model, target="multi:2xreference"), {"x": data})
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-6, err_msg=name)
