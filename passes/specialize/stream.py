"""A sequence model as one that takes the sequence in parts: what it keeps between parts becomes inputs and outputs.

The carried values of loops over time, the last steps before a causal convolution, and all steps so far of what an
attention reads are states. `streaming` adds an input ``stream.first`` (bool, true for the first part) and, for each
state, an input and an output ``stream.N``; in the first part a state is what the model itself begins with.

The states of attentions are *caches* of as many rows as the longest sequence has steps. A part writes its own rows into
them and reads those that have been written. How many steps there were before is the extent of one more input,
``stream.past``, whose elements nobody reads: so it is a symbol, and slices of caches and of tables of positions have
extents over symbols like any other value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Node, free_name, symbol_names
from dlc.ir.loops import take_apart
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.specialize.find_time import time_axes
from dlc.passes.specialize.positions import NotLocalError
from dlc.passes.specialize.time_axis import TimeAxes
from dlc.runtime.demands import Demands

FIRST = "stream.first"
PAST = "stream.past"
STATE = "stream."


@dataclass(frozen=True)
class Streaming:
    """The streaming form of a module.

    Attributes:
        module: with its new inputs and outputs behind the old ones.
        axes: the time axis of each input and output that has one.
        longest: how many steps a sequence may have; None for any number.
    """

    module: Any
    axes: dict[str, int]
    longest: int | None


class _Streamer:
    """Writes the streaming form."""

    def __init__(self, module: Any, longest: int | None) -> None:
        graph = view(module)
        try:
            self.axes: TimeAxes = time_axes(graph, longest)
        except NotLocalError as error:
            raise DlcError(f"the model cannot be streamed: {error}") from error
        self.rw = Rewriter(module)
        self.first = self.rw.builder.input("stream_first", (), "bool")
        self.names = [FIRST]
        self.past: Any = 0
        if self.axes.caches or self.axes.scores.placed:
            taken = {name for v in graph.values().values() for name in symbol_names(v.shape)}
            self.past = tirx.Var(free_name("past", taken), "int64")
            self.rw.builder.input("stream_past", (self.past,), "bool")
            self.names.append(PAST)
        self.inputs: list[Any] = []
        self.results: dict[str, Any] = {}  # name of a state's input -> what it becomes
        self.given: dict[str, list[Any]] = {}
        self.rows: dict[tuple[str, int, int], Any] = {}
        self.filled: dict[str, Any] = {}
        for node in self.rw.graph.nodes:
            self.given[node.output.name] = self._states(node)
        for name, axis in self.axes.caches.items():
            value = self.rw.value(name)
            shape = (*value.shape[:axis], self.axes.longest, *value.shape[axis + 1 :])
            self.given[name] = [self._input(shape, value.dtype)]

    def _states(self, node: Node) -> list[Any]:
        if node.output.name in self.axes.loops:
            return [self._input(s.inside.shape, s.inside.dtype) for s in take_apart(node).states]
        if node.output.name not in self.axes.histories:
            return []
        axis, back = self.axes.histories[node.output.name]
        value = self.rw.value(node.inputs[0])
        return [self._input((*value.shape[:axis], back, *value.shape[axis + 1 :]), value.dtype)]

    def _input(self, shape: Any, dtype: str) -> Any:
        self.inputs.append(self.rw.builder.input(f"stream_{len(self.inputs)}", shape, dtype))
        return self.inputs[-1]

    def run(self) -> Any:
        """The module, with its new inputs and outputs behind the old ones."""
        rw = self.rw
        for node in rw.graph.nodes:
            rw.env[node.output.name] = self._node(node)
        graph = rw.graph
        names = [STATE + str(i) for i in range(len(self.inputs))]
        inputs = graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs]
        outputs = graph.attrs.get("dlc.outputs") or list(graph.outputs)
        before = len(inputs) + len(self.names), len(outputs)
        attrs = {
            "inputs": [*inputs, *self.names, *names],
            "outputs": [*outputs, *names],
            "updates": {str(before[1] + i): before[0] + i for i in range(len(names))},
            **({"equal": equal} if (equal := self._demanded()) else {}),
        }
        states = [self.results[state.name] for state in self.inputs]
        made = rw.builder.finish([*(rw.new(n) for n in graph.outputs), *states], attrs)
        return rewrite(made, lambda state, node: None)  # without what only positions were made of

    def _demanded(self) -> dict[str, str]:
        """The extents that have to be equal; DlcError where they say how long the whole sequence is."""
        equal = dict(Demands.of_graph(self.rw.graph.attrs).equal)
        steps = set() if isinstance(self.axes.length, int) else {str(self.axes.length)}
        for pair, wrong in equal.items():
            if steps & set(re.findall(r"[A-Za-z_]\w*", pair)):
                raise DlcError(f"the model does not take its sequence in parts: {wrong}, for some lengths of the whole")
        return equal

    def _node(self, node: Node) -> Any:
        if node.output.name in self.axes.loops:
            return self._loop(node)
        if node.output.name in self.axes.histories:
            return self._convolution(node)
        rw, attrs = self.rw, dict(node.attrs)
        placed = [self.axes.scores.placed.get((node.output.name, name)) for name in node.inputs]
        reads = node.output.name in self.axes.readers
        time = self.axes.of[node.output.name]
        keys = None if time is None else time.keys
        if not reads and keys is None and not any(placed):
            return rw.copy(node)
        if "shape" in attrs and keys is not None:
            attrs["shape"] = (*attrs["shape"][:keys], self.total, *attrs["shape"][keys + 1 :])
        pairs = zip(node.inputs, placed, strict=True)
        inputs = [rw.new(name) if axes is None else self._positions(name, axes, node) for name, axes in pairs]
        if reads:
            inputs[1] = self._filled(node.inputs[1], node)
        return rw.emit(node.op, inputs, attrs, node.origin)

    @property
    def total(self) -> Any:
        """How many steps there are with this part."""
        return self.past + self.axes.length

    def _positions(self, name: str, axes: tuple[int, int], reader: Node) -> Any:
        """What depends on positions alone, for the steps of this part along one axis and all so far along another."""
        if (name, *axes) not in self.rows:
            ranges = [(axis, begin) for axis, begin in zip(axes, (self.past, 0), strict=True) if axis >= 0]
            attrs = {
                "axes": tuple(axis for axis, _ in ranges),
                "begin": tuple(begin for _, begin in ranges),
                "end": (self.total,) * len(ranges),
                "strides": (1,) * len(ranges),
            }
            table = self.rw.const(self.axes.positions.table(name, reader))
            self.rows[(name, *axes)] = self.rw.emit("relax.strided_slice", [table], attrs, reader.origin)
        return self.rows[(name, *axes)]

    def _filled(self, name: str, reader: Node) -> Any:
        """All rows so far of what an attention reads."""
        if name not in self.filled:
            (state,), axis, rw = self.given[name], self.axes.caches[name], self.rw
            attrs = {"axis": axis, "begin": (self.past,)}
            written = rw.emit("dlc.set_rows", [state, rw.new(name)], attrs, reader.origin)
            self.results[state.name] = written
            bounds = {"axes": (axis,), "begin": (0,), "end": (self.total,), "strides": (1,)}
            self.filled[name] = rw.emit("relax.strided_slice", [written], bounds, reader.origin)
        return self.filled[name]

    def _begun(self, state: Any, initial: Any, node: Node) -> Any:
        return self.rw.emit("relax.where", [self.first, initial, state], {}, node.origin)

    def _loop(self, node: Node) -> Any:
        rw, parts = self.rw, take_apart(node)
        states = self.given[node.output.name]
        begun = [self._begun(s, rw.new(p.initial), node) for s, p in zip(states, parts.states, strict=True)]
        first = (parts.trips is not None) + (parts.condition is not None)
        written = [rw.new(name) for name in node.inputs]
        written[first : first + len(states)] = begun
        blocks = [block.name for block in node.blocks]
        made = rw.builder.host(node.op, blocks, written, node.attrs, node.origin, node.output.name)
        for index, state in enumerate(states):
            item = rw.builder.item(made, index, node.origin, f"{node.output.name}_state{index}")
            self.results[state.name] = item
        return made

    def _convolution(self, node: Node) -> Any:
        rw, (axis, back) = self.rw, self.axes.histories[node.output.name]
        (state,) = self.given[node.output.name]
        value, attrs = rw.value(node.inputs[0]), dict(node.attrs)
        fill = np.asarray(attrs.get("x_zero_point", 0), value.dtype)
        begun = self._begun(state, rw.const(fill), node)
        joined = rw.emit("relax.concat", [begun, rw.new(node.inputs[0])], {"axis": axis}, node.origin)
        length = value.shape[axis]
        attrs_slice = {"axes": (axis,), "begin": (length,), "end": (length + back,), "strides": (1,)}
        self.results[state.name] = rw.emit("relax.strided_slice", [joined], attrs_slice, node.origin)
        pads = list(attrs["pads"])
        pads[axis - 2] = 0
        inputs = [joined, *(rw.new(name) for name in node.inputs[1:])]
        return rw.emit(node.op, inputs, {**attrs, "pads": tuple(pads)}, node.origin)


def streaming(module: Any, longest: int | None = None) -> Streaming:
    """The streaming form of a module behind the common passes.

    Args:
        longest: how many steps a sequence may have. Models that read all steps so far need it, others take any number;
            where the model itself says how many it takes, that is meant by None.

    Raises:
        DlcError: the model is not local in time; names the node and says why. Or it does not take so many steps.
    """
    streamer = _Streamer(module, longest)
    graph, times = streamer.rw.graph, streamer.axes.of
    inputs = zip(graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs], graph.inputs, strict=True)
    outputs = zip(graph.attrs.get("dlc.outputs") or graph.outputs, graph.outputs, strict=True)
    named = [*((name, times[value.name]) for name, value in inputs), *((name, times[value]) for name, value in outputs)]
    found = {name: time.axis for name, time in named if time is not None}
    return Streaming(streamer.run(), found, streamer.axes.longest)
