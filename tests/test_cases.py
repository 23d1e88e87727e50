"""Code for ranges of sizes, where branches on extents change what a model does."""

from __future__ import annotations

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
    assert {row["part"].partition(":")[0] for row in rows} == {"case0 t 3 to 5", "case1 t from 6", "general"}
    assert all(row["kernel"] != "onnx's reference implementation" for row in rows if row["part"].startswith("case"))
    session = dlc.load(tmp_path / "m.dlc")
    rng = np.random.default_rng(1)
    for copy, (batch, steps) in ((session, (1, 3)), (session.clone(), (4, 5)), (session, (3, 6)), (session, (3, 7))):
        _agree(copy, proto, {"x": rng.standard_normal((batch, 2, steps)).astype(np.float32)})
    with pytest.raises(DlcError, match="dimension 't' is 9, the model takes 8 at most"):  # 3 columns by 2 rows
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
