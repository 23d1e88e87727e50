"""What a model demands of its symbols' sizes: limits that broadcasts set, sizes that contractions fix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import dlc
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.explain import read
from tests.frontends.build import model, node

FLOAT = TensorProto.FLOAT


def _positions(shift: int = 0) -> onnx.ModelProto:
    """x (n, s, 4) plus the rows of a table of 10 from `shift` on, as many as the sequence is long."""
    nodes = [
        node("Shape", ["x"], ["all"]),
        node("Gather", ["all", "one"], ["s"]),
        node("Add", ["s", "shift"], ["end"]),
        node("Slice", ["table", "shift", "end", "zero"], ["rows"]),
        node("Add", ["x", "rows"], ["sum"], "positions"),
        node("MatMul", ["sum", "w"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "one": np.array([1]), "zero": np.array([0]), "shift": np.array([shift]),
        "table": rng.standard_normal((10, 4)).astype(np.float32), "w": rng.standard_normal((4, 3)).astype(np.float32),
    }  # fmt: skip
    return model(nodes, {"x": ["n", "s", 4]}, ["y"], constants)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_table_limits_the_length(target: str, shift: int) -> None:
    proto, rng = _positions(shift), np.random.default_rng(1)
    package = dlc.compile(proto, target=target)
    assert package.manifest["limits"] == {"s": 10 - shift}
    session = dlc.load(package)
    for batch, length in ((1, 1), (3, 5), (2, 10 - shift)):
        x = rng.standard_normal((batch, length, 4)).astype(np.float32)
        (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)
    assert all(row["part"] != "host" for row in read(package).nodes if "part" in row)
    for copy in (session, session.clone()):
        with pytest.raises(DlcError) as caught:
            copy.run({"x": np.zeros((1, 11 - shift, 4), np.float32)})
        wanted_text = f"input 'x': dimension 's' is {11 - shift}, the model takes {10 - shift} at most"
        assert str(caught.value) == wanted_text


def test_inspect_shows_limits(tmp_path: Path) -> None:
    dlc.compile(_positions(), target="reference").save(tmp_path / "m.dlc")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.dlc")])
    assert "limits:\n  s: at most 10\n" in result.output


def test_calibration_keeps_to_limits() -> None:
    package = dlc.compile(_positions(), target="reference", quantize="int8", calibration="random")
    assert package.manifest["limits"] == {"s": 10}
    samples = {"x": np.ones((2, 11, 4), np.float32)}
    with pytest.raises(DlcError, match="input 'x': dimension 's' is 11, the model takes 10 at most"):
        dlc.compile(_positions(), target="reference", quantize="int8", calibration=samples)


def test_a_model_without_limits_has_none() -> None:
    package = dlc.compile(model([node("Relu", ["x"], ["y"])], {"x": ["n", "s"]}, ["y"]), target="reference")
    assert package.manifest["limits"] == {}


def test_contractions_fix_sizes() -> None:
    rng = np.random.default_rng(2)
    constants = {"w": rng.standard_normal((6, 3, 3, 3)).astype(np.float32)}
    constants["m"] = rng.standard_normal((5, 7)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("MatMul", ["c", "m"], ["y"])]
    proto = model(nodes, {"x": ["N", "C", "H", "W"]}, ["y"], constants)
    session = dlc.load(dlc.compile(proto))
    assert session.inputs[0].shape == ("N", 3, "H", 5)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(DlcError, match=r"input 'x' has shape \[2, 4, 4, 5\], expected \[N, 3, H, 5\]"):
        session.run({"x": np.zeros((2, 4, 4, 5), np.float32)})


def test_an_inner_extent_that_only_data_tell_is_left_to_the_host() -> None:
    nodes = [node("Compress", ["x", "keep"], ["some"], axis=1), node("MatMul", ["some", "w"], ["y"], "product")]
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = {"x": ["n", 4], "keep": (TensorProto.BOOL, [4])}
    package = dlc.compile(model(nodes, inputs, ["y"], {"w": weight}))
    session = dlc.load(package)
    x, keep = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([True, False, True, False])
    np.testing.assert_array_equal(session.run({"x": x, "keep": keep})["y"], x[:, keep] @ weight)
    (row,) = [r for r in read(package).nodes if r["op"] == "MatMul"]
    assert "are equal is known only when running" in row["why_not_better"]
    with pytest.raises(DlcError, match=r"node 'product' \(MatMul\): inner dimensions differ: "):
        session.run({"x": x, "keep": np.ones(4, bool)})


def test_a_product_makes_two_symbols_one() -> None:
    inputs = {"a": [2, "k"], "b": [None, 3]}
    package = dlc.compile(model([node("MatMul", ["a", "b"], ["y"], "product")], inputs, ["y"]))
    session = dlc.load(package)
    assert [row["kernel"].split()[0] for row in read(package).nodes] == ["GEMM"]
    for depth in (1, 4, 37):
        a, b = np.ones((2, depth), np.float32), np.ones((depth, 3), np.float32)
        np.testing.assert_array_equal(session.run({"a": a, "b": b})["y"], a @ b)
    with pytest.raises(DlcError, match=r"input 'b' has shape \[36, 3\], expected \[k, 3\]; k is 37 from input 'a'"):
        session.run({"a": a, "b": b[:36]})


def test_extents_that_may_broadcast_stay_apart() -> None:
    """Two symbols in a sum: one may be 1, so nothing follows, and the host runs it."""
    session = dlc.load(dlc.compile(model([node("Add", ["a", "b"], ["y"])], {"a": ["k"], "b": ["l"]}, ["y"])))
    a, b = np.ones(4, np.float32), np.ones(1, np.float32)
    for left, right in ((a, b), (b, a), (a, a)):
        np.testing.assert_array_equal(session.run({"a": left, "b": right})["y"], left + right)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_reshape_to_numbers_is_a_size(target: str) -> None:
    """The kernel would read beyond its input for any other one."""
    package = dlc.compile(
        model([node("Reshape", ["x", "k"], ["y"])], {"x": ["n", 2]}, ["y"], {"k": np.array([2, 4])}), target
    )
    session = dlc.load(package)
    assert session.inputs[0].shape == (4, 2)
    with pytest.raises(DlcError, match=r"input 'x' has shape \[1, 2\], expected \[4, 2\]"):
        session.run({"x": np.zeros((1, 2), np.float32)})


def test_a_reshape_that_only_sizes_decide_is_held_to_them() -> None:
    nodes = [node("Reshape", ["x", "k"], ["y"], "r")]
    session = dlc.load(dlc.compile(model(nodes, {"x": ["n", "m"]}, ["y"], {"k": np.array([2, 4])})))
    odd = [node("Relu", ["x"], ["/x.1"], "relu"), node("Reshape", ["/x.1", "k"], ["y"], "r")]
    named = dlc.load(dlc.compile(model(odd, {"x": ["n", "m"]}, ["y"], {"k": np.array([2, 4])})))
    assert named.run({"x": np.ones((4, 2), np.float32)})["y"].sum() == 8
    assert session.run({"x": np.zeros((4, 2), np.float32)})["y"].shape == (2, 4)
    assert [row for row in read(session.package).nodes if row.get("part") == "host"] == []
    with pytest.raises(DlcError, match=r"node 'r' \(Reshape\): .*, the extents, n \* m and 8, differ: 2 and 8"):
        session.run({"x": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_reshape_bounds_what_is_pooled_to_one(target: str) -> None:
    """Rows pooled by threes and dropped: the model takes three to five of them."""
    nodes = [
        node("MaxPool", ["x"], ["p"], "pool", kernel_shape=[3, 1], strides=[3, 1]),
        node("Reshape", ["p", "flat"], ["f"], "drop"),
        node("Concat", ["f", "f"], ["c"], axis=2),
        node("MatMul", ["c", "w"], ["y"]),
    ]
    rng = np.random.default_rng(3)
    constants = {"flat": np.array([0, 2, -1, 1]), "w": rng.standard_normal((1, 3)).astype(np.float32)}
    shaped = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "last"], ["width"])]
    shaped += [node("Concat", ["first", "width", "end"], ["flat"], axis=0)]
    del constants["flat"]
    constants |= {"last": np.array([3]), "first": np.array([0, 2]), "end": np.array([1])}
    proto = model([*shaped, *nodes], {"x": ["n", 2, "h", "w_"]}, ["y"], constants)
    package = dlc.compile(proto, target=target)
    assert package.manifest["limits"] == {"h": 5} and package.manifest["least"] == {"h": 3}
    assert [row for row in read(package).nodes if row.get("part") == "host"] == []
    session = dlc.load(package)
    for height in (3, 5):
        x = rng.standard_normal((2, 2, height, 7)).astype(np.float32)
        (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)
    for height, bound in ((6, "5 at most"), (2, "3 at least")):
        with pytest.raises(DlcError, match=f"input 'x': dimension 'h' is {height}, the model takes {bound}"):
            session.clone().run({"x": np.zeros((2, 2, height, 7), np.float32)})


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_what_sizes_demand_of_each_other(target: str) -> None:
    """What is left for a -1 has no remainder, and what is joined is as wide."""
    nodes = [node("Reshape", ["x", "k"], ["r"], "r"), node("Concat", ["r", "b"], ["y"], "join", axis=1)]
    proto = model(nodes, {"x": ["n", "m"], "b": ["l", 1]}, ["y"], {"k": np.array([-1, 4])})
    session = dlc.load(dlc.compile(proto, target))
    x, b = np.arange(12, dtype=np.float32).reshape(2, 6), np.zeros((3, 1), np.float32)
    np.testing.assert_array_equal(session.run({"x": x, "b": b})["y"], np.hstack([x.reshape(3, 4), b]))
    with pytest.raises(DlcError, match=r"node 'r' \(Reshape\): in reshaping .* differ: 8 and 10"):
        session.run({"x": x[:, :5], "b": b})
    with pytest.raises(DlcError, match=r"node 'join' \(Concat\): the extents of dimension 0, .* differ: 3 and 2"):
        session.run({"x": x, "b": b[:2]})
