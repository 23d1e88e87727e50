"""The tensor form: convolutions and matmuls split over their outputs, a part of the weights on each worker.

The elementwise nodes behind a split contraction are split with it, as far as their other operands are constants. Then
every worker sends its part to every other, and the next segment begins by concatenating the parts. What is not split
runs on every worker alike, so nothing else has to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.convert import FunctionBuilder, view
from dlc.ir.graph import Graph, Node, Value
from dlc.ir.ops import OPS
from dlc.pipeline import Context
from dlc.targets.multi.cost import Costs, nbytes
from dlc.targets.multi.cut import megabytes
from dlc.targets.multi.devices import Device, Link
from dlc.targets.multi.pipeline import check_outputs, live_graph, model_symbols, tensor
from dlc.targets.multi.program import DRIVER, Division, Plan, Step

LEAST = 16  # output channels a worker, below which a part is too thin for vectors to be worth a message
_PER_AXIS = ("dlc.quantize", "dlc.dequantize")  # their parameters are vectors along `axis`, not broadcast
_TABLE = "dlc.table"  # its second operand is looked up, not broadcast


@dataclass(frozen=True)
class Split:
    """A value that each worker has a part of.

    Attributes:
        axis: the axis that is split.
        extent: of the whole axis.
        whole: whether its parts are sent around, so that other nodes read all of it.
    """

    axis: int
    extent: int
    whole: bool

    def part(self, worker: int, count: int) -> slice:
        """The share of one worker of `count`; as even as it goes."""
        return slice(self.extent * worker // count, self.extent * (worker + 1) // count)


def part_name(name: str, worker: int) -> str:
    """What a worker's part of a value is called, once it travels."""
    return f"{name}@{worker}"


def splits_of(graph: Graph, count: int, context: Context | None = None) -> dict[str, Split]:
    """The values that are split over `count` workers; contractions that are not are declined in `context`."""
    consumers, found = graph.consumers(), dict[str, Split]()
    for node in graph.nodes:
        if OPS[node.op].kind != "contraction":
            continue
        reason = _why_not(graph, node, count)
        if reason is not None:
            if context is not None:
                context.decline("multi", node.origin, f"runs on every worker: {reason}")
            continue
        axis = 1 if node.op == "dlc.conv" else len(node.output.shape) - 1
        extent = int(node.output.shape[axis])
        last = node.output
        while True:
            found[last.name] = Split(axis, extent, whole=False)
            readers = consumers[last.name]
            if len(readers) != 1 or last.name in graph.outputs or not _follows(graph, readers[0], last, axis, extent):
                break
            last = readers[0].output
        found[last.name] = Split(axis, extent, whole=True)
    return found


def _why_not(graph: Graph, node: Node, count: int) -> str | None:
    """Why a contraction cannot be split, or None."""
    weight = graph.constants.get(node.inputs[1])
    if weight is None:
        return "its second operand is not a constant"
    if node.op == "dlc.conv" and node.attrs["groups"] != 1:
        return f"it has {node.attrs['groups']} groups"
    if node.op == "dlc.matmul" and (weight.ndim != 2 or not node.output.shape):
        return f"its weight has {weight.ndim} dimensions, not 2"
    channels = weight.shape[0] if node.op == "dlc.conv" else weight.shape[1]
    if channels < LEAST * count:
        return f"{channels} output channels are fewer than {LEAST} for each of {count} workers"
    return None


def _follows(graph: Graph, node: Node, value: Value, axis: int, extent: int) -> bool:
    """Whether an elementwise node can work on parts of `value`: its other operands are constants that can be split."""
    if OPS[node.op].kind != "elementwise" or list(map(str, node.output.shape)) != list(map(str, value.shape)):
        return False
    if node.inputs.count(value.name) != 1 or (node.op == _TABLE and node.inputs[0] != value.name):
        return False
    if node.op in _PER_AXIS and node.attrs["axis"] % len(value.shape) != axis:
        return all(graph.constants[n].size == 1 for n in node.inputs[1:] if n in graph.constants)
    others = [name for name in node.inputs if name != value.name]
    return all(name in graph.constants for name in others)


def _constant_part(array: np.ndarray, node: Node, split: Split, rank: int, part: slice) -> np.ndarray:
    """The share of an operand of an elementwise node."""
    if node.op == _TABLE:
        return array
    axis = array.ndim - 1 if node.op in _PER_AXIS and array.ndim == 1 else split.axis - (rank - array.ndim)
    if axis < 0 or array.ndim <= axis or array.shape[axis] != split.extent:
        return array
    return np.ascontiguousarray(np.take(array, range(part.start, part.stop), axis))


@dataclass
class Segment:
    """Nodes between two exchanges.

    Attributes:
        nodes: in order.
        exchanged: the split values made here whose parts are sent around behind it.
    """

    nodes: list[Node] = field(default_factory=list)
    exchanged: list[str] = field(default_factory=list)


def segments_of(graph: Graph, splits: Mapping[str, Split]) -> list[Segment]:
    """The graph's nodes in segments, each as long as no node reads the whole of what is split in the same one."""
    segments = [Segment()]
    for node in graph.nodes:
        if any(name in segments[-1].exchanged for name in node.inputs):
            segments.append(Segment())
        segments[-1].nodes.append(node)
        if (split := splits.get(node.output.name)) is not None and split.whole:
            segments[-1].exchanged.append(node.output.name)
    if any(name in segments[-1].exchanged for name in graph.outputs):
        segments.append(Segment())
    return segments


def divide(module: Any, context: Context, count: int, device: Device, link: Link, label: str) -> Division:
    """Split a module's contractions over `count` workers.

    Raises:
        DlcError: none can be split, a worker's part does not fit its device, or a node runs on the host.
    """
    graph = live_graph(module)
    check_outputs(graph, label)
    for node in graph.nodes:
        if OPS[node.op].kind == "host":
            raise DlcError(
                f"{label}: {node.origin} runs on the host, which the tensor form does not do; leave out ',tensor'"
            )
    splits = splits_of(graph, count, context)
    if not splits:
        raise DlcError(
            f"{label}: no convolution or matmul can be split: each needs constant weights and {LEAST} output channels "
            f"for each of {count} workers; without ',tensor' the model becomes a pipeline"
        )
    writer, costs = _Writer(graph, splits, count), Costs(graph, device, link)
    modules: dict[str, Any] = {}
    weights = [0] * count
    for number in range(len(writer.segments)):
        for worker in range(count):
            part = modules[package_name(number, worker)] = writer.module(number, worker)
            weights[worker] += sum(array.nbytes for array in view(part).constants.values())
    activations = max(costs.peak, default=0)
    if max(weights) + activations > device.memory:
        raise DlcError(
            f"{label}: a worker needs {megabytes(max(weights) + activations)} (weights {megabytes(max(weights))}, "
            f"activations {megabytes(activations)}) and a device has {megabytes(device.memory)}; take more workers or "
            f"larger devices"
        )
    seconds = _predicted(graph, costs, writer, link)
    stages = tuple({"predicted_us": seconds * 1e6, "weights": w, "activations": activations} for w in weights)
    shared = {node.origin.value for node in graph.nodes if node.output.name in splits}

    def explain(name: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        if not name.endswith("-worker0"):
            return None
        stage = f"1/{count} on each" if row.get("value") in shared else "on each"
        return {"stage": stage, "predicted_stage_us": seconds * 1e6}

    return Division(modules, replace(writer.plan(), stages=stages), explain)


def _predicted(graph: Graph, costs: Costs, writer: _Writer, link: Link) -> float:
    """Seconds for one input: split nodes take their share, and parts go to every other worker."""
    pairs = zip(graph.nodes, costs.seconds, strict=True)
    total = sum(s / writer.count if node.output.name in writer.splits else s for node, s in pairs)
    for segment in writer.segments:
        total += link.seconds(sum(nbytes(writer.values[name]) for name in segment.exchanged) // writer.count)
    return total


class _Writer:
    """Writes each worker's module of each segment, and the programs."""

    def __init__(self, graph: Graph, splits: Mapping[str, Split], count: int) -> None:
        self.graph, self.splits, self.count = graph, splits, count
        self.values = graph.values()
        self.segments = segments_of(graph, splits)

    def _local(self, name: str, worker: int) -> Value:
        """A value as one worker has it."""
        value, split = self.values[name], self.splits.get(name)
        if split is None:
            return value
        part, shape = split.part(worker, self.count), list(value.shape)
        shape[split.axis] = part.stop - part.start
        return Value(name, tuple(shape), value.dtype)

    def _whole(self, name: str) -> bool:
        return name in self.splits and self.splits[name].whole

    def takes(self, number: int) -> list[str]:
        """What a segment reads of what others made; the model's outputs are read by the last."""
        segment = self.segments[number]
        made = {n.output.name for n in segment.nodes}
        read = [name for node in segment.nodes for name in node.inputs]
        if number == len(self.segments) - 1:
            read += [name for name in self.graph.outputs if name not in {v.name for v in self.graph.inputs}]
        return [name for name in dict.fromkeys(read) if name not in made and name not in self.graph.constants]

    def gives(self, number: int) -> list[str]:
        """What later segments read; of the last, the model's outputs."""
        inputs = {v.name for v in self.graph.inputs}
        if number == len(self.segments) - 1:
            return [name for name in dict.fromkeys(self.graph.outputs) if name not in inputs]
        later = {name for following in range(number + 1, len(self.segments)) for name in self.takes(following)}
        return [n.output.name for n in self.segments[number].nodes if n.output.name in later]

    def names(self, name: str, worker: int, taken: bool) -> list[str]:
        """A value as it is called where it is taken or given: its parts, where it travels in parts."""
        if name not in self.splits:
            return [name]
        if taken and self._whole(name):
            return [part_name(name, w) for w in range(self.count)]
        return [part_name(name, worker)]

    def given_names(self, number: int, worker: int) -> list[str]:
        """What a segment's package makes; the last one makes whole outputs."""
        last = number == len(self.segments) - 1
        return [n for name in self.gives(number) for n in ([name] if last else self.names(name, worker, taken=False))]

    def taken_names(self, number: int, worker: int) -> list[str]:
        """What a segment's package takes."""
        return [n for name in self.takes(number) for n in self.names(name, worker, taken=True)]

    def module(self, number: int, worker: int) -> Any:
        """One worker's module of one segment."""
        builder, env = FunctionBuilder(), dict[str, Any]()
        parts: dict[str, list[Any]] = {}
        for name in self.takes(number):
            if self._whole(name):
                owned = [self._local(name, w) for w in range(self.count)]
                parts[name] = [builder.input(f"{name}_{w}", v.shape, v.dtype) for w, v in enumerate(owned)]
            else:
                value = self._local(name, worker)
                env[name] = builder.input(name, value.shape, value.dtype)
        for name, pieces in parts.items():
            env[name] = builder.emit("relax.concat", pieces, {"axis": self.splits[name].axis}, name=name)
        for node in self.segments[number].nodes:
            inputs = self._operands(builder, node, worker, env)
            env[node.output.name] = builder.emit(node.op, inputs, node.attrs, node.origin, node.output.name)
        given = [env[n] if n in env else builder.constant(self.graph.constants[n]) for n in self.gives(number)]
        attrs = {"inputs": self.taken_names(number, worker), "outputs": self.given_names(number, worker)}
        return builder.finish(given, attrs)

    def _operands(self, builder: FunctionBuilder, node: Node, worker: int, env: Mapping[str, Any]) -> list[Any]:
        split = self.splits.get(node.output.name)
        operands = []
        for position, name in enumerate(node.inputs):
            if name in env:
                operands.append(env[name])
                continue
            array = self.graph.constants[name]
            if split is not None:
                part = split.part(worker, self.count)
                if OPS[node.op].kind != "contraction":
                    array = _constant_part(array, node, split, len(node.output.shape), part)
                elif position == 1:
                    cut = array[part] if node.op == "dlc.conv" else array[:, part]
                    array = np.ascontiguousarray(cut)
            operands.append(builder.constant(array))
        return operands

    def program(self, worker: int) -> list[Step]:
        """One worker's steps."""
        read = {name for number in range(len(self.segments)) for name in self.takes(number)}
        inputs = tuple(v.name for v in self.graph.inputs if v.name in read)
        steps = [Step("receive", DRIVER, inputs)] if inputs else []
        peers = [w for w in range(self.count) if w != worker]
        for number, segment in enumerate(self.segments):
            taken, given = self.taken_names(number, worker), self.given_names(number, worker)
            steps.append(Step("run", package=package_name(number, worker), inputs=tuple(taken), outputs=tuple(given)))
            if segment.exchanged and number < len(self.segments) - 1:
                own = tuple(part_name(name, worker) for name in segment.exchanged)
                steps += [Step("send", peer + 1, own) for peer in peers]
                theirs = {peer: tuple(part_name(name, peer) for name in segment.exchanged) for peer in peers}
                steps += [Step("receive", peer + 1, names) for peer, names in theirs.items()]
        outputs = tuple(self.gives(len(self.segments) - 1))
        return [*steps, Step("send", DRIVER, outputs)] if worker == 0 and outputs else steps

    def plan(self) -> Plan:
        """All of it, without predictions."""
        workers = range(self.count)
        programs = [self.program(worker) for worker in workers]
        driver = [
            Step("send", worker + 1, step.values)
            for worker in workers
            for step in programs[worker]
            if step.do == "receive" and step.peer == DRIVER
        ]
        driver += [Step("receive", 1, step.values) for step in programs[0] if step.do == "send" and step.peer == DRIVER]
        values = {name: tensor(value) for name, value in self.values.items()}
        for name in self.splits:
            values |= {part_name(name, w): tensor(self._local(name, w)) for w in workers}
        used = {v.name for v in self.graph.inputs} | {
            name for program in (driver, *programs) for s in program for name in (*s.values, *s.inputs, *s.outputs)
        }
        return Plan(
            "tensor",
            model_symbols(self.graph),
            tuple(v.name for v in self.graph.inputs),
            self.graph.outputs,
            {name: values[name] for name in used},
            tuple(tuple(program) for program in (driver, *programs)),
        )


def package_name(segment: int, worker: int) -> str:
    """What a segment's nested package for one worker is called."""
    return f"segment{segment}-worker{worker}"
