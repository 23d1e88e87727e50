"""The session: what it takes, what it refuses and in which words, threads, preallocated outputs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import dlc
from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.session import Session
from tests.frontends.build import model

ROOT = Path(__file__).parents[2]
BEYOND = 2**40  # rows of floats that no machine holds


class Doubler:
    """y = 2 a + b, where a is [n, 3] and b is [n]."""

    def __init__(self) -> None:
        self.calls = 0
        self.lock = threading.Lock()

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        a, b = inputs
        assert a.flags.c_contiguous and a.flags.aligned and a.shape == (sizes["n"], 3)
        np.add(2 * a, b[:, None], out=outputs[0])
        outputs[1][...] = sizes["n"]
        with self.lock:
            self.calls += 1

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        return [(sizes["n"], 3), ()]

    def clone(self) -> Doubler:
        return Doubler()


MANIFEST = {
    "target": "double",
    "runtime": "double_runtime",
    "inputs": [
        {"name": "a", "shape": ["n", 3], "dtype": "float32"},
        {"name": "b", "shape": ["n"], "dtype": "float32"},
    ],
    "outputs": [{"name": "y", "shape": ["n", 3], "dtype": "float32"}, {"name": "k", "shape": [], "dtype": "int64"}],
}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    module: Any = types.ModuleType("double_runtime")
    module.load = lambda package, threads: Doubler()
    monkeypatch.setitem(sys.modules, "double_runtime", module)
    yield dlc.load(Package.create(MANIFEST, {}))


def feeds(n: int = 2) -> dict[str, np.ndarray]:
    return {"a": np.arange(3 * n, dtype=np.float32).reshape(n, 3), "b": np.ones(n, np.float32)}


def test_run(session: Session) -> None:
    assert [str(i) for i in session.inputs] == ["a: float32[n, 3]", "b: float32[n]"]
    assert [i.shape for i in session.outputs] == [("n", 3), ()]
    for n in (2, 5, 2):
        outputs = session.run(feeds(n))
        np.testing.assert_array_equal(outputs["y"], 2 * feeds(n)["a"] + 1)
        assert list(outputs) == ["y", "k"] and outputs["k"] == n and outputs["k"].shape == ()


def test_memory_that_is_not_contiguous_or_aligned(session: Session) -> None:
    wide = np.zeros((2, 6), np.float32)
    wide[:, ::2] = feeds()["a"]
    raw = np.zeros(9, np.uint8)
    odd = raw[1:].view(np.float32)
    odd[:] = 1
    assert not odd.flags.aligned
    outputs = session.run({"a": wide[:, ::2], "b": odd})
    np.testing.assert_array_equal(outputs["y"], 2 * feeds()["a"] + 1)
    np.testing.assert_array_equal(
        session.run({"a": np.asfortranarray(feeds()["a"]), "b": odd})["y"], 2 * feeds()["a"] + 1
    )


class Foreign:
    """Another library's array, as DLPack sees it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_dlpack(session: Session) -> None:
    values = feeds()
    result = Foreign(np.zeros((2, 3), np.float32))
    outputs = session.run({"a": Foreign(values["a"]), "b": values["b"]}, {"y": result})
    assert outputs["y"] is result
    np.testing.assert_array_equal(result.array, 2 * values["a"] + 1)

    class Elsewhere(Foreign):
        def __dlpack__(self, **keywords: Any) -> Any:
            raise BufferError("on another device")

    with pytest.raises(DlcError, match="input 'a' cannot be read through DLPack: on another device"):
        session.run({"a": Elsewhere(values["a"]), "b": values["b"]})


def test_subclasses_of_ndarray(session: Session, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", feeds()["a"])
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(session.run({"a": mapped, "b": feeds()["b"]})["y"], 2 * feeds()["a"] + 1)


TAKES = r"the model takes a: float32\[n, 3\]; b: float32\[n\]"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"b": None}, f"input 'b' is missing; {TAKES}; got a$"),
        ({"b": None, "c": np.ones(2)}, f"input 'b' is missing; {TAKES}; got a, c$"),
        ({"c": np.ones(2)}, f"unknown input 'c'; {TAKES}$"),
        ({"a": np.ones((2, 3))}, "input 'a' has dtype float64, expected float32"),
        ({"a": np.ones((2, 3), ">f4")}, "input 'a' has dtype >f4, expected float32"),
        ({"a": np.ones(3, np.float32)}, r"input 'a' has shape \[3\], expected \[n, 3\]"),
        ({"a": np.ones((2, 4), np.float32)}, r"input 'a' has shape \[2, 4\], expected \[n, 3\]"),
        ({"b": np.ones(3, np.float32)}, r"input 'b' has shape \[3\], expected \[n\]; n is 2 from input 'a'"),
        ({"b": [1.0, 2.0]}, "input 'b' is a list; expected a numpy array or one that speaks DLPack"),
    ],
)
def test_bad_inputs(session: Session, changes: dict[str, Any], text: str) -> None:
    given = {name: value for name, value in {**feeds(), **changes}.items() if value is not None}
    with pytest.raises(DlcError, match=text):
        session.run(given)


def test_preallocated_outputs(session: Session) -> None:
    y = np.zeros((2, 3), np.float32)
    outputs = session.run(feeds(), {"y": y})
    assert outputs["y"] is y and outputs["k"] == 2
    np.testing.assert_array_equal(y, 2 * feeds()["a"] + 1)


def _readonly() -> np.ndarray:
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"z": np.zeros(1)}, r"unknown output 'z'; the model gives y: float32\[n, 3\]; k: int64\[\]"),
        (
            {"y": np.zeros((3, 3), np.float32)},
            r"output 'y' is preallocated as float32\[3, 3\], expected float32",
        ),
        ({"y": np.zeros((2, 3))}, r"output 'y' is preallocated as float64\[2, 3\], expected float32\[2, 3\]"),
        ({"y": np.zeros((3, 2), np.float32).T}, "output 'y': the preallocated array must be contiguous"),
        ({"y": _readonly()}, "output 'y': the preallocated array must be contiguous, aligned and writable"),
        ({"y": [[0.0]]}, "output 'y' is a list; expected a numpy array"),
    ],
)
def test_bad_preallocated_outputs(session: Session, outputs: dict[str, Any], text: str) -> None:
    with pytest.raises(DlcError, match=text):
        session.run(feeds(), outputs)


def test_outputs_must_not_overlap_inputs(session: Session) -> None:
    values = feeds()
    with pytest.raises(DlcError, match="output 'y': the preallocated array overlaps an input"):
        session.run(values, {"y": values["a"]})


def test_bind(session: Session) -> None:
    given, place = feeds(3), np.empty((3, 3), np.float32)
    bound = session.bind(given, {"y": place})
    assert bound.outputs["y"] is place and bound.inputs["a"] is given["a"]
    for number in range(3):
        given["b"][:] = number
        bound.run()
        np.testing.assert_array_equal(place, 2 * given["a"] + number)
    assert bound.outputs["k"] == 3


@pytest.mark.parametrize(
    ("change", "outputs", "text"),
    [
        ({"a": np.zeros((3, 2), np.float32).T}, {}, "input 'a': the array to bind must be contiguous and aligned"),
        ({"a": np.zeros((2, 4), np.float32)}, {}, r"input 'a' has shape \[2, 4\], expected \[n, 3\]"),
        ({}, {"y": np.zeros((3, 3), np.float32)}, r"output 'y' is preallocated as float32\[3, 3\]"),
    ],
)
def test_what_cannot_be_bound(
    session: Session, change: dict[str, np.ndarray], outputs: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(DlcError, match=text):
        session.bind(feeds(2) | change, outputs)


def test_outputs_of_unknown_extents_have_no_places() -> None:
    proto = model([helper.make_node("NonZero", ["x"], ["y"])], {"x": [4]}, ["y"])
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(DlcError, match="their extents depend on the data"):
        dlc.load(dlc.compile(proto)).bind({"x": np.ones(4, np.float32)})


@pytest.mark.parametrize("threads", [1, 2])
def test_bindings_are_independent_of_runs_and_of_each_other(threads: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((300, 400)).astype(np.float32)
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 300]}, ["y"], {"w": weight})
    session = dlc.load(dlc.compile(proto), threads=threads)
    inputs = [rng.standard_normal((n, 300)).astype(np.float32) for n in (64, 3)]
    bindings = [session.bind({"x": x}) for x in inputs]
    for _ in range(2):
        for x, bound in zip(inputs, bindings, strict=True):
            session.run({"x": x[:2]})
            x += 1
            bound.run()
            np.testing.assert_array_equal(bound.outputs["y"], session.run({"x": x})["y"])


def test_a_bound_run_keeps_what_it_needs() -> None:
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 512]}, ["y"], {"w": weight})
    bound = dlc.load(dlc.compile(proto)).bind({"x": np.ones((1, 512), np.float32)})
    result, run = bound.outputs["y"], bound.run
    del bound
    gc.collect()
    taken = [np.full((1, 512), np.nan, np.float32) for _ in range(100)]  # where the input lay, were it free
    run()
    np.testing.assert_allclose(result, weight.sum(0)[None], rtol=1e-4, atol=1e-3)
    assert len(taken) == 100


def test_threads_share_a_session(session: Session) -> None:
    def work(seed: int) -> None:
        n = 1 + seed % 7
        a = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
        for _ in range(50):
            np.testing.assert_array_equal(session.run({"a": a, "b": np.zeros(n, np.float32)})["y"], 2 * a)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert session.executable.calls == 16 * 50  # type: ignore[attr-defined]


def test_many_shapes(session: Session) -> None:
    for n in range(1, 400):
        assert session.run(feeds(n))["y"].shape == (n, 3)


def test_clone(session: Session) -> None:
    twin = session.clone()
    assert twin.executable is not session.executable and twin.inputs == session.inputs
    np.testing.assert_array_equal(twin.run(feeds())["y"], session.run(feeds())["y"])


@pytest.mark.parametrize("threads", [0, -1, 1.5])
def test_bad_threads(session: Session, threads: Any) -> None:
    with pytest.raises(DlcError, match="threads must be a positive number"):
        dlc.load(session.package, threads=threads)


def test_unknown_runtime() -> None:
    with pytest.raises(DlcError, match="the runtime of target 'x' is not installed: No module named 'no_such_runtime'"):
        dlc.load(Package.create({**MANIFEST, "target": "x", "runtime": "no_such_runtime"}, {}))
    with pytest.raises(DlcError, match="the manifest lacks 'inputs'"):
        dlc.load(Package.create({"runtime": "json"}, {}))


def test_features_are_checked_before_code_is_loaded() -> None:
    variants = [{"name": "v", "arch": "", "requires": ["no_such_feature"], "members": []}]
    manifest = {**MANIFEST, "runtime": "no_such_runtime", "variants": variants}
    with pytest.raises(DlcError, match="lacks features that the package needs: no_such_feature"):
        dlc.load(Package.create(manifest, {}))


def test_importing_is_light() -> None:
    code = "import sys, dlc, dlc.runtime.session; print(sorted({'tvm', 'onnx', 'torch', 'tvm_ffi'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


# --- sizes beyond memory ---------------------------------------------------------------------------------------------


def test_an_output_without_memory(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.executable, "output_shapes", lambda _: [(BEYOND, 3000), ()])
    inputs = {"a": np.zeros((1, 3), np.float32), "b": np.zeros(1, np.float32)}
    text = rf"output 'y': no memory for float32\[{BEYOND}, 3000\]"
    for outputs in (None, {"k": np.zeros((), np.int64)}):
        with pytest.raises(DlcError, match=text):
            session.run(inputs, outputs)


@pytest.mark.parametrize(
    ("target", "text"), [("reference", "node Expand 'e': Unable to allocate"), ("cpu", "no memory for a workspace of ")]
)
def test_a_value_inside_without_memory(target: str, text: str) -> None:
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"], "e"),
        helper.make_node("MatMul", ["wide", "w"], ["low"]),
        helper.make_node("ReduceSum", ["low", "axis"], ["y"], keepdims=0),
    ]
    constants = {"shape": np.array([BEYOND, 100]), "w": np.ones((100, 100), np.float32), "axis": np.array([0])}
    session = dlc.load(dlc.compile(model(nodes, {"x": [1, 100]}, ["y"], constants), target))
    with pytest.raises(DlcError, match=text):
        session.run({"x": np.zeros((1, 100), np.float32)})
