"""LSTM, GRU and RNN as loops: the whole sequence's input projection as one product, then a `dlc.loop` over time.

The equations are those of the ONNX operators (LSTM: Hochreiter and Schmidhuber 1997, with peepholes of Gers and
Schmidhuber 2000; GRU: Cho et al. 2014). Shapes: time T, batch B, input width I, hidden width H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dlc.frontends.onnx.activation import _elu, _hard_sigmoid, _softplus
from dlc.frontends.onnx.context import Context
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
    "leakyrelu": ((0.01,), lambda c, x, a: c.emit("where", c.emit("less", x, 0), c.emit("multiply", x, a), x)),
    "thresholdedrelu": ((1.0,), lambda c, x, a: c.emit("where", c.emit("greater", x, a), x, c.like(0, x))),
    "scaledtanh": ((1.0, 1.0), lambda c, x, a, b: c.emit("multiply", c.emit("tanh", c.emit("multiply", x, b)), a)),
    "hardsigmoid": ((0.2, 0.5), _hard_sigmoid),
    "elu": ((1.0,), _elu),
    "softsign": ((), lambda c, x: c.emit("divide", x, c.emit("add", c.emit("abs", x), 1))),
    "softplus": ((), _softplus),
}


def _activations(c: Context, defaults: Sequence[str], directions: int) -> Iterator[list[Activate]]:
    """The activation functions of each direction, clipped where the node says so."""
    names = [n.lower() for n in c.attr("activations") or list(defaults) * directions]
    if len(names) != len(defaults) * directions:
        raise ConversionError(f"{len(names)} activations, expected {len(defaults) * directions}")
    unknown = [n for n in names if n not in _ACTIVATIONS]
    if unknown:
        raise ConversionError(f"activation '{unknown[0]}' is not known")
    given = [list(c.attr("activation_alpha") or []), list(c.attr("activation_beta") or [])]
    limit = c.attr("clip")

    def one(name: str) -> Activate:
        fallback, function = _ACTIVATIONS[name]
        # Each list holds values only for the activations that take such a parameter, in their order.
        values = [given[i].pop(0) if given[i] else default for i, default in enumerate(fallback)]

        def activate(c: Context, x: Tensor) -> Tensor:
            if limit:
                x = c.emit("minimum", c.emit("maximum", x, -float(limit)), float(limit))
            return function(c, x, *values)

        return activate

    chosen = [one(name) for name in names]
    for start in range(0, len(chosen), len(defaults)):
        yield chosen[start : start + len(defaults)]


@dataclass(frozen=True)
class _Cell:
    """One direction of a layer.

    Attributes:
        gates: how many blocks of H rows the weights have.
        states: how many states there are: h, and c for an LSTM.
        step: (context, projected input (B, gates * H), states, parameters) -> new states; the first is the output.
    """

    gates: int
    states: int
    step: Callable[[Context, Tensor, list[Tensor], _Weights], list[Tensor]]


@dataclass(frozen=True)
class _Weights:
    """One direction: recurrence (H, gates * H), its own bias (gates * H) or None, peepholes, activation functions."""

    recurrence: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    functions: list[Activate]
    hidden: int

    def gate(self, c: Context, x: Tensor, index: int, count: int = 1) -> Tensor:
        """Columns of `count` gates from `index` on."""
        return c.slice(x, x.rank - 1, index * self.hidden, (index + count) * self.hidden)

    def recur(self, c: Context, h: Tensor) -> Tensor:
        """The recurrent product, (B, gates * H)."""
        return product(c, h, self.recurrence)


def _plus(c: Context, a: Tensor, b: Tensor) -> Tensor:
    return c.emit("add", a, b)


def _times(c: Context, a: Tensor, b: Tensor) -> Tensor:
    return c.emit("multiply", a, b)


def _lstm_step(c: Context, x: Tensor, states: list[Tensor], w: _Weights) -> list[Tensor]:
    h, cell = states
    f, g, out = w.functions
    total = _plus(c, x, w.recur(c, h))

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


def _gru_step(c: Context, x: Tensor, states: list[Tensor], w: _Weights) -> list[Tensor]:
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


def _rnn_step(c: Context, x: Tensor, states: list[Tensor], w: _Weights) -> list[Tensor]:
    (f,) = w.functions
    return [f(c, _plus(c, x, w.recur(c, states[0])))]


# --- a layer ---------------------------------------------------------------------------------------------------------


def _at(c: Context, x: Tensor | None, direction: int) -> Tensor | None:
    """One direction of a parameter whose first dimension is the directions."""
    if x is None:
        return None
    return c.reshape(c.slice(x, 0, direction, direction + 1), x.shape[1:])


def _needed(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@dataclass(frozen=True)
class _Layer:
    """One node: its cell, its input (T, B, I) and the length of each sequence, or None where all are T."""

    cell: _Cell
    x: Tensor
    lengths: Tensor | None

    def direction(
        self, c: Context, w: Tensor, bias: Tensor | None, weights: _Weights, states: list[Tensor], backwards: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """(outputs (T, B, H), final states (B, H) each)."""
        steps, batch, width = self.x.shape
        flat = c.reshape(self.x, (c.symbols.product([steps, batch]), width))
        projected = product(c, flat, c.transpose(w, [1, 0]))
        projected = projected if bias is None else _plus(c, projected, bias)
        projected = c.reshape(projected, (steps, batch, w.shape[0]))
        if backwards:
            projected = _flipped(c, projected)
        inner = replace(c, calls=[])
        counter, going = Tensor((), "int64"), Tensor((), "bool")
        inside = [Tensor(s.shape, s.dtype) for s in states]
        now = Tensor(projected.shape[1:], projected.dtype)
        new = self.cell.step(inner, now, list(inside), weights)
        out = new[0]
        if self.lengths is not None:
            new, out = self._masked(inner, counter, steps, inside, new, backwards)
        block = Block([counter, going, *inside, now], inner.calls, [c.constant(True), *new, out])
        captured = c.captured([block])
        block.take(captured)
        trips = c.reshape(c.extents([steps]), ())
        attrs = {"carried": len(states), "scanned": 1, "has_trips": True, "has_condition": False}
        types = [*inside, Tensor((steps, *out.shape), out.dtype)]
        *finals, outputs = c.results(LOOP, [trips, *states, projected, *captured], attrs, types, [block])
        return (_flipped(c, outputs) if backwards else outputs), finals

    def _masked(
        self, c: Context, counter: Tensor, steps: Dim, old: list[Tensor], new: list[Tensor], backwards: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Behind the end of its sequence a row keeps its states and gives zeros."""
        assert self.lengths is not None
        time = counter
        if backwards:
            last = c.reshape(c.extents([c.symbols.simplify(steps - 1)]), ())
            time = c.emit("subtract", last, counter)
        inside = c.emit("less", time, c.cast(self.lengths, "int64"))
        inside = c.reshape(inside, (*self.lengths.shape, 1))
        kept = [c.emit("where", inside, n, o) for n, o in zip(new, old, strict=True)]
        return kept, c.emit("where", inside, new[0], c.like(0, new[0]))


def _flipped(c: Context, x: Tensor) -> Tensor:
    return c.emit("strided_slice", x, axes=(0,), begin=(x.shape[0] - 1,), end=(-1,), strides=(-1,))


def _run(
    c: Context, cell: _Cell, defaults: Sequence[str], x: Tensor, w: Tensor, r: Tensor, b: Tensor | None,
    lengths: Tensor | None, initial: Sequence[Tensor | None], peepholes: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Y (T, D, B, H) and the final states (D, B, H), or with `layout` 1 the batch first."""
    kinds = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    name = c.attr("direction", "forward")
    if name not in kinds or (isinstance(w.shape[0], int) and len(kinds[name]) != w.shape[0]):
        raise ConversionError(f"direction '{name}' with weights of {w.shape[0]} directions")
    hidden = _checked(c, cell, len(kinds[name]), x, w, r, b, lengths, initial)
    if w.shape[1] != cell.gates * hidden:
        raise ConversionError(f"weights of {w.shape[1]} rows, expected {cell.gates} gates of {hidden}")
    batch_first = bool(c.attr("layout", 0))
    if batch_first:
        x = c.transpose(x, [1, 0, 2])
        initial = [None if s is None else c.transpose(s, [1, 0, 2]) for s in initial]
    layer = _Layer(cell, x, lengths)
    outputs, finals = [], []
    functions = _activations(c, defaults, len(kinds[name]))
    for number, (backwards, chosen) in enumerate(zip(kinds[name], functions, strict=True)):
        input_bias, recurrent_bias = _biases(c, _at(c, b, number), cell, hidden)
        weights = _Weights(
            c.transpose(_needed(_at(c, r, number)), [1, 0]), recurrent_bias, _at(c, peepholes, number), chosen, hidden
        )
        zeros = c.broadcast(c.like(0, x), (x.shape[1], hidden))
        states = [zeros if s is None else _needed(_at(c, s, number)) for s in initial]
        y, last = layer.direction(c, _needed(_at(c, w, number)), input_bias, weights, states, backwards)
        outputs.append(c.reshape(y, (x.shape[0], 1, x.shape[1], hidden)))
        finals.append([c.reshape(s, (1, x.shape[1], hidden)) for s in last])
    y = _joined(c, outputs, 1)
    ends = [_joined(c, list(parts), 0) for parts in zip(*finals, strict=True)]
    if batch_first:
        return (c.transpose(y, [2, 0, 1, 3]), *(c.transpose(s, [1, 0, 2]) for s in ends))
    return (y, *ends)


def _checked(
    c: Context, cell: _Cell, ways: int, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None,
    initial: Sequence[Tensor | None],
) -> int:  # fmt: skip
    """The width of the state; extents that a model leaves open become what the others ask for."""
    hidden = c.attr("hidden_size") or r.shape[-1]
    if not isinstance(hidden, int):
        raise ConversionError(f"attribute 'hidden_size' is missing, and the weights are {r}")
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


def _joined(c: Context, parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


def _biases(c: Context, b: Tensor | None, cell: _Cell, hidden: int) -> tuple[Tensor | None, Tensor | None]:
    """(what is added to the projected input, what a GRU adds to the recurrent product)."""
    if b is None:
        return None, None
    width = cell.gates * hidden
    first, second = c.slice(b, 0, 0, width), c.slice(b, 0, width, 2 * width)
    return (first, second) if cell is _GRU else (_plus(c, first, second), None)


_LSTM = _Cell(4, 2, _lstm_step)
_GRU = _Cell(3, 1, _gru_step)
_RNN = _Cell(1, 1, _rnn_step)


@converter("LSTM", since=7)
def lstm(
    c: Context, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, cell: Tensor | None = None, peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gates in the order input, output, forget, cell."""
    return _run(c, _LSTM, ("Sigmoid", "Tanh", "Tanh"), x, w, r, b, lengths, [h, cell], peepholes)


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
