"""Code for ranges of sizes, where branches on extents change what a model does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import dlc
from dlc.cases import ranges_of
from dlc.errors import DlcError
from dlc.explain import read
from tests.frontends.build import model, node


def _squeezed(prefix: str = "", steps: int = 3) -> list[onnx.NodeProto]:
    """x (n, 2, t): pooled by `steps`, its last axis dropped where one is left, as exporters write it."""
    names = {name: prefix + name for name in ("p", "s", "e", "one", "s1", "f", "y", "dropped", "kept")}
    drop = helper.make_graph([node("Squeeze", [names["p"], "last"], [names["dropped"]])], "drop", [],
                             [onnx.ValueInfoProto(name=names["dropped"])])  # fmt: skip
    keep = helper.make_graph([node("Identity", [names["p"]], [names["kept"]])], "keep", [],
                             [onnx.ValueInfoProto(name=names["kept"])])  # fmt: skip
    return [
        node("MaxPool", ["x"], [names["p"]], kernel_shape=[steps], strides=[steps]),
        node("Shape", [names["p"]], [names["s"]]),
        node("Gather", [names["s"], "last0"], [names["e"]]),
        node("Equal", [names["e"], "one0"], [names["one"]]),
        node("If", [names["one"]], [names["f"]], then_branch=drop, else_branch=keep),
        node("MatMul", [names["f"], "w"], [names["y"]], f"{prefix}product"),
    ]


CONSTANTS = {
    "last": np.array([2]), "last0": np.array(2), "one0": np.array(1),
    "w": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32),
}  # fmt: skip


def _agree(session: dlc.Session, proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    (wanted,) = ReferenceEvaluator(proto).run(None, feed)
    np.testing.assert_allclose(session.run(feed)["y"], wanted, rtol=1e-5, atol=1e-6)


def test_sizes_in_a_range_are_native(tmp_path: Path) -> None:
    proto = model(_squeezed(), {"x": ["n", 2, "t"]}, ["y"], CONSTANTS)
    dlc.compile(proto).save(tmp_path / "m.dlc")
    rows = read(tmp_path / "m.dlc").nodes
    parts = {re.sub(r": (host|part\d+ \(cpu\))$", "", row["part"]) for row in rows}
    assert parts == {"case0 (t: at most 5, t: at least 3)", "case1 (t: at most 8, t: at least 6)", "general"}
    assert all(row["kernel"] != "onnx's reference implementation" for row in rows if row["part"].startswith("case"))
    session = dlc.load(tmp_path / "m.dlc")
    rng = np.random.default_rng(1)
    for copy, (batch, steps) in ((session, (1, 3)), (session.clone(), (4, 5)), (session, (3, 6)), (session, (3, 7))):
        _agree(copy, proto, {"x": rng.standard_normal((batch, 2, steps)).astype(np.float32)})
    with pytest.raises(DlcError, match="product"):  # 3 columns by 2 rows
        session.run({"x": np.zeros((1, 2, 9), np.float32)})


def _two_ways() -> onnx.ModelProto:
    """A branch on data pools by threes or by fives; what is left must be one."""
    graphs = {}
    for name, steps in (("then", 3), ("else", 5)):
        nodes = _squeezed(name, steps)
        graphs[f"{name}_branch"] = helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=f"{name}y")])
    given = {"x": ["n", 2, "t"], "which": (TensorProto.BOOL, [])}
    return model([node("If", ["which"], ["y"], **graphs)], given, ["y"], CONSTANTS)


def test_a_branch_that_cannot_run_fails_when_it_is_taken() -> None:
    proto = _two_ways()
    package = dlc.compile(proto)
    session = dlc.load(package)
    rng = np.random.default_rng(2)
    for steps, which in ((5, True), (5, False), (9, False), (3, True)):
        _agree(session, proto, {"x": rng.standard_normal((2, 2, steps)).astype(np.float32), "which": np.array(which)})
    with pytest.raises(DlcError):
        session.run({"x": np.zeros((2, 2, 3), np.float32), "which": np.array(False)})


def test_ranges_between_cuts() -> None:
    assert list(ranges_of({"n": [3, 6]})) == [{"n": (1, 2)}, {"n": (3, 5)}, {"n": (6, 1_000_000_000)}]
    assert len(list(ranges_of({"n": [3, 6], "m": [1, 2]}))) == 6
    assert list(ranges_of({"n": list(range(2, 40))})) == []


def test_extents_that_are_mostly_equal() -> None:
    """Halved and doubled again, and as it was: equal where the extent is even, and one row is repeated."""
    double = [
        node("MaxPool", ["x"], ["h"], kernel_shape=[2], strides=[2], ceil_mode=1),
        node("Unsqueeze", ["h", "behind"], ["u"]),
        node("Concat", ["u", "u"], ["c"], axis=3),
        node("Reshape", ["c", "wide"], ["d"]),
        node("Add", ["x", "d"], ["y"], "sum"),
    ]
    proto = model(double, {"x": [1, 2, "t"]}, ["y"], {"behind": np.array([3]), "wide": np.array([1, 2, -1])})
    session = dlc.load(dlc.compile(proto))
    rows = read(session.package).nodes
    assert [r["op"] for r in rows if r["part"].startswith("general: host")] == ["Add"]
    assert not any(r["part"].startswith("case0: host") for r in rows) and len(session.executable.cases) == 1
    for steps in (6, 1, 2):
        _agree(session, proto, {"x": np.random.default_rng(steps).standard_normal((1, 2, steps)).astype(np.float32)})
    with pytest.raises(DlcError, match="node 'sum'"):
        session.run({"x": np.zeros((1, 2, 7), np.float32)})


def test_of_several_levels() -> None:
    proto = model(_squeezed(), {"x": ["n", 2, "t"]}, ["y"], CONSTANTS)
    _agree(dlc.load(dlc.compile(proto, "cpu:portable")), proto, {"x": np.ones((2, 2, 4), np.float32)})
