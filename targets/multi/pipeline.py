"""The pipeline form: one run of nodes a worker, values sent from where they are made to where they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Value, is_tensor, symbol_names
from dlc.ir.rewrite import graph_module, live_nodes
from dlc.ir.serial import extent_text
from dlc.pipeline import Context
from dlc.targets.multi.cost import Costs, Stage
from dlc.targets.multi.cut import cut, reasons
from dlc.targets.multi.devices import Device, Link
from dlc.targets.multi.program import DRIVER, Division, Plan, Step, Tensor, sends_and_receives

Modules = dict[str, Any]  # nested package's name -> its IRModule


def divide(module: Any, context: Context, count: int, device: Device, link: Link, label: str) -> Division:
    """Cut a module into `count` balanced stages.

    Raises:
        DlcError: there is no cut of which every stage fits its device, or the extents of an output depend on the data.
    """
    graph = live_graph(module)
    check_outputs(graph, label)
    costs = Costs(graph, device, link)
    stages = cut(costs, count, label)
    for origin, text in reasons(costs, stages):
        context.decline("multi", origin, text)
    modules, plan = pipeline(module, graph, stages)
    predictions = [
        {"predicted_us": round(s.seconds * 1e6, 1), "weights": s.weights, "activations": s.activations} for s in stages
    ]
    numbers = {stage_name(number): number for number in range(count)}

    def explain(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        number = numbers[name]
        return {"stage": str(number), "predicted_stage_us": predictions[number]["predicted_us"]}

    return Division(modules, replace(plan, stages=tuple(predictions)), explain)


def tensor(value: Value) -> Tensor:
    """A value as the plan describes it."""
    return Tensor(tuple(extent_text(d) for d in value.shape), value.dtype)


def model_symbols(graph: Graph) -> tuple[str, ...]:
    """The symbols of a graph's inputs, sorted: every other extent is arithmetic on them."""
    return tuple(sorted(symbol_names([value.shape for value in graph.inputs])))


def live_graph(module: Any) -> Graph:
    """The graph of a module without dead nodes."""
    graph = view(module)
    return replace(graph, nodes=tuple(live_nodes(graph)))


def check_outputs(graph: Graph, label: str) -> None:
    """DlcError for an output that the driver could not receive, not knowing its size before."""
    values, known = graph.values(), set(model_symbols(graph))
    names = graph.attrs.get("dlc.outputs") or graph.outputs
    for name, shown in zip(graph.outputs, names, strict=True):
        if not is_tensor(values[name].dtype) or symbol_names(values[name].shape) - known:
            raise DlcError(f"{label}: output '{shown}' has a size that depends on the data, so it cannot be sent")


def stage_name(number: int) -> str:
    """What a stage's nested package is called."""
    return f"stage{number}"


def pipeline(module: Any, graph: Graph, stages: Sequence[Stage]) -> tuple[Modules, Plan]:
    """Cut `graph`, the live nodes of `module`, into `stages`: a module each, and the plan without its predictions."""
    values = graph.values()
    rank_of = {v.name: DRIVER for v in graph.inputs}
    for number, stage in enumerate(stages):
        rank_of |= {v.name: number + 1 for node in graph.nodes[stage.begin : stage.end] for v in node.outputs}
    # An output that is a constant is made by the last stage.
    rank_of |= {name: len(stages) for name in graph.outputs if name not in rank_of}
    readers: dict[str, set[int]] = {name: set() for name in rank_of}
    for number, stage in enumerate(stages):
        for node in graph.nodes[stage.begin : stage.end]:
            for name in node.inputs:
                if name in rank_of and name not in graph.constants:
                    readers[name].add(number + 1)
    for name in graph.outputs:
        readers[name].add(DRIVER)
    travelling = {name: rank for name, rank in rank_of.items() if readers[name] - {rank}}
    reading = {name: sorted(readers[name] - {rank}) for name, rank in travelling.items()}
    modules: Modules = {}
    programs: list[list[Step]] = []
    receives, sends = sends_and_receives(travelling, reading, DRIVER)
    programs.append([*sends, *receives])
    for number, stage in enumerate(stages):
        takes = [n for n, rank in travelling.items() if rank != number + 1 and number + 1 in readers[n]]
        gives = [n for n, rank in travelling.items() if rank == number + 1]
        name = stage_name(number)
        part = graph.nodes[stage.begin : stage.end]
        inputs = tuple(values[n] for n in takes)
        modules[name] = graph_module(module, Graph("main", inputs, tuple(gives), part, graph.constants))
        receives, sends = sends_and_receives(travelling, reading, number + 1)
        programs.append([*receives, Step("run", package=name, inputs=tuple(takes), outputs=tuple(gives)), *sends])
    plan = Plan(
        "pipeline",
        model_symbols(graph),
        tuple(v.name for v in graph.inputs),
        graph.outputs,
        {name: tensor(values[name]) for name in {*travelling, *rank_of}},
        tuple(tuple(program) for program in programs),
    )
    return modules, plan
