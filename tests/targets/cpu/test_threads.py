"""Threads: the same bits on any number of them, whatever is shared out; teams begin, wait, fork and end."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import helper

import dlc
from dlc.explain import read
from dlc.targets.cpu import contraction_region
from dlc.targets.cpu.kernels import builder
from dlc.targets.cpu.kernels.builder import Share
from tests.loops import FLOAT, STATE, loop_model
from tests.property.graphs import inputs_of, quantizable_models
from tests.targets.cpu.test_loops import CASES


@pytest.fixture
def everything_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction_region, "_SHARED_MICROSECONDS", 0.0)
    monkeypatch.setattr(builder, "SHARED_ELEMENTS", 1)


def model_of(*nodes: Any, inputs: dict[str, Any], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    del graph.output[0].type.tensor_type.shape.dim[:]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def same_on_threads(package: Any, feed: dict[str, np.ndarray]) -> None:
    wanted = dlc.load(package).run(feed)
    for threads in (2, 3, 5):
        session = dlc.load(package, threads=threads)
        for _ in range(3):
            for name, array in session.run(feed).items():
                np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(drawn=quantizable_models())
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_random_graphs(everything_is_shared: None, quantize: str, drawn: tuple) -> None:
    model, seed = drawn
    options: dict[str, Any] = {"quantize": quantize}
    if quantize == "int8":
        options["calibration"] = {"x": np.stack([inputs_of(model, seed + i) for i in range(1, 4)])}
    package = dlc.compile(model, target="cpu", **options)
    assert package.manifest["build"]["shared"]
    same_on_threads(package, {"x": inputs_of(model, seed)})


@pytest.mark.parametrize("name", sorted(CASES))
def test_loops(everything_is_shared: None, name: str) -> None:
    model = loop_model(**CASES[name])
    rng = np.random.default_rng(3)
    feed: dict[str, Any] = {v.name: rng.random(STATE).astype(np.float32) for v in model.graph.input}
    if "start" in feed:
        feed["start"] = np.array(True)
    same_on_threads(dlc.compile(model, target="cpu"), feed)


def test_a_loop_of_one_thread_between_shared_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # The body's product is short, those around it are long: the others must wait for the loop's end.
    monkeypatch.setattr(contraction_region, "_SHARED_MICROSECONDS", 1.0)
    rng, steps, width = np.random.default_rng(0), 2000, 16
    weights = {
        "w": rng.standard_normal((1, 4 * width, width)).astype(np.float32),
        "r": rng.standard_normal((1, 4 * width, width)).astype(np.float32),
        "axes": np.array([1], np.int64), "v": rng.standard_normal((width, 64)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], "lstm", hidden_size=width),
        helper.make_node("Squeeze", ["h", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    package = dlc.compile(model_of(*nodes, inputs={"x": [steps, 1, width]}, constants=weights), target="cpu")
    rows = {"inside" in row: row["threads"] for row in read(package).nodes if row["kernel"][:4] == "GEMM"}
    assert rows == {False: "all", True: "one"}
    same_on_threads(package, {"x": rng.standard_normal((steps, 1, width)).astype(np.float32)})


@pytest.mark.parametrize(
    "node, shape",
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=-1), [3, 50, 70]),
        (helper.make_node("Softmax", ["x"], ["y"], axis=1), [3, 50, 70]),
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[2]), [9, 31, 40]),
        (helper.make_node("ReduceMax", ["x"], ["y"], axes=[0]), [9, 31, 40]),
        (helper.make_node("ReduceSum", ["x"], ["y"]), [9, 31, 40]),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), [1, 5, 17, 9]),
        (helper.make_node("Exp", ["x"], ["y"]), [1001]),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[2, 0, 1]), [5, 6, 7]),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [7, 33]),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [1, 33]),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), ["rows", 33]),
        (helper.make_node("Exp", ["x"], ["y"]), ["rows", "columns"]),
    ],
    ids=lambda v: v.op_type if hasattr(v, "op_type") else "x".join(map(str, v)),
)
def test_kernels(everything_is_shared: None, node: Any, shape: list[Any]) -> None:
    rng = np.random.default_rng(1)
    constants = {"w": rng.standard_normal((33, 130)).astype(np.float32)} if node.op_type == "MatMul" else {}
    package = dlc.compile(model_of(node, inputs={"x": shape}, constants=constants), target="cpu")
    sizes = {"rows": 13, "columns": 21}
    x = rng.standard_normal([sizes.get(d, d) for d in shape]).astype(np.float32)
    same_on_threads(package, {"x": x})


def test_short_kernels_stay_on_one_thread() -> None:
    node = helper.make_node("Exp", ["x"], ["y"])
    small, large = (dlc.compile(model_of(node, inputs={"x": [n]}, constants={}), target="cpu") for n in (100, 1 << 16))
    assert not small.manifest["build"]["shared"] and large.manifest["build"]["shared"]


def test_parts_are_even() -> None:
    assert Share.best([1, 56, 64]) == 1
    assert Share.best([3, 7, 32]) == 2
    assert Share.best([8, 16]) == 0
    assert Share.best([1, 1]) == 0


@pytest.fixture
def package() -> Any:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    constants = {n: rng.standard_normal((256, 256)).astype(np.float32) for n in ("w", "v")}
    made = dlc.compile(model_of(*nodes, inputs={"x": [64, 256]}, constants=constants), target="cpu")
    assert made.manifest["build"]["shared"]
    return made


def inputs(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((64, 256)).astype(np.float32)}


def test_calls_at_once_are_right(package: Any) -> None:
    alone, session = dlc.load(package), dlc.load(package, threads=2)
    wanted = [alone.run(inputs(seed))["y"] for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not np.array_equal(session.run(inputs(seed))["y"], wanted[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_team_sleeps_and_ends_with_its_session(package: Any) -> None:
    gc.collect()  # teams of earlier tests
    before = tasks()
    session = dlc.load(package, threads=4)
    wanted = session.run(inputs(0))["y"]
    assert tasks() == before + 3
    time.sleep(0.3)
    busy = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - busy < 0.25  # the workers sleep by now
    np.testing.assert_array_equal(session.run(inputs(0))["y"], wanted)
    del session
    gc.collect()
    assert tasks() == before


def test_a_fork_gets_a_team_of_its_own(package: Any) -> None:
    session = dlc.load(package, threads=2)
    wanted = session.run(inputs(0))["y"]
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(session.run(inputs(0))["y"], wanted) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    pytest.fail("the forked process hangs")
