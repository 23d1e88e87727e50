"""A sequence model as one that takes the sequence in parts: what it keeps between parts becomes inputs and outputs.

The carried values of loops over time, and the last steps before a causal convolution, are states. `streaming` adds an
input ``stream.first`` (bool, true for the first part) and, for each state, an input and an output ``stream.N``; in the
first part a state is what the model itself begins with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.loops import take_apart
from dlc.ir.rewrite import Rewriter
from dlc.passes.specialize.time_axis import NotLocalError, TimeAxes, time_axes

FIRST = "stream.first"
STATE = "stream."


class _Streamer:
    """Writes the streaming form."""

    def __init__(self, module: Any) -> None:
        graph = view(module)
        try:
            self.axes: TimeAxes = time_axes(graph)
        except NotLocalError as error:
            raise DlcError(f"the model cannot be streamed: {error}") from error
        self.rw = Rewriter(module)
        self.first = self.rw.builder.input("stream_first", (), "bool")
        self.inputs: list[Any] = []
        self.results: list[Any] = []
        self.given: dict[str, list[Any]] = {}
        for node in self.rw.graph.nodes:
            if node.output.name in self.axes.loops:
                self.given[node.output.name] = [
                    self._input(s.inside.shape, s.inside.dtype) for s in take_apart(node).states
                ]
            elif node.output.name in self.axes.histories:
                axis, back = self.axes.histories[node.output.name]
                value = self.rw.value(node.inputs[0])
                shape = (*value.shape[:axis], back, *value.shape[axis + 1 :])
                self.given[node.output.name] = [self._input(shape, value.dtype)]

    def _input(self, shape: Any, dtype: str) -> Any:
        self.inputs.append(self.rw.builder.input(f"stream_{len(self.inputs)}", shape, dtype))
        return self.inputs[-1]

    def run(self) -> Any:
        """The module, with its new inputs and outputs behind the old ones."""
        rw = self.rw
        for node in rw.graph.nodes:
            if node.output.name in self.axes.loops:
                rw.env[node.output.name] = self._loop(node)
            elif node.output.name in self.axes.histories:
                rw.env[node.output.name] = self._convolution(node)
            else:
                rw.env[node.output.name] = rw.copy(node)
        graph = rw.graph
        names = [STATE + str(i) for i in range(len(self.inputs))]
        inputs = graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs]
        outputs = graph.attrs.get("dlc.outputs") or list(graph.outputs)
        attrs = {"inputs": [*inputs, FIRST, *names], "outputs": [*outputs, *names]}
        return rw.builder.finish([*(rw.new(n) for n in graph.outputs), *self.results], attrs)

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
        for index in range(len(states)):
            self.results.append(rw.builder.item(made, index, node.origin, f"{node.output.name}_state{index}"))
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
        self.results.append(rw.emit("relax.strided_slice", [joined], attrs_slice, node.origin))
        pads = list(attrs["pads"])
        pads[axis - 2] = 0
        inputs = [joined, *(rw.new(name) for name in node.inputs[1:])]
        return rw.emit(node.op, inputs, {**attrs, "pads": tuple(pads)}, node.origin)


def streaming(module: Any) -> tuple[Any, dict[str, int]]:
    """The streaming form of a module behind the common passes, and the time axis of each input and output that has one.

    Raises:
        DlcError: the model is not local in time; names the node and says why.
    """
    streamer = _Streamer(module)
    graph, times = streamer.rw.graph, streamer.axes.of
    inputs = zip(graph.attrs.get("dlc.inputs") or [v.name for v in graph.inputs], graph.inputs, strict=True)
    outputs = zip(graph.attrs.get("dlc.outputs") or graph.outputs, graph.outputs, strict=True)
    named = [*((name, times[value.name]) for name, value in inputs), *((name, times[value]) for name, value in outputs)]
    return streamer.run(), {name: time.axis for name, time in named if time is not None}
