"""Products of integers whose weights are bytes with a zero point."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import dlc
from dlc.explain import read
from tests.frontends.build import model, node


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("a_zero", ["none", "constant", "input", "rows"])
@pytest.mark.parametrize("matrix", [True, False])
def test_unsigned_weights(target: str, a_zero: str, matrix: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (5, 70), np.uint8), rng.integers(0, 256, (70, 9) if matrix else (70,), np.uint8)
    zeros = {"none": 0, "constant": 131, "input": 7, "rows": rng.integers(0, 256, 5, np.uint8)}
    zero = np.array(zeros[a_zero], np.uint8)
    given = {"a": (TensorProto.UINT8, [5, 70])}
    constants = {"b": b, "bz": np.array(119, np.uint8)}
    feed = {"a": a}
    if a_zero == "input":
        given["az"], feed["az"] = (TensorProto.UINT8, []), zero
    else:
        constants["az"] = zero
    nodes = [node("MatMulInteger", ["a", "b", "" if a_zero == "none" else "az", "bz"], ["y"])]
    package = dlc.compile(model(nodes, given, ["y"], constants), target)
    wanted = (a.astype(np.int32) - zero.astype(np.int32).reshape(-1, 1)) @ (b.astype(np.int32) - 119)
    np.testing.assert_array_equal(dlc.load(package).run(feed)["y"], wanted)
    if target == "cpu" and matrix:
        assert not any("uint8 by uint8" in str(row.get("why_not_better")) for row in read(package).nodes)
