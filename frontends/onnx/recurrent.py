"""LSTM, GRU and RNN as loops: the whole sequence's input projection as one product, then a `dlc.loop` over time.

The equations are those of the ONNX operators (LSTM: Hochreiter and Schmidhuber 1997, with peepholes of Gers and
Schmidhuber 2000; GRU: Cho et al. 2014). Shapes: time T, batch B, input width I, hidden width H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.frontends.onnx.activation import above, clipped_line, exponential, leaky, soft_positive, softsign
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.indexing import count_up, reversed_sequences
from dlc.frontends.onnx.linear import product
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import Block, ConversionError, Dim, Tensor
from dlc.ir.ops.host import LOOP

Activate = Callable[[Context, Tensor], Tensor]
# name -> (the default parameters, the function of context, x and those parameters)
_ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "relu": ((), lambda c, x: c.emit("nn.relu", x)),
    "tanh": ((), lambda c, x: c.emit("tanh", x)),
    "sigmoid": ((), lambda c, x: c.emit("sigmoid", x)),
    "affine": ((1.0, 0.0), lambda c, x, a, b: c.emit("add", c.emit("multiply", x, a), b)),
    "leakyrelu": ((0.01,), leaky),
    "thresholdedrelu": ((1.0,), above),
    "scaledtanh": ((1.0, 1.0), lambda c, x, a, b: c.emit("multiply", c.emit("tanh", c.emit("multiply", x, b)), a)),
    "hardsigmoid": ((0.2, 0.5), clipped_line),
    "elu": ((1.0,), exponential),
    "softsign": ((), softsign),
    "softplus": ((), soft_positive),
}


def _activations(c: Context, defaults: Sequence[str], directions: int) -> Iterator[list[Activate]]:
    """The activation functions of each direction; what goes into gates is clipped where the node says so.

    The cell's state, which goes into the last function of an LSTM, is not, as in onnxruntime.
    """
    names = [n.lower() for n in c.attr("activations") or list(defaults) * directions]
    if len(names) != len(defaults) * directions:
        raise ConversionError(f"{len(names)} activations, expected {len(defaults) * directions}")
    unknown = [n for n in names if n not in _ACTIVATIONS]
    if unknown:
        raise ConversionError(f"activation '{unknown[0]}' is not known")
    given = [list(c.attr("activation_alpha") or []), list(c.attr("activation_beta") or [])]
    limit = c.attr("clip")

    def one(name: str, clips: bool) -> Activate:
        fallback, function = _ACTIVATIONS[name]
        # Each list holds values only for the activations that take such a parameter, in their order.
        values = [given[i].pop(0) if given[i] else default for i, default in enumerate(fallback)]

        def activate(c: Context, x: Tensor) -> Tensor:
            if limit and clips:
                x = c.emit("minimum", c.emit("maximum", x, -float(limit)), float(limit))
            return function(c, x, *values)

        return activate

    chosen = [one(name, i % len(defaults) < 2) for i, name in enumerate(names)]
    for start in range(0, len(chosen), len(defaults)):
        yield chosen[start : start + len(defaults)]


@dataclass(frozen=True)
class Cell:
    """What one kind of layer computes in a step.

    Attributes:
        gates: how many blocks of H columns the weights have.
        states: how many states there are: h, and c for an LSTM.
        step: (context, projected input (B, gates * H), states, parameters) -> new states; the first is the output.
        splits_bias: whether the recurrent product has a bias of its own, which a gate then scales.
    """

    gates: int
    states: int
    step: Callable[[Context, Tensor, list[Tensor], Weights], list[Tensor]]
    splits_bias: bool = False


@dataclass(frozen=True)
class Weights:
    """The parameters of one direction.

    Attributes:
        input, recurrence: (I, gates * H) and (H, gates * H).
        input_bias, bias: of the two products, (gates * H), or None.
        peepholes: (3 * H), or None.
        functions: the activation functions.
        row_wise: whether no row of a batch depends on another one.
    """

    input: Tensor
    recurrence: Tensor
    input_bias: Tensor | None
    bias: Tensor | None
    peepholes: Tensor | None
    functions: list[Activate]
    row_wise: ClassVar[bool] = True

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.recurrence.shape[0])

    def gate(self, c: Context, x: Tensor, index: int, count: int = 1) -> Tensor:
        """Columns of `count` gates from `index` on."""
        return c.slice(x, x.rank - 1, index * self.hidden, (index + count) * self.hidden)

    def project(self, c: Context, x: Tensor) -> Tensor:
        """The product of all inputs (T * B, I), (T * B, gates * H)."""
        return product(c, x, self.input)

    def recur(self, c: Context, h: Tensor) -> Tensor:
        """The recurrent product, (B, gates * H)."""
        return product(c, h, self.recurrence)


def _plus(c: Context, a: Tensor, b: Tensor) -> Tensor:
    return c.emit("add", a, b)


def _times(c: Context, a: Tensor, b: Tensor) -> Tensor:
    return c.emit("multiply", a, b)


def _lstm_step(c: Context, x: Tensor, states: list[Tensor], w: Weights) -> list[Tensor]:
    h, cell = states
    f, g, out = w.functions
    total = _plus(c, x, w.recur(c, h))
    total = total if w.bias is None else _plus(c, total, w.bias)

    def gate(index: int, peephole: int, memory: Tensor) -> Tensor:
        value = w.gate(c, total, index)
        if w.peepholes is not None:
            value = _plus(c, value, _times(c, memory, w.gate(c, w.peepholes, peephole)))
        return f(c, value)

    i = gate(0, 0, cell)
    forget = c.emit("subtract", c.like(1, i), i) if c.attr("input_forget", 0) else gate(2, 2, cell)
    fresh = g(c, w.gate(c, total, 3))
    memory = _plus(c, _times(c, forget, cell), _times(c, i, fresh))
    return [_times(c, gate(1, 1, memory), out(c, memory)), memory]


def _gru_step(c: Context, x: Tensor, states: list[Tensor], w: Weights) -> list[Tensor]:
    (h,) = states
    f, g = w.functions
    before = c.attr("linear_before_reset", 0)
    recurrent = w.recur(c, h) if before else product(c, h, w.gate(c, w.recurrence, 0, 2))
    if w.bias is not None:
        recurrent = _plus(c, recurrent, w.bias if before else w.gate(c, w.bias, 0, 2))
    z = f(c, _plus(c, w.gate(c, x, 0), w.gate(c, recurrent, 0)))
    r = f(c, _plus(c, w.gate(c, x, 1), w.gate(c, recurrent, 1)))
    if before:
        inner = _times(c, r, w.gate(c, recurrent, 2))
    else:
        inner = product(c, _times(c, r, h), w.gate(c, w.recurrence, 2))
        inner = inner if w.bias is None else _plus(c, inner, w.gate(c, w.bias, 2))
    fresh = g(c, _plus(c, w.gate(c, x, 2), inner))
    return [_plus(c, _times(c, c.emit("subtract", c.like(1, z), z), fresh), _times(c, z, h))]


def _rnn_step(c: Context, x: Tensor, states: list[Tensor], w: Weights) -> list[Tensor]:
    (f,) = w.functions
    return [f(c, _plus(c, x, w.recur(c, states[0])))]


# --- a layer ---------------------------------------------------------------------------------------------------------


def at(c: Context, x: Tensor, direction: int) -> Tensor:
    """One direction of a parameter whose first dimension is the directions."""
    return c.reshape(c.slice(x, 0, direction, direction + 1), x.shape[1:])


@dataclass(frozen=True)
class _Layer:
    """One node: its cell, its input (T, B, I) and the length of each sequence, or None where all are T."""

    cell: Cell
    x: Tensor
    lengths: Tensor | None

    def direction(
        self, c: Context, weights: Weights, states: list[Tensor], backwards: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """(outputs (T, B, H), final states (B, H) each)."""
        steps, batch, width = self.x.shape
        x = self.x if self.lengths is None or weights.row_wise else self._used(c)
        projected = weights.project(c, c.reshape(x, (c.symbols.product([steps, batch]), width)))
        if weights.input_bias is not None:
            projected = _plus(c, projected, weights.input_bias)
        projected = c.reshape(projected, (steps, batch, projected.shape[-1]))
        if backwards:
            projected = self._turned(c, projected)
        inner = replace(c, calls=[])
        counter, going = Tensor((), "int64"), Tensor((), "bool")
        inside = [Tensor(s.shape, s.dtype) for s in states]
        now = Tensor(projected.shape[1:], projected.dtype)
        new, out = self._step(inner, counter, now, inside, weights)
        block = Block([counter, going, *inside, now], inner.calls, [c.constant(True), *new, out])
        captured = c.captured([block])
        block.take(captured)
        trips = c.reshape(c.extents([steps]), ())
        attrs = {"carried": len(states), "scanned": 1, "has_trips": True, "has_condition": False}
        types = [*inside, Tensor((steps, *out.shape), out.dtype)]
        *finals, outputs = c.results(LOOP, [trips, *states, projected, *captured], attrs, types, [block])
        if self.lengths is not None:  # onnxruntime gives a sequence of no steps no state either
            some = c.reshape(c.emit("greater", self.lengths, 0), (*self.lengths.shape, 1))
            finals = [c.emit("where", some, s, c.like(0, s)) for s in finals]
        return (self._turned(c, outputs) if backwards else outputs), finals

    def _step(
        self, c: Context, counter: Tensor, x: Tensor, old: list[Tensor], weights: Weights
    ) -> tuple[list[Tensor], Tensor]:
        """(new states, output): behind the end of its sequence a row keeps its states and gives zeros."""
        if self.lengths is None:
            new = self.cell.step(c, x, list(old), weights)
            return new, new[0]
        ends = c.reshape(c.cast(self.lengths, "int64"), (*self.lengths.shape, 1))
        seen = list(old)
        if not weights.row_wise:
            # What other rows meet of a row that has ended is its output: zeros from the second step behind its end on.
            seen[0] = c.emit("where", c.emit("less_equal", counter, ends), old[0], c.like(0, old[0]))
        new = self.cell.step(c, x, seen, weights)
        inside = c.emit("less", counter, ends)
        kept = [c.emit("where", inside, n, o) for n, o in zip(new, old, strict=True)]
        return kept, c.emit("where", inside, new[0], c.like(0, new[0]))

    def _turned(self, c: Context, x: Tensor) -> Tensor:
        """Every sequence in reverse; what is behind its end stays there."""
        return c.flip(x, 0) if self.lengths is None else reversed_sequences(c, x, self.lengths)

    def _used(self, c: Context) -> Tensor:
        """The input with zeros in the steps behind the longest sequence, which nothing may depend on."""
        assert self.lengths is not None
        x = self.x
        longest = c.cast(c.reduce("max", self.lengths, [0], keepdims=False), "int64")
        step = c.reshape(count_up(c, x.shape[0]), (x.shape[0], 1, 1))
        return c.emit("where", c.emit("less", step, longest), x, c.like(0, x))


def layer(
    c: Context, cell: Cell, defaults: Sequence[str], x: Tensor, parameters: Sequence[Weights],
    lengths: Tensor | None, initial: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Y (T, D, B, H) and the final states (D, B, H), or with attribute `layout` 1 the batch first.

    `parameters` are those of each direction, still without activation functions: the node and `defaults` name them.
    """
    kinds = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    name = c.attr("direction", "forward")
    if name not in kinds or len(kinds[name]) != len(parameters):
        raise ConversionError(f"direction '{name}' with weights of {len(parameters)} directions")
    batch_first = bool(c.attr("layout", 0))
    if batch_first:
        x = c.transpose(x, [1, 0, 2])
        initial = [None if s is None else c.transpose(s, [1, 0, 2]) for s in initial]
    outputs, finals = [], []
    functions = _activations(c, defaults, len(parameters))
    for number, (backwards, chosen) in enumerate(zip(kinds[name], functions, strict=True)):
        weights = replace(parameters[number], functions=chosen)
        zeros = c.broadcast(c.like(0, x), (x.shape[1], weights.hidden))
        states = [zeros if s is None else at(c, s, number) for s in initial]
        y, last = _Layer(cell, x, lengths).direction(c, weights, states, backwards)
        outputs.append(c.reshape(y, (x.shape[0], 1, x.shape[1], weights.hidden)))
        finals.append([c.reshape(s, (1, x.shape[1], weights.hidden)) for s in last])
    y = _joined(c, outputs, 1)
    ends = [_joined(c, list(parts), 0) for parts in zip(*finals, strict=True)]
    if batch_first:
        return (c.transpose(y, [2, 0, 1, 3]), *(c.transpose(s, [1, 0, 2]) for s in ends))
    return (y, *ends)


def _joined(c: Context, parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


def biases(c: Context, b: Tensor | None, cell: Cell) -> tuple[Tensor | None, Tensor | None]:
    """(that of the input product, that of the recurrent product) from both in a row; where they may be, one sum."""
    if b is None:
        return None, None
    width = b.shape[0] // 2
    first, second = c.slice(b, 0, 0, width), c.slice(b, 0, width, 2 * width)
    return (first, second) if cell.splits_bias else (_plus(c, first, second), None)


def _checked(
    c: Context, cell: Cell, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None,
    initial: Sequence[Tensor | None],
) -> int:  # fmt: skip
    """The width of the state; extents that a model leaves open become what the others ask for."""
    hidden = c.attr("hidden_size") or r.shape[-1]
    if not isinstance(hidden, int):
        raise ConversionError(f"attribute 'hidden_size' is missing, and the weights are {r}")
    ways = 2 if c.attr("direction", "forward") == "bidirectional" else 1
    batch = x.shape[0 if c.attr("layout", 0) else 1]
    state = (ways, batch, hidden) if not c.attr("layout", 0) else (batch, ways, hidden)
    expected: list[tuple[Tensor | None, tuple[Dim, ...]]] = [
        (w, (ways, cell.gates * hidden, x.shape[2])),
        (r, (ways, cell.gates * hidden, hidden)),
    ]
    expected += [(b, (ways, 2 * cell.gates * hidden)), (lengths, (batch,)), *((s, state) for s in initial)]
    for tensor, wanted in expected:
        for have, want in zip(tensor.shape if tensor is not None else (), wanted, strict=False):
            if not (isinstance(have, int) and isinstance(want, int)):
                c.equal(have, want, f"the extents of {tensor} and of what the other inputs ask for")
    return hidden


def _run(
    c: Context, cell: Cell, defaults: Sequence[str], x: Tensor, w: Tensor, r: Tensor, b: Tensor | None,
    lengths: Tensor | None, initial: Sequence[Tensor | None], peepholes: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """A layer of ONNX's form: weights (D, gates * H, I) and (D, gates * H, H)."""
    hidden = _checked(c, cell, x, w, r, b, lengths, initial)
    if w.shape[1] != cell.gates * hidden:
        raise ConversionError(f"weights of {w.shape[1]} rows, expected {cell.gates} gates of {hidden}")
    parameters = [
        Weights(
            c.transpose(at(c, w, number), [1, 0]), c.transpose(at(c, r, number), [1, 0]),
            *biases(c, None if b is None else at(c, b, number), cell),
            None if peepholes is None else at(c, peepholes, number), [],
        )
        for number in range(int(w.shape[0]))
    ]  # fmt: skip
    return layer(c, cell, defaults, x, parameters, lengths, initial)


LSTM = Cell(4, 2, _lstm_step)
LSTM_FUNCTIONS = ("Sigmoid", "Tanh", "Tanh")
_GRU = Cell(3, 1, _gru_step, splits_bias=True)
_RNN = Cell(1, 1, _rnn_step)


@converter("LSTM", since=7)
def lstm(
    c: Context, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, cell: Tensor | None = None, peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gates in the order input, output, forget, cell."""
    return _run(c, LSTM, LSTM_FUNCTIONS, x, w, r, b, lengths, [h, cell], peepholes)


@converter("GRU", since=7)
def gru(
    c: Context, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gates in the order update, reset, hidden."""
    return _run(c, _GRU, ("Sigmoid", "Tanh"), x, w, r, b, lengths, [h], None)


@converter("RNN", since=7)
def rnn(
    c: Context, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One gate."""
    return _run(c, _RNN, ("Tanh",), x, w, r, b, lengths, [h], None)
