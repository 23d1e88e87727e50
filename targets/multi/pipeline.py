"""The pipeline form: one run of nodes a worker, values sent from where they are made to where they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.dims import Symbols
from dlc.ir.graph import Graph, Value
from dlc.ir.rewrite import live_nodes
from dlc.ir.serial import extent_text
from dlc.pipeline import Context
from dlc.targets.multi.cost import Costs, Stage, symbol_names
from dlc.targets.multi.cut import cut, reasons
from dlc.targets.multi.devices import Device, Link
from dlc.targets.multi.program import DRIVER, Division, Plan, Step, Tensor, sends_and_receives

Modules = dict[str, Any]  # nested package's name -> its IRModule


def divide(module: Any, context: Context, count: int, device: Device, link: Link, label: str) -> Division:
    """Cut a module into `count` balanced stages.

    Raises:
        DlcError: there is no cut of which every stage fits its device.
    """
    graph = Symbols().graph(view(module))
    graph = replace(graph, nodes=tuple(live_nodes(graph)))
    costs = Costs(graph, device, link)
    stages = cut(costs, count, label)
    for origin, text in reasons(costs, stages):
        context.decline("multi", origin, text)
    modules, plan = pipeline(graph, stages)
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
    return tuple(sorted(symbol_names(d for value in graph.inputs for d in value.shape)))


def stage_name(number: int) -> str:
    """What a stage's nested package is called."""
    return f"stage{number}"


def pipeline(graph: Graph, stages: Sequence[Stage]) -> tuple[Modules, Plan]:
    """Cut `graph` into `stages`: a module each, and the plan without its predictions."""
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
        modules[name] = stage_module(graph, stage, takes, gives)
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


def stage_module(graph: Graph, stage: Stage, takes: Sequence[str], gives: Sequence[str]) -> Any:
    """The nodes of a stage as a module that takes and gives these values."""
    values = graph.values()
    builder = FunctionBuilder()
    env = {name: builder.input(name, values[name].shape, values[name].dtype) for name in takes}

    def get(name: str) -> Any:
        if name not in env:
            env[name] = builder.constant(graph.constants[name])
        return env[name]

    for node in graph.nodes[stage.begin : stage.end]:
        inputs = [get(name) for name in node.inputs]
        env[node.output.name] = builder.emit(node.op, inputs, node.attrs, node.origin, node.output.name)
    return builder.finish([get(name) for name in gives], {"inputs": list(takes), "outputs": list(gives)})
