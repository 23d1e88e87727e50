"""Follow the time axis of a sequence model through its graph: which axis of each value runs over time.

A value is *local* when each of its steps depends on the same step of what it is computed from, on values without time,
and, through loops and causal convolutions, on earlier steps. A model of which all outputs are local can be run on one
part of a sequence after the other. `NotLocalError` names the node that is not, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm.sym import Analyzer

from dlc.ir.dims import substitute
from dlc.ir.graph import Graph, Node, Value
from dlc.ir.loops import take_apart
from dlc.ir.ops import OPS
from dlc.ir.ops.host import ITEM, LOOP

_analyzer = Analyzer()


@dataclass(frozen=True)
class Time:
    """The axis that runs over time, with `factor` elements a step (the outermost part of the axis is time)."""

    axis: int
    factor: Any = 1


class NotLocalError(Exception):
    """A node needs more of the sequence than the steps so far."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"node {node.origin}: {reason}")
        self.node = node


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return str(_analyzer.simplify(a - b)) in ("0", "T.int64(0)")


class TimeAxes:
    """The time axes of one graph, under the hypothesis that axis `axis` of input `source` is one.

    Attributes:
        of: value name -> its time, None for a value without.
        length: how many steps there are.
        loops: the tuples of the loops over time.
        histories: the convolutions that look back, with the axis and the number of earlier steps.
    """

    def __init__(self, graph: Graph, source: dict[str, int]) -> None:
        self.graph, self.values = graph, graph.values()
        self.of: dict[str, Time | None] = dict.fromkeys(graph.constants)
        self.of |= {v.name: Time(source[v.name]) if v.name in source else None for v in graph.inputs}
        name, axis = next(iter(source.items()))
        self.length = self.values[name].shape[axis]
        self.loops: set[str] = set()
        self.histories: dict[str, tuple[int, int]] = {}
        self.producers = graph.producers()
        for node in graph.nodes:
            self.of[node.output.name] = self._time(node)

    def _time(self, node: Node) -> Time | None:
        if node.op == ITEM:
            return self._item(node)
        if node.op == LOOP:
            self._loop(node)
            return None
        if all(self.of[name] is None for name in node.inputs):
            return self._made(node)
        rule = _RULES.get(node.op, _RULES.get(OPS[node.op].kind))
        if rule is None or OPS[node.op].kind == "host":
            raise NotLocalError(node, f"there is no rule how {node.op} treats time")
        return rule(self, node)

    def _made(self, node: Node) -> Time | None:
        """A value without time, or a constant that is as long as the sequence."""
        long = [i for i, d in enumerate(node.output.shape) if not isinstance(d, int) and _equal(d, self.length)]
        return Time(long[0]) if long and node.op == "relax.broadcast_to" else None

    # --- loops ---

    def _loop(self, node: Node) -> None:
        parts = take_apart(node)
        for state in parts.states:
            if self.of[state.initial] is not None:
                raise NotLocalError(node, "a carried value begins with a value that runs over time")
        for operand in parts.captured:
            if self.of[operand.outside] is not None:
                raise NotLocalError(node, "its block reads a whole sequence at each step")
        over = [self.of[operand.outside] for operand in parts.scanned]
        if any(time == Time(0) for time in over):
            if not all(time == Time(0) for time in over):
                raise NotLocalError(node, "it scans sequences of which not all run over time")
            self.loops.add(node.output.name)
        elif any(time is not None for time in over):
            raise NotLocalError(node, "it scans another axis than time")

    def _item(self, node: Node) -> Time | None:
        loop = self.producers[node.inputs[0]]
        if loop.op != LOOP:
            return None
        stacked = node.attrs["index"] >= loop.attrs["carried"]
        return Time(0) if stacked and loop.output.name in self.loops else None

    # --- rules ---

    def first(self, node: Node) -> tuple[Time, Value]:
        """The time and type of the first operand, which must be the only one that has time."""
        time = self.of[node.inputs[0]]
        if time is None or any(self.of[name] is not None for name in node.inputs[1:]):
            raise NotLocalError(node, "an operand that runs over time is in an unexpected place")
        return time, self.values[node.inputs[0]]

    def elementwise(self, node: Node) -> Time:
        """Operands as numpy broadcasts them."""
        rank = len(node.output.shape)
        found: set[tuple[int, str]] = set()
        for name in node.inputs:
            time = self.of[name]
            if time is not None:
                found.add((time.axis + rank - len(self.values[name].shape), str(time.factor)))
                kept = time
        if len(found) != 1:
            raise NotLocalError(node, "its operands run over time along different axes")
        axis = next(iter(found))[0]
        for name in node.inputs:
            shape = self.values[name].shape
            own = axis - (rank - len(shape))
            if self.of[name] is None and own >= 0 and shape[own] != 1:
                raise NotLocalError(node, "an operand has a value of its own for each position in the sequence")
        return Time(axis, kept.factor)

    def quantize(self, node: Node) -> Time:
        """Scales along an axis, or one for all."""
        time = self.of[node.inputs[0]]
        for name in node.inputs[1:]:
            own = self.of[name]
            if own is not None and (time is None or own.factor != time.factor or node.attrs["axis"] != time.axis):
                raise NotLocalError(node, "its scales run over time along another axis")
            vector = own is None and self.values[name].shape not in ((), (1,))
            if time is not None and vector and node.attrs["axis"] % len(node.output.shape) == time.axis:
                raise NotLocalError(node, "it has a scale of its own for each position in the sequence")
        if time is None:
            raise NotLocalError(node, "its scales run over time and its input does not")
        return time

    def matmul(self, node: Node) -> Time:
        """Rows may run over time."""
        time, value = self.first(node)
        if time.axis == len(value.shape) - 1:
            raise NotLocalError(node, "it sums over time")
        return Time(time.axis + len(node.output.shape) - len(value.shape), time.factor)

    def conv(self, node: Node) -> Time:
        """Causal ones: all padding lies before the sequence."""
        time, _ = self.first(node)
        if time.axis == 0:
            return time
        spatial = time.axis - 2
        attrs, rank = node.attrs, len(node.output.shape) - 2
        if spatial < 0 or time.factor != 1:
            raise NotLocalError(node, "its channels run over time")
        back = (self.values[node.inputs[1]].shape[2 + spatial] - 1) * attrs["dilations"][spatial]
        if attrs["strides"][spatial] != 1:
            raise NotLocalError(node, "it has a stride over time")
        if attrs["pads"][spatial] != back or attrs["pads"][rank + spatial] != 0:
            raise NotLocalError(
                node, f"it is not causal: it looks back {back} steps, and is padded by {attrs['pads'][spatial]}"
            )
        if back:
            self.histories[node.output.name] = (time.axis, back)
        return time

    def axes_of(self, node: Node) -> tuple[Time, set[int], int]:
        """(time, the axes that the node works along, its first operand's rank)."""
        time, value = self.first(node)
        rank = len(value.shape)
        given = node.attrs.get("axes", node.attrs.get("axis"))
        return time, {a % rank for a in (given if isinstance(given, tuple | list) else (given,))}, rank

    def along(self, node: Node) -> Time:
        """Operators along other axes that keep the rank."""
        time, axes, _ = self.axes_of(node)
        if time.axis in axes:
            raise NotLocalError(node, "it works along time")
        return time

    def reduction(self, node: Node) -> Time:
        """Reductions along other axes."""
        time, axes, _ = self.axes_of(node)
        if time.axis in axes:
            raise NotLocalError(node, "it works along time")
        return (
            time
            if node.attrs.get("keepdims", True)
            else Time(time.axis - sum(a < time.axis for a in axes), time.factor)
        )

    def concat(self, node: Node) -> Time:
        """Joining along another axis what has the same time."""
        times = {self.of[name] for name in node.inputs}
        time = self.of[node.inputs[0]]
        if len(times) != 1 or time is None or node.attrs["axis"] % len(node.output.shape) == time.axis:
            raise NotLocalError(node, "it joins what runs over time with what does not, or along time")
        return time

    def permute(self, node: Node) -> Time:
        """Axes in another order."""
        time, _ = self.first(node)
        return Time(list(node.attrs["axes"]).index(time.axis), time.factor)

    def pad(self, node: Node) -> Time:
        """Padding of other axes."""
        time, _ = self.first(node)
        if any(node.attrs["pad_width"][2 * time.axis : 2 * time.axis + 2]):
            raise NotLocalError(node, "it pads the sequence")
        return time

    def take(self, node: Node) -> Time:
        """Rows of a table for indices that run over time, or fixed positions of another axis."""
        data, indices = node.inputs
        axis = node.attrs["axis"] % len(self.values[data].shape)
        time, inner = self.of[data], self.of[indices]
        if time is None and inner is not None:
            return Time(axis + inner.axis, inner.factor)
        if time is None or inner is not None or axis == time.axis:
            raise NotLocalError(node, "it picks positions of the sequence")
        return Time(time.axis + (len(self.values[indices].shape) - 1 if axis < time.axis else 0), time.factor)

    def extents(self, node: Node) -> None:
        """Shapes are values without time; they are those of the part that runs."""

    def reshape(self, node: Node) -> Time:
        """Where time stays the outermost part of an axis."""
        time, value = self.first(node)
        before, after = prod(value.shape[: time.axis], start=1), node.output.shape
        for axis, extent in enumerate(after):
            if _equal(prod(after[:axis], start=1), before):
                factor = self._factor(extent)
                if factor is not None:
                    return Time(axis, factor)
        raise NotLocalError(node, "it mixes time with other axes")

    def _factor(self, extent: Any) -> Any:
        """extent / length where that is whole; else None."""
        if isinstance(self.length, int):
            return extent // self.length if isinstance(extent, int) and extent % self.length == 0 else None
        if isinstance(extent, int):
            return None
        one = _analyzer.simplify(substitute(extent, {str(self.length.name): type(self.length)("one", "int64")}))
        count = _analyzer.simplify(substitute(one, {"one": 1 + 0 * self.length}))
        return (int(count) if _is_int(count) else count) if _equal(extent, self.length * count) else None


def _is_int(value: Any) -> bool:
    return hasattr(value, "value") and not hasattr(value, "name")


_RULES: dict[str, Callable[[TimeAxes, Node], Time | None]] = {
    "elementwise": TimeAxes.elementwise,
    "reduction": TimeAxes.reduction,
    "dlc.quantize": TimeAxes.quantize,
    "dlc.dequantize": TimeAxes.quantize,
    "dlc.matmul": TimeAxes.matmul,
    "dlc.conv": TimeAxes.conv,
    "dlc.extents": TimeAxes.extents,
    "relax.strided_slice": TimeAxes.along,
    "relax.nn.softmax": TimeAxes.along,
    "relax.nn.log_softmax": TimeAxes.along,
    "relax.nn.layer_norm": TimeAxes.along,
    "relax.concat": TimeAxes.concat,
    "relax.permute_dims": TimeAxes.permute,
    "relax.nn.pad": TimeAxes.pad,
    "relax.take": TimeAxes.take,
    "relax.reshape": TimeAxes.reshape,
}


def time_axes(graph: Graph) -> TimeAxes:
    """The time axes of `graph`, by trying the axes of its inputs.

    Raises:
        NotLocalError: no axis of an input is time to all outputs; with the reason for the best try.
    """
    best: NotLocalError | None = None
    reached = -1
    order = {node.output.name: i for i, node in enumerate(graph.nodes)}
    for source in _hypotheses(graph):
        try:
            found = TimeAxes(graph, source)
        except NotLocalError as error:
            position = order[error.node.output.name]
            if position >= reached:  # the try that came furthest says most
                best, reached = error, position
            continue
        if (found.loops or found.histories) and any(found.of[name] is not None for name in graph.outputs):
            return found
    if best is not None:
        raise best
    raise NotLocalError(graph.nodes[-1], "no loop and no causal convolution runs over an axis of an input")


def _hypotheses(graph: Graph) -> Sequence[dict[str, int]]:
    """One axis of one input; other inputs of the same symbol have it too."""
    tries = []
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape):
            source = {value.name: axis}
            for other in graph.inputs:
                same = [i for i, d in enumerate(other.shape) if not isinstance(d, int) and str(d) == str(dim)]
                if other is not value and same:
                    source[other.name] = same[0]
            tries.append(source)
    return tries
