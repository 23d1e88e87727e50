"""The cost model and the cut: every stage fits, none could be faster, and what is refused is refused in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, Origin, Value
from dlc.targets.multi.cost import Costs, Stage
from dlc.targets.multi.cut import best_cut, cut, reasons
from dlc.targets.multi.devices import LOOPBACK, Device, Link, core_of, this_device

DEVICE = Device(float_macs=1e9, int8_macs=4e9, bandwidth=1e9, memory=1 << 30)
FREE = Link(bandwidth=1e30, latency=0.0)


def matmul(x: Value, name: str, weight: str, width: int) -> Node:
    value = Value(name, (*x.shape[:-1], width), "float32")
    return Node("dlc.matmul", (x.name, weight), (value,), {"out_dtype": "float32"}, Origin("MatMul", name, name))


def relu(x: Value, name: str) -> Node:
    return Node("relax.nn.relu", (x.name,), (Value(name, x.shape, x.dtype),), {}, Origin("Relu", name, name))


def chain(widths: Sequence[int], rows: int | str = 4, activation: bool = False) -> Graph:
    """x (rows, widths[0]) through matmuls to (rows, widths[-1]), perhaps each with a relu behind it."""
    x = Value("x", (rows, widths[0]), "float32")
    nodes: list[Node] = []
    constants = {}
    last = x
    for i, (before, after) in enumerate(pairwise(widths)):
        constants[f"w{i}"] = np.zeros((before, after), np.float32)
        nodes.append(matmul(last, f"m{i}", f"w{i}", after))
        last = nodes[-1].output
        if activation:
            nodes.append(relu(last, f"r{i}"))
            last = nodes[-1].output
    return Graph("main", (x,), (last.name,), tuple(nodes), constants)


widths = st.lists(st.integers(1, 200), min_size=2, max_size=9)


def all_cuts(costs: Costs, count: int) -> list[list[Stage]]:
    """Every way to cut, one by one."""
    size = len(costs.nodes)
    table = {(s.begin, s.end): s for begin in range(size) for s in costs.stages_from(begin)}
    inner = combinations(range(1, size), count - 1)
    return [[table[pair] for pair in pairwise((0, *middle, size))] for middle in inner]


@settings(max_examples=60, deadline=None)
@given(widths, st.integers(1, 4), st.booleans(), st.integers(100, 200_000))
def test_no_other_cut_that_fits_is_faster(sizes: list[int], count: int, activation: bool, memory: int) -> None:
    device = Device(1e9, 4e9, 1e9, memory)
    costs = Costs(chain(sizes, activation=activation), device, Link(1e8, 1e-6))
    if len(costs.nodes) < count:
        with pytest.raises(DlcError, match=f"the model has {len(costs.nodes)} operators, too few for {count} stages"):
            cut(costs, count, "label")
        return
    possible = [stages for stages in all_cuts(costs, count) if all(s.memory <= memory for s in stages)]
    if not possible:
        with pytest.raises(DlcError, match=f"label: no cut into {count} stages fits: at best, stage"):
            cut(costs, count, "label")
        return
    stages = cut(costs, count, "label")
    assert [s.begin for s in stages] == [0, *(s.end for s in stages[:-1])] and stages[-1].end == len(costs.nodes)
    assert max(s.seconds for s in stages) == min(max(s.seconds for s in other) for other in possible)
    assert all(s.memory <= memory for s in stages)


def test_what_a_stage_costs() -> None:
    costs = Costs(chain([10, 20, 30], rows=4), DEVICE, Link(1e6, 1e-3))
    first, both = costs.stages_from(0)
    (second,) = costs.stages_from(1)
    # multiply-adds at 1e9 a second, bytes of weights and values at 1e9 a second, 4x10, 4x20 and 4x30 floats on the link
    link = [1e-3 + 4 * n * 4 / 1e6 for n in (10, 20, 30)]
    one = 4 * 10 * 20 / 1e9 + 4 * (40 + 200 + 80) / 1e9
    two = 4 * 20 * 30 / 1e9 + 4 * (80 + 600 + 120) / 1e9
    assert first.seconds == pytest.approx(link[0] + one + link[1])
    assert second.seconds == pytest.approx(link[1] + two + link[2])
    assert both.seconds == pytest.approx(link[0] + one + two + link[2])
    assert (first.weights, second.weights, both.weights) == (800, 2400, 3200)
    assert (first.activations, second.activations) == (4 * (40 + 80), 4 * (80 + 120))
    assert (first.received, second.received) == (160, 320)


def test_int8_counts_by_its_own_rate() -> None:
    x = Value("x", (8, 100), "uint8")
    node = Node("dlc.matmul", ("x", "w"), (Value("y", (8, 100), "int32"),), {"out_dtype": "int32"})
    graph = Graph("main", (x,), ("y",), (node,), {"w": np.zeros((100, 100), np.int8)})
    (seconds,) = Costs(graph, DEVICE, FREE).seconds
    assert seconds == pytest.approx(8 * 100 * 100 / 4e9 + (800 + 10_000 + 3_200) / 1e9)


def test_elementwise_nodes_stay_where_their_input_is_made() -> None:
    # Without the rule, one cut is as good as the other: the relus cost nothing.
    costs = Costs(chain([64, 64, 64, 64, 64], activation=True), DEVICE, FREE)
    for count in (2, 4):
        assert all(costs.nodes[s.begin].op == "dlc.matmul" for s in cut(costs, count, "label"))


def test_a_weight_that_two_nodes_share_counts_once_a_stage() -> None:
    graph = chain([16, 16, 16])
    shared = tuple(Node(n.op, (n.inputs[0], "w0"), n.outputs, n.attrs) for n in graph.nodes)
    costs = Costs(Graph("main", graph.inputs, graph.outputs, shared, {"w0": graph.constants["w0"]}), DEVICE, FREE)
    assert [s.weights for s in costs.stages_from(0)] == [1024, 1024]
    assert [s.weights for s in costs.stages_from(1)] == [1024]


def test_what_does_not_fit_is_refused_in_numbers() -> None:
    device = Device(1e9, 4e9, 1e9, memory=1_000_000)
    costs = Costs(chain([500, 500, 500, 500], rows=10), device, FREE)
    text = (
        "target multi:2xcpu: no cut into 2 stages fits: at best, stage 0 needs 2.04 MB (weights 2 MB, activations "
        "0.04 MB) and a device has 1 MB; take more stages or larger devices"
    )
    with pytest.raises(DlcError) as caught:
        cut(costs, 2, "target multi:2xcpu")
    assert str(caught.value) in (text, text.replace("stage 0", "stage 1"))
    roomy = Device(1e9, 4e9, 1e9, memory=1_100_000)
    assert len(cut(Costs(chain([500, 500, 500, 500], rows=10), roomy, FREE), 3, "label")) == 3


def test_a_cut_must_tell_every_symbol() -> None:
    x = Value("x", ("n", 4), "float32")
    flat = Value("f", ("n*4",), "float32")
    nodes = (
        relu(x, "a"),
        Node("relax.reshape", ("a",), (flat,), {"shape": ("n*4",)}),
        relu(flat, "b"),
        Node("relax.reshape", ("b",), (Value("y", ("n", 4), "float32"),), {"shape": ("n", 4)}),
    )
    costs = Costs(Graph("main", (x,), ("y",), nodes, {}), DEVICE, FREE)
    assert [s.begin for s in cut(costs, 2, "label")] == [0, 1]
    with pytest.raises(DlcError, match="label: there is no cut into 3 stages where the size of all that crosses it"):
        cut(costs, 3, "label")


def test_the_reasons_say_what_a_neighbouring_cut_would_give() -> None:
    costs = Costs(chain([100, 100, 400, 100]), DEVICE, FREE)
    ((origin, text),) = reasons(costs, cut(costs, 2, "label"))
    assert str(origin) == "MatMul 'm2'"
    assert text == (
        "stage 0 is predicted at 410 us, stage 1 at 328 us; cut one operator earlier, 82 us and 656 us"
    ) or text.startswith("stage 0 is predicted at ")
    costs = Costs(chain([100, 100, 100]), DEVICE, FREE)
    ((_, text),) = reasons(costs, cut(costs, 2, "label"))
    assert text.endswith(": the slower one is a single operator")


def test_best_cut_knows_when_there_is_none() -> None:
    costs = Costs(chain([4, 4, 4]), DEVICE, FREE)
    assert best_cut(costs, 2, lambda stage: None) is None


def test_this_machine_is_described() -> None:
    device = this_device()
    assert device.memory > 1 << 28 and device.int8_macs > device.float_macs > 1e9
    assert this_device(memory=5).memory == 5
    assert LOOPBACK.seconds(0) == 0 < LOOPBACK.seconds(1) < LOOPBACK.seconds(1 << 20)
    from dlc.hardware import Machine

    plain = core_of(Machine("x86_64", "m", frozenset(), 1, 1, 1, 1))
    wide = core_of(Machine("x86_64", "m", frozenset({"avx512f", "avx512_vnni"}), 1, 1, 1, 1))
    assert wide.float_macs == 4 * plain.float_macs and wide.int8_macs == 8 * plain.int8_macs
