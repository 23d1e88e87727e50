"""Packages of several parts: cut between targets, each part a package of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc import composite
from dlc.compiler import _context, common_passes, compile_model, compile_module, import_source
from dlc.explain import read
from dlc.ir.convert import view
from dlc.options import Options
from dlc.passes.partition.segments import segment_module, segments
from dlc.pipeline import run_passes
from dlc.runtime.session import Session
from dlc.targets.base import Build, find_target
from dlc.zoo import samples


def _module(options: Options):  # type: ignore[no-untyped-def]
    target = find_target(options.target)
    module = import_source("zoo:vision", options)
    context = _context(module, options, target, "zoo:vision" if options.quantize == "int8" else None, None)
    return run_passes(module, common_passes(options), context), context


def test_segments_cover_every_node_once_and_run_in_order() -> None:
    module, _ = _module(Options())
    graph = view(module)
    number = {node.output.name: i for i, node in enumerate(graph.nodes)}
    found = segments(graph, lambda node: number[node.output.name] // 3 % 2)
    known = {v.name for v in graph.inputs}
    names = []
    for segment in found:
        assert set(segment.inputs) <= known
        known |= set(segment.outputs)
        names += [n.output.name for n in segment.nodes]
        view(segment_module(module, view(module), segment))
    assert sorted(names) == sorted(number)
    assert set(graph.outputs) <= known


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_two_targets_in_one_package_give_what_one_gives(quantize: str, tmp_path: Path) -> None:
    options = Options("reference", quantize, "fixed")  # type: ignore[arg-type]
    module, context = _module(options)
    targets = [find_target("cpu"), find_target("reference")]
    number = {node.output.name: i for i, node in enumerate(view(module).nodes)}

    class Both(type(targets[1])):  # type: ignore[misc]
        def compile(self, module: object, context: object) -> Build:
            return composite.build(module, context, lambda _: lambda node: targets[number[node.output.name] // 4 % 2])  # type: ignore[arg-type]

    context.target = Both()
    package = compile_module(module, context)
    assert len(package.manifest["build"]["parts"]) > 2
    package.save(tmp_path / "both.dlc")
    session = dlc.load(tmp_path / "both.dlc")
    x = samples("vision", "test")["image"][:4]
    calibration = "zoo:vision" if quantize == "int8" else None
    expected = Session(compile_model("zoo:vision", options, calibration)).run({"image": x})
    actual = session.run({"image": x})
    for name, array in expected.items():
        if quantize == "int8":
            np.testing.assert_array_equal(actual[name], array)
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-4)
    rows = list(session.executable.trace([x], {next(iter(session.inputs[0].shape)): 4}))  # type: ignore[union-attr]
    assert len(rows) > 4
    assert {row["part"].split(" ")[1] for row in read(package).nodes} == {"(cpu)", "(reference)"}
