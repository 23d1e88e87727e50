"""Follow the time axis of a sequence model through its graph: which axis of each value runs over time.

A value is *local* when each of its steps depends on the same step of what it is computed from, on values without time,
on its own position, and, through loops, causal convolutions and causal attention, on earlier steps. A model of which
all outputs are local can be run on one part of a sequence after the other. `NotLocalError` names the node that is not,
and why.

An attention is found where both operands of a product run over time: its result, the *scores*, has an axis over the
steps and one over all positions, the *keys*. What sums over the keys must have hidden those behind a step (`causal`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Node, Value, symbol_names
from dlc.ir.interpret import evaluate_dim
from dlc.ir.loops import take_apart
from dlc.ir.ops import OPS
from dlc.ir.ops.host import ITEM, LOOP
from dlc.passes.specialize.causal import LOW, ZERO
from dlc.passes.specialize.positions import NotLocalError, Positions
from dlc.passes.specialize.scores import Scores

_FIRST_PRIME = 100_003


@dataclass(frozen=True)
class Time:
    """The axis that runs over time.

    Attributes:
        factor: elements a step.
        outer: how often the axis runs over time, one after the other: it is (outer, steps, factor) in one.
        keys: of scores, the axis that runs over all positions so far.
    """

    axis: int
    factor: int = 1
    outer: int = 1
    keys: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the axis is the steps and nothing else."""
        return self.factor == 1 and self.outer == 1


class TimeAxes:
    """The time axes of one graph, under the hypothesis that axis `axis` of input `source` is one.

    Attributes:
        of: value name -> its time, None for a value without.
        length: how many steps there are.
        longest: how many a sequence may have; None where nobody said it.
        loops: the tuples of the loops over time.
        histories: the convolutions that look back, with the axis and the number of earlier steps.
        caches: the values of which all steps so far are read, with the axis of their steps.
        readers: the nodes whose second operand is one of `caches`.
        scores: what is known of the scores of attentions, and where operands stand that depend on positions alone.
    """

    def __init__(self, graph: Graph, source: dict[str, int], longest: int | None) -> None:
        self.graph, self.values = graph, graph.values()
        self.of: dict[str, Time | None] = dict.fromkeys(graph.constants)
        self.of |= {v.name: Time(source[v.name]) if v.name in source else None for v in graph.inputs}
        name, axis = next(iter(source.items()))
        self.length = self.values[name].shape[axis]
        names = {n for v in graph.values().values() for n in symbol_names(v.shape)}
        self.sizes = {n: _FIRST_PRIME + 2 * i for i, n in enumerate(sorted(names))}
        steps = None if isinstance(self.length, int) else str(self.length)
        most = graph.attrs.get("dlc.limits", {}).get(steps)
        if most is not None and longest is not None and longest > most:
            raise DlcError(f"max_length is {longest}, the model takes {most} steps at most")
        self.longest = most if longest is None else longest
        self.positions = Positions(graph, steps, self.longest, self.sizes)
        self.loops: set[str] = set()
        self.histories: dict[str, tuple[int, int]] = {}
        self.caches: dict[str, int] = {}
        self.readers: set[str] = set()
        self.scores = Scores(self.positions, graph.constants)
        self.producers = graph.producers()
        for node in graph.nodes:
            self.of[node.output.name] = self._time(node)
        for name in filter(self.varies, graph.outputs):
            raise NotLocalError(self.producers[name], "an output depends on the positions of the steps alone")

    def size(self, extent: Any) -> int:
        """An extent as a number that tells it from others: each symbol has a large size of its own."""
        return evaluate_dim(extent, self.sizes)

    def _time(self, node: Node) -> Time | None:
        if node.op == ITEM:
            return self._item(node)
        if node.op == LOOP:
            self._loop(node)
            return None
        times = [self.of[name] for name in node.inputs]
        if all(time is None for time in times) or node.output.name in self.positions.nodes:
            return self._made(node)
        rule = _RULES.get(node.op, _RULES.get(OPS[node.op].kind))
        if rule is None or OPS[node.op].kind == "host":
            raise NotLocalError(node, f"there is no rule how {node.op} treats time")
        if OPS[node.op].kind != "elementwise" and any(map(self.varies, node.inputs)):
            raise NotLocalError(node, "an operand has a value of its own for each position in the sequence")
        scores = any(time is not None and time.keys is not None for time in times)
        if scores and node.op not in _OF_SCORES and OPS[node.op].kind not in _OF_SCORES:
            raise NotLocalError(node, f"there is no rule how {node.op} treats the scores of an attention")
        made = rule(self, node)
        if made is not None and made.keys is not None:
            self.scores.keep(node)
        return made

    def _made(self, node: Node) -> Time | None:
        """A value without time, or a constant that is as long as the sequence."""
        if node.op != "relax.broadcast_to" or isinstance(self.length, int) or node.inputs[0] in self.positions.nodes:
            return None
        long = [i for i, d in enumerate(node.output.shape) if self.size(d) == self.size(self.length)]
        return Time(long[0]) if len(long) == 1 else None

    def varies(self, name: str) -> bool:
        """Whether a value depends on positions alone, with one element or more a position."""
        return name in self.positions.nodes and self.of[name] is None and bool(self.positions.axes(name))

    # --- loops ---

    def _loop(self, node: Node) -> None:
        parts = take_apart(node)
        for state in parts.states:
            if self.of[state.initial] is not None:
                raise NotLocalError(node, "a carried value begins with a value that runs over time", likely=False)
        for operand in parts.captured:
            if self.of[operand.outside] is not None:
                raise NotLocalError(node, "its block reads a whole sequence at each step")
        over = [self.of[operand.outside] for operand in parts.scanned]
        if any(time == Time(0) for time in over):
            if not all(time == Time(0) for time in over):
                raise NotLocalError(node, "it scans sequences of which not all run over time")
            self.loops.add(node.output.name)
        elif any(time is not None for time in over):
            raise NotLocalError(node, "it scans another axis than time", likely=False)

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
        found: set[tuple[int, int, int]] = set()
        keys: set[int] = set()
        for name in node.inputs:
            time, shift = self.of[name], rank - len(self.values[name].shape)
            if time is not None:
                found.add((time.axis + shift, time.factor, time.outer))
                keys |= set() if time.keys is None else {time.keys + shift}
        if len(found) != 1 or len(keys) > 1:
            raise NotLocalError(node, "its operands run over time along different axes")
        (axis, factor, outer), along = next(iter(found)), next(iter(keys), None)
        made = Time(axis, factor, outer, along)
        for name in node.inputs:
            if self.of[name] is None or (along is not None and self.of[name].keys is None):  # type: ignore[union-attr]
                self._fits(node, name, made)
        if along is not None:
            self.scores.compute(node)
        return made

    def _fits(self, node: Node, name: str, made: Time) -> None:
        """Hold an operand to what it may have along the axes of time and keys: one element, or one a position."""
        shape = self.values[name].shape
        shift = len(node.output.shape) - len(shape)
        own = [-1 if a is None or a < shift or shape[a - shift] == 1 else a - shift for a in (made.axis, made.keys)]
        if self.varies(name):
            if set(self.positions.axes(name)) != {a for a in own if a >= 0} or not made.is_plain:
                raise NotLocalError(node, "an operand of positions runs over another axis than time")
            self.scores.place(node, name, (own[0], own[1]))
        elif own[1] >= 0 or (own[0] >= 0 and self.of[name] is None):
            raise NotLocalError(node, "an operand has a value of its own for each position in the sequence")

    def quantize(self, node: Node) -> Time:
        """Scales along an axis, or one for all."""
        time = self.of[node.inputs[0]]
        for name in node.inputs[1:]:
            own = self.of[name]
            if own is not None and (time != replace(own, axis=node.attrs["axis"])):
                raise NotLocalError(node, "its scales run over time along another axis")
            vector = own is None and self.values[name].shape not in ((), (1,))
            if time is not None and vector and node.attrs["axis"] % len(node.output.shape) == time.axis:
                raise NotLocalError(node, "it has a scale of its own for each position in the sequence")
        if time is None:
            raise NotLocalError(node, "its scales run over time and its input does not")
        if time.keys is not None:
            self.scores.compute(node)
        return time

    def matmul(self, node: Node) -> Time:
        """Rows may run over time, or the columns of a product with fixed rows; both in an attention."""
        (a, b), (left, right) = node.inputs, (self.of[name] for name in node.inputs)
        rows, columns = len(self.values[a].shape), len(self.values[b].shape)
        rank = len(node.output.shape)
        if left is not None and right is not None:
            return self.attention(node, left, right)
        if left is None and right is not None and right.keys is None and right.axis == columns - 1 > 0:
            return Time(rank - 1, right.factor, right.outer)
        time, _ = self.first(node)
        if time.axis == rows - 1 or time.keys is not None:
            raise NotLocalError(node, "it sums over time")
        return Time(time.axis + rank - rows, time.factor, time.outer)

    def attention(self, node: Node, left: Time, right: Time) -> Time:
        """Scores of queries and keys, or the weighted sums of values; a product a step is no attention."""
        a, b = (len(self.values[name].shape) for name in node.inputs)
        rank = len(node.output.shape)
        if (
            left.axis < a - 2
            and left.keys is None
            and replace(left, axis=left.axis + rank - a) == replace(right, axis=right.axis + rank - b)
        ):
            return replace(left, axis=left.axis + rank - a)
        plain = left.is_plain and right.is_plain and right.keys is None and not isinstance(self.length, int)
        if left.keys is None and plain and (left.axis, right.axis) == (a - 2, b - 1):
            time = Time(rank - 2, keys=rank - 1)
        elif left.keys == a - 1 and plain and (left.axis, right.axis) == (a - 2, b - 2):
            self.scores.hold(node, ZERO)
            time = Time(rank - 2)
        else:
            raise NotLocalError(node, "it multiplies what runs over time with what runs over time")
        if self.longest is None:
            raise NotLocalError(node, "it reads all steps so far: say how many there may be (max_length)")
        self.caches[node.inputs[1]] = right.axis
        self.readers.add(node.output.name)
        return time

    def conv(self, node: Node) -> Time:
        """Causal ones: all padding lies before the sequence."""
        time, _ = self.first(node)
        if time.axis == 0:
            return time
        spatial = time.axis - 2
        attrs, rank = node.attrs, len(node.output.shape) - 2
        if spatial < 0 or not time.is_plain:
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
        if time.axis in axes or time.keys in axes:
            raise NotLocalError(node, "it works along time")
        return time

    def softmax(self, node: Node) -> Time:
        """Along other axes, or along the keys of masked scores."""
        time, axes, _ = self.axes_of(node)
        if time.keys not in axes:
            return self.along(node)
        self.scores.hold(node, LOW)
        self.scores.behind[node.output.name] = ZERO
        return time

    def reduction(self, node: Node) -> Time:
        """Reductions along other axes, or of masked scores along their keys."""
        time, axes, _ = self.axes_of(node)
        if time.keys in axes and node.op in ("relax.max", "relax.sum"):
            self.scores.hold(node, LOW if node.op == "relax.max" else ZERO)
            time = replace(time, keys=None)
        if time.axis in axes or time.keys in axes:
            raise NotLocalError(node, "it works along time")
        if node.attrs.get("keepdims", True):
            return time
        keys = None if time.keys is None else time.keys - sum(a < time.keys for a in axes)
        return replace(time, axis=time.axis - sum(a < time.axis for a in axes), keys=keys)

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
        axes = list(node.attrs["axes"])
        keys = None if time.keys is None else axes.index(time.keys)
        return replace(time, axis=axes.index(time.axis), keys=keys)

    def broadcast(self, node: Node) -> Time:
        """More of other axes."""
        time, value = self.first(node)
        shift, steps = len(node.output.shape) - len(value.shape), self.size(self.length)
        if [self.size(d) % steps for d in node.output.shape].count(0) > 1 + (time.keys is not None):
            raise NotLocalError(node, "it repeats what runs over time as often as there are steps")
        return replace(time, axis=time.axis + shift, keys=None if time.keys is None else time.keys + shift)

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
            return replace(inner, axis=axis + inner.axis)
        if time is None or inner is not None or axis == time.axis:
            raise NotLocalError(node, "it picks positions of the sequence")
        return replace(time, axis=time.axis + (len(self.values[indices].shape) - 1 if axis < time.axis else 0))

    def extents(self, node: Node) -> None:
        """Shapes are values without time; they are those of the part that runs."""

    def reshape(self, node: Node) -> Time:
        """Where an axis of the result runs over time, once or several times."""
        time, value = self.first(node)
        before, after = [self.size(d) for d in value.shape], [self.size(d) for d in node.output.shape]
        steps = self.size(self.length)
        place = prod(before[: time.axis]) * time.outer
        for axis, extent in enumerate(after):
            outer, rest = divmod(place, prod(after[:axis]))
            if rest == 0 and extent % (outer * steps) == 0 and outer:
                made = Time(axis, extent // (outer * steps), outer)
                return made if time.keys is None else self._keys(node, time, made, before, after)
        raise NotLocalError(node, "it mixes time with other axes")

    def _keys(self, node: Node, time: Time, made: Time, before: list[int], after: list[int]) -> Time:
        """Scores under other extents, of which the axes of steps and keys stay."""
        assert time.keys is not None
        place = prod(before[: time.keys])
        for axis, extent in enumerate(after):
            if prod(after[:axis]) == place and extent == before[time.keys] and made.is_plain:
                return replace(made, keys=axis)
        raise NotLocalError(node, "it mixes the keys of an attention with other axes")


_RULES: dict[str, Callable[[TimeAxes, Node], Time | None]] = {
    "elementwise": TimeAxes.elementwise,
    "reduction": TimeAxes.reduction,
    "dlc.quantize": TimeAxes.quantize,
    "dlc.dequantize": TimeAxes.quantize,
    "dlc.matmul": TimeAxes.matmul,
    "dlc.conv": TimeAxes.conv,
    "dlc.extents": TimeAxes.extents,
    "relax.strided_slice": TimeAxes.along,
    "relax.nn.softmax": TimeAxes.softmax,
    "relax.nn.log_softmax": TimeAxes.along,
    "relax.nn.layer_norm": TimeAxes.along,
    "relax.concat": TimeAxes.concat,
    "relax.permute_dims": TimeAxes.permute,
    "relax.broadcast_to": TimeAxes.broadcast,
    "relax.nn.pad": TimeAxes.pad,
    "relax.take": TimeAxes.take,
    "relax.reshape": TimeAxes.reshape,
}

# The rules that know of keys; the others are for values that run over time once.
_OF_SCORES = frozenset(
    {"elementwise", "reduction", "dlc.matmul", "relax.nn.softmax", "relax.permute_dims", "relax.broadcast_to",
     "relax.reshape", "relax.strided_slice"}
)  # fmt: skip
