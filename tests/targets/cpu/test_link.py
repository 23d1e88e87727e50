"""Linking: the kernels of a program in several object files, whose bytes do not depend on how they were made."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc import hardware

WIDTHS = (3, 5, 8, 9, 16, 17, 24, 4, 7, 2)


def chain() -> onnx.ModelProto:
    """A chain of matmuls, no two of one shape, so that there are as many kernels."""
    rng = np.random.default_rng(0)
    pairs = list(itertools.pairwise(WIDTHS))
    weights = [numpy_helper.from_array(rng.standard_normal(p).astype(np.float32), f"w{i}") for i, p in enumerate(pairs)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(len(pairs))]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x0", WIDTHS[0]), (f"x{len(pairs)}", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_objects_are_the_same_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for cores in (1, 3):
        machine = dataclasses.replace(hardware.this_machine(), cores=cores)
        monkeypatch.setattr("dlc.targets.cpu.link.this_machine", lambda machine=machine: machine)
        made.append(dlc.compile(chain(), "cpu"))
    first, second = ({name: bytes(package.member(name)) for name in package.members} for package in made)
    assert first == second
    assert made[0].manifest["build"]["objects"] == ["entry.o", "kernels0.o", "kernels1.o"]
    x = np.random.default_rng(1).standard_normal((5, WIDTHS[0])).astype(np.float32)
    expected = x
    for tensor in chain().graph.initializer:
        expected = expected @ numpy_helper.to_array(tensor)
    (actual,) = dlc.load(made[0]).run({"x0": x}).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
