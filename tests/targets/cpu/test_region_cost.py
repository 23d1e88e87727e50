"""The predicted time of kernels without multiply-adds: what makes it grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import pytest

from dlc.compiler import module_at
from dlc.hardware import Machine, Speeds
from dlc.ir.convert import view
from dlc.options import Options
from dlc.targets.cpu import region_cost
from dlc.targets.cpu.isa import isa_by_name
from dlc.targets.layout import Layout
from dlc.zoo.graphs import Graph, info

MACHINE = Machine("x86_64", "made up", frozenset(), 32 << 10, 1 << 20, 16 << 20, 1)
SPEEDS = Speeds(3e9, (2e11, 9e10, 3e10, 9e9), 16 << 20, {"avx2": 48e9}, {"avx2": 96e9})


def predicted(op: str, shape: list[int], machine: Machine = MACHINE, isa: str = "avx2", **attrs: Any) -> float:
    """Microseconds of the region that one operator becomes."""
    net, names = Graph({}), ["x", "x2"] if op in ("Add", "Div") else ["x"]
    net.op(op, names, ["y"], **attrs)
    given = [info(name, onnx.TensorProto.FLOAT, shape) for name in names]
    model = net.model("net", given, [info("y", onnx.TensorProto.FLOAT, ["?"] * len(shape))])
    regions = view(module_at(model, Options("cpu:avx2"), "halo")).nodes
    # Channels move last before a pool and first behind it.
    (node,) = [n for n in regions if len(regions) == 1 or n.attrs["dlc.kind"] == "window"]
    assert node.body is not None
    layouts = {v.name: Layout.dense(v.shape) for v in node.body.values().values()}
    return 1e6 * region_cost.predicted_seconds(node.body, layouts, isa_by_name(isa), machine)


def test_it_grows_with_the_work() -> None:
    small, large = (predicted("Exp", [n, 64]) for n in (64, 640))
    assert 5 < large / small < 11


def test_operators_differ() -> None:
    assert predicted("Add", [64, 64]) < predicted("Div", [64, 64]) < predicted("Erf", [64, 64])


def test_narrow_vectors_take_longer() -> None:
    assert 1.5 < predicted("Erf", [64, 64], isa="sse2") / predicted("Erf", [64, 64]) < 4


@pytest.mark.parametrize(("rows", "level"), [(1 << 10, 1), (1 << 13, 2), (1 << 18, 3)])
def test_memory_counts_where_data_lie(rows: int, level: int) -> None:
    """A chain that is bound by memory takes what its bytes take, at the level where they lie."""
    taken = predicted("Relu", [rows, 64], replace(MACHINE, speeds=SPEEDS))
    volume = rows * 64 * 4
    least = volume / SPEEDS.bandwidth[level] * 1e6
    assert 1.9 * least < taken < 4.5 * least


def test_moving_single_elements_is_dear() -> None:
    turned, copied = (predicted("Transpose", [1, 64, 32, 32], perm=p) for p in ([0, 2, 3, 1], [0, 2, 1, 3]))
    assert turned > 3 * copied


def test_a_larger_window_takes_longer() -> None:
    two, three = (predicted("MaxPool", [1, 64, 32, 32], kernel_shape=[k, k], pads=[0, 0, 0, 0]) for k in (2, 3))
    assert 1.2 < three / two < 2.5
