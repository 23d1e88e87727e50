"""Control flow, and what is left to the host, held to onnxruntime on the interpreter and the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import dlc
from dlc.compiler import module_at
from dlc.errors import DlcError
from dlc.explain import read
from dlc.options import Options

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'
TARGETS = ("reference", "cpu")


def held(text: str, target: str, *feeds: dict[str, np.ndarray], opset: int = 20) -> dlc.Package:
    """Compile a model written as text once, run it on each feed, compare with onnxruntime."""
    model = onnx.parser.parse_model(HEAD.replace("20", str(opset)) + text)
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    package = dlc.compile(model, target=target)
    session = dlc.load(package)
    for feed in feeds:
        actual = session.run(feed)
        for info, wanted in zip(peer.get_outputs(), peer.run(None, feed), strict=True):
            assert str(actual[info.name].dtype) == str(wanted.dtype)
            np.testing.assert_allclose(actual[info.name], wanted, rtol=1e-5, atol=1e-5)
    return package


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_loop_with_a_trip_count_and_a_condition(target: str) -> None:
    text = """g (float[2, 3] x, int64 trips, float limit) => (float[2, 3] last, float[n, 2, 3] every) {
        go = Constant <value_int: int = 1> ()
        start = Cast <to: int = 9> (go)
        last, every = Loop (trips, start, x) <body: graph = body (int64 i, bool c, float[2, 3] s)
            => (bool again, float[2, 3] next, float[2, 3] seen) {
            step = Cast <to: int = 1> (i)
            grown = Add (s, step)
            next = Mul (grown, x)
            total = ReduceSum <keepdims: int = 0> (next)
            size = Abs (total)
            again = Less (size, limit)
            seen = Identity (grown)
        }>
    }"""
    feeds = [
        {"x": floats(2, 3), "trips": np.array(trips), "limit": np.array(limit, np.float32)}
        for trips, limit in ((4, 1e9), (1, 1e9), (9, 5.0), (0, 1.0))
    ]
    package = held(text, target, *feeds)
    if target == "cpu":
        kernels = {row["kernel"] for row in read(package).nodes}
        assert any(kernel.startswith("native loop") for kernel in kernels)


@pytest.mark.parametrize("target", TARGETS)
def test_a_carried_value_that_grows(target: str) -> None:
    text = """g (float[n, 2] x, int64 trips) => (float[m, 2] y) {
        y = Loop (trips, , x) <body: graph = body (int64 i, bool c, float[k, 2] s) => (bool again, float[l, 2] next) {
            again = Identity (c)
            doubled = Mul (s, s)
            next = Concat <axis: int = 0> (s, doubled)
        }>
    }"""
    feeds = [{"x": floats(n, 2), "trips": np.array(trips)} for n, trips in ((1, 3), (3, 1), (2, 0))]
    held(text, target, *feeds)


@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_in_a_loop_reads_what_is_around_both(target: str) -> None:
    text = """g (float[3] x, float[3] w, int64 trips) => (float[3] y) {
        y = Loop (trips, , x) <body: graph = outer (int64 i, bool c, float[3] s) => (bool again, float[3] next) {
            again = Identity (c)
            two = Constant <value: tensor = int64 {2}> ()
            next = Loop (two, , s) <body: graph = inner (int64 j, bool d, float[3] t) => (bool more, float[3] u) {
                more = Identity (d)
                scaled = Mul (t, w)
                u = Add (scaled, s)
            }>
        }>
    }"""
    held(text, target, {"x": floats(3), "w": floats(3, seed=1), "trips": np.array(3)})


@pytest.mark.parametrize("target", TARGETS)
def test_branches_of_different_extents(target: str) -> None:
    text = """g (float[n, 4] x, bool take) => (float[a, b] y) {
        y = If (take) <then_branch: graph = t () => (float[n, 4] p) { p = Relu (x) },
                       else_branch: graph = e () => (float[m, 4] q) { q = Concat <axis: int = 0> (x, x) }>
    }"""
    held(text, target, *({"x": floats(n, 4), "take": np.array(take)} for n in (1, 3) for take in (True, False)))


@pytest.mark.parametrize("target", TARGETS)
def test_scan_backwards_along_another_axis(target: str) -> None:
    text = """g (float[2] h, float[2, t] x) => (float[2] last, float[2, t] all) {
        last, all = Scan <num_scan_inputs: int = 1, scan_input_axes: ints = [1], scan_input_directions: ints = [1],
            scan_output_axes: ints = [1], scan_output_directions: ints = [1],
            body: graph = body (float[2] s, float[2] v) => (float[2] next, float[2] seen) {
                sum = Add (s, v)
                next = Tanh (sum)
                seen = Neg (next)
            }> (h, x)
    }"""
    held(text, target, *({"h": floats(2), "x": floats(2, t, seed=t)} for t in (1, 5, 8)))


@pytest.mark.parametrize("target", TARGETS)
def test_scan_of_a_batch_as_opset_8_has_it(target: str) -> None:
    text = """g (float[2, 3] h, float[2, 5, 3] a, float[2, 5, 3] b) => (float[2, 3] last, float[2, 5, 3] all) {
        last, all = Scan <num_scan_inputs: int = 2, directions: ints = [0, 1],
            body: graph = body (float[3] s, float[3] v, float[3] w) => (float[3] next, float[3] seen) {
                product = Mul (v, w)
                next = Add (s, product)
                seen = Neg (next)
            }> ("", h, a, b)
    }"""
    feed = {"h": floats(2, 3), "a": floats(2, 5, 3, seed=1), "b": floats(2, 5, 3, seed=2)}
    held(text, target, feed, opset=8)


@pytest.mark.parametrize("target", TARGETS)
def test_extents_that_only_the_data_tell(target: str) -> None:
    text = """g (float[n, 3] x) => (float[k] y, int64[1] count) {
        zero = Constant <value_float: float = 0.0> ()
        positive = Greater (x, zero)
        picked = Compress (x, positive)
        y = Exp (picked)
        count = Shape (picked)
    }""".replace("Compress (x, positive)", "Compress (flat, mask)").replace(
        "positive = Greater (x, zero)",
        """positive = Greater (x, zero)
        all = Constant <value: tensor = int64[1] {-1}> ()
        mask = Reshape (positive, all)
        flat = Reshape (x, all)""",
    )
    package = held(text, target, {"x": floats(4, 3)}, {"x": -np.abs(floats(2, 3))}, {"x": floats(7, 3, seed=2)})
    if target == "cpu":
        row = next(row for row in read(package).nodes if row["op"] == "Compress")
        assert row["part"] == "host" and row["why_not_better"]


@pytest.mark.parametrize("target", TARGETS)
def test_parameters_known_only_when_running(target: str) -> None:
    text = """g (float[4, 6] x, int64[2] shape, int64[1] k) => (float[a, b] y, float[4, c] top) {
        scaled = Mul (x, x)
        turned = Reshape (scaled, shape)
        y = Relu (turned)
        top, where = TopK (scaled, k)
    }"""
    feeds = [
        {"x": floats(4, 6), "shape": np.array(shape), "k": np.array([k])}
        for shape, k in (((6, 4), 2), ((2, -1), 6), ((24, 1), 1))
    ]
    held(text, target, *feeds)


def test_what_fails_on_the_host_names_its_node() -> None:
    text = """g (float[4, 6] x, int64[2] shape) => (float[a, b] y) { y = Reshape (x, shape) }"""
    session = dlc.load(dlc.compile(onnx.parser.parse_model(HEAD + text)))
    with pytest.raises(DlcError, match=r"node 'y' \(Reshape\): cannot reshape float32\[4, 6\] to \[5, 5\]"):
        session.run({"x": floats(4, 6), "shape": np.array([5, 5])})


def test_a_body_that_takes_another_number_of_values_is_refused() -> None:
    text = """g (float[2] x, int64 trips) => (float[2] y) {
        y = Loop (trips, , x) <body: graph = body (int64 i, bool c) => (bool again, float[2] next) {
            again = Identity (c)
            next = Identity (x)
        }>
    }"""
    with pytest.raises(DlcError, match=r"(Loop|'y')"):
        dlc.compile(onnx.parser.parse_model(HEAD + text))


def test_contractions_inside_a_loop_are_integers() -> None:
    text = """g (float[1, 8] x, int64 trips) => (float[1, 8] y) <float[8, 8] w = {WEIGHTS}> {
        y = Loop (trips, , x) <body: graph = body (int64 i, bool c, float[1, 8] s) => (bool again, float[1, 8] next) {
            again = Identity (c)
            product = MatMul (s, w)
            next = Tanh (product)
        }>
    }""".replace("WEIGHTS", ", ".join("0.1" for _ in range(64)))
    model = onnx.parser.parse_model(HEAD + text)
    samples: dict[str, Any] = {"x": floats(4, 1, 8), "trips": np.full((4,), 2)}
    package = dlc.compile(model, quantize="int8", calibration=samples)
    inside = [row for row in read(package).nodes if row.get("inside")]
    assert [row["precision"] for row in inside if "matmul" in row["fused"]] == ["int8"]


def test_stages_of_parts_are_dumped_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[4, 6] x, int64[2] shape) => (float[a, b] y) {
        scaled = Mul (x, x)
        turned = Reshape (scaled, shape)
        y = Relu (turned)
    }"""
    model = onnx.parser.parse_model(HEAD + text)
    monkeypatch.setenv("DLC_DUMP", str(tmp_path))
    dlc.compile(model)
    assert [len(list((tmp_path / part).glob("*regions.py"))) for part in ("part0", "part1")] == [1, 1]
    monkeypatch.delenv("DLC_DUMP")
    assert "dlc.onnx" in module_at(model, Options(), "simplify").script()
    with pytest.raises(DlcError, match=r"no stage 'regions' of the whole model: .* DLC_DUMP"):
        module_at(model, Options(), "regions")
