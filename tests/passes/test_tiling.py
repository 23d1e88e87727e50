"""Layouts, staging, fusion and halos: what each pass leaves, and that none changes a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlc.ir.convert import view
from dlc.ir.interpret import interpret
from dlc.ir.verify import verify
from dlc.options import Options
from dlc.passes.partition import regions
from dlc.passes.tile import channels_last, halo, stage_inputs, stage_outputs
from dlc.pipeline import Context
from tests.passes.networks import Net, residual

PASSES = [channels_last.PASS, stage_outputs.PASS, stage_inputs.PASS, regions.PASS, halo.PASS]


def run(module: Any, passes: list[Any]) -> Any:
    for step in passes:
        module = step.run(module, Context(Options()))
        verify(module, step.name)
    return module


@pytest.mark.parametrize("symbolic", [False, True])
def test_no_pass_changes_a_value(symbolic: bool) -> None:
    module = residual(symbolic)
    x = np.random.default_rng(1).standard_normal((2, 3, 14, 14)).astype(np.float32)
    expected = interpret(view(module), {"image": x})[0]
    for step in PASSES:
        module = run(module, [step])
        actual = interpret(view(module), {"image": x})[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4, err_msg=step.name)


def test_channels_last_leaves_one_transpose_at_the_input() -> None:
    graph = view(run(residual(), [channels_last.PASS]))
    assert [n.op for n in graph.nodes].count("relax.permute_dims") == 1
    assert {n.attrs["layout"] for n in graph.nodes if n.op == "dlc.conv"} == {"channels_last"}


def test_channels_last_transposes_back_for_an_operator_that_needs_the_old_order() -> None:
    net = Net((2, 3, 8, 8))
    y = net.conv(net.x, 3, 4)
    module = net.finish(net.emit("relax.reshape", [y], shape=(2, 4 * 64)))
    graph = view(run(module, [channels_last.PASS]))
    assert [n.op for n in graph.nodes].count("relax.permute_dims") == 2
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (interpret(g, {"image": x})[0] for g in (view(module), graph))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_one_channel_is_turned_by_a_reshape() -> None:
    net = Net((2, 1, 8, 8))
    graph = view(run(net.finish(net.conv(net.x, 1, 1)), [channels_last.PASS]))
    assert "relax.permute_dims" not in [n.op for n in graph.nodes]


def test_bias_activation_and_residual_ride_on_the_convolution() -> None:
    graph = view(run(residual(), PASSES))
    bodies = [[n.op for n in node.body.nodes] for node in graph.nodes if node.body is not None]
    assert ["dlc.conv", "relax.add", "relax.add", "relax.nn.relu"] in bodies
    assert ["dlc.conv", "relax.add", "relax.nn.relu"] in bodies
    assert ["dlc.matmul", "relax.add"] in bodies
    assert len(bodies) == 9


def test_a_value_with_two_readers_ends_its_region() -> None:
    net = Net((1, 3, 8, 8))
    y = net.conv(net.x, 3, 4)
    module = net.finish(net.emit("relax.nn.relu", [y]), net.emit("relax.exp", [y]))
    bodies = [[n.op for n in node.body.nodes] for node in view(run(module, PASSES)).nodes if node.body is not None]
    assert ["dlc.conv", "relax.add"] in bodies


def test_halo_is_the_widest_that_any_reader_wants() -> None:
    net = Net((1, 3, 9, 9))
    y = net.emit("relax.nn.relu", [net.conv(net.x, 3, 4)])
    module = net.finish(net.conv(y, 4, 4, kernel=5, pad=2), net.conv(y, 4, 4, kernel=3, pad=1))
    graph = view(run(module, PASSES))
    halos = [n.attrs["dlc.halo"] for n in graph.nodes if "dlc.halo" in n.attrs]
    assert [[0, 0], [2, 2], [2, 2], [0, 0]] in halos


def test_a_convolution_input_without_a_producer_is_copied_into_padded_memory() -> None:
    net = Net((1, 1, 8, 8))
    graph = view(run(net.finish(net.conv(net.x, 1, 4)), PASSES))
    copies = [n for n in graph.nodes if n.body is not None and [b.op for b in n.body.nodes] == ["relax.astype"]]
    assert len(copies) == 1 and copies[0].attrs["dlc.halo"] == [[0, 0], [1, 1], [1, 1], [0, 0]]


def test_outputs_that_share_memory_are_copied() -> None:
    net = Net((2, 6))
    y = net.emit("relax.exp", [net.x])
    module = net.finish(y, net.emit("relax.reshape", [y], shape=(3, 4)), net.x)
    graph = view(run(module, PASSES))
    assert sum(n.op == "call" for n in graph.nodes) == 3
