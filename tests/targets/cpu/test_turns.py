"""Loops go through their weights forwards and backwards in turn; the bits are those of always forwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc.explain import read
from dlc.targets.cpu.contraction_region import ContractionRegion

INPUTS, HIDDEN, STEPS = 24, 700, 5  # several tiles of channels, the last one short, at every level


def model() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"w": (1, HIDDEN, INPUTS), "r": (1, HIDDEN, HIDDEN)}
    weights = {n: (rng.standard_normal(s) / s[-1] ** 0.5).astype(np.float32) for n, s in shapes.items()}
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], "rnn", hidden_size=HIDDEN)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 1, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 1, 1, HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scheme", ["none", "int8-dynamic"])
@pytest.mark.parametrize("target", ["cpu", "cpu:avx2"])
def test_the_direction_does_not_matter(target: str, scheme: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).standard_normal((STEPS, 1, INPUTS)).astype(np.float32)
    asked = []

    def never(region: ContractionRegion, schedule: Any) -> bool:
        asked.append(turns(region, schedule))
        return False

    turns = ContractionRegion.turns
    package = dlc.compile(model(), target, quantize=scheme)
    monkeypatch.setattr(ContractionRegion, "turns", never)
    straight = dlc.compile(model(), target, quantize=scheme)
    if (target, scheme) != ("cpu:avx2", "int8-dynamic"):  # whose activations are widened once, for all tiles
        assert any(asked)
    got, wanted = (next(iter(dlc.load(p, threads=threads).run({"x": x}).values())) for p in (package, straight))
    np.testing.assert_array_equal(got, wanted)
    assert read(package).nodes == read(straight).nodes
    expected = next(iter(dlc.load(dlc.compile(model(), "reference", quantize=scheme)).run({"x": x}).values()))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
