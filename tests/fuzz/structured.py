"""Random nodes with a structure of their own: recurrent layers, control flow, quantised fragments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.fuzz.graph import Graph, RejectedError, Value

Grow = Callable[[Graph, int], None]


# --- recurrent layers ------------------------------------------------------------------------------------------------

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(g: Graph, grow: Grow) -> None:
    """An LSTM, GRU or RNN with random optional inputs, over one direction or two."""
    try:
        x = g.pick(lambda v: v.rank == 3 and v.dtype == "float32" and v.array.size > 0 and max(v.shape) < 20)
    except RejectedError:
        x = g.input(g.random("float32", (g.between(1, 5), g.between(1, 3), g.between(1, 6))))
    kind = g.one_of(list(_GATES))
    gates, hidden = _GATES[kind], g.between(1, 6)
    direction = g.one_of([None, "forward", "reverse", "bidirectional"])
    ways = 2 if direction == "bidirectional" else 1
    steps, batch, width = x.shape
    weights: list[Value | None] = [
        g.weight("float32", (ways, gates * hidden, width)), g.weight("float32", (ways, gates * hidden, hidden)),
    ]  # fmt: skip
    weights.append(g.weight("float32", (ways, 2 * gates * hidden)) if g.chance(0.6) else None)
    lengths = g.rng.integers(1, steps + 1, batch)
    weights.append(g.param(lengths, "int32") if g.chance(0.2) else None)
    weights.append(g.operand("float32", (ways, batch, hidden)) if g.chance(0.4) else None)
    attrs = {"hidden_size": hidden, "direction": direction}
    if kind == "LSTM":
        weights.append(g.operand("float32", (ways, batch, hidden)) if g.chance(0.4) else None)
        weights.append(g.weight("float32", (ways, 3 * hidden)) if g.chance(0.3) else None)
    if kind == "GRU":
        attrs["linear_before_reset"] = g.one_of([None, 0, 1])
    if g.chance(0.2):
        attrs["clip"] = 1.5
    if kind == "RNN" and g.chance(0.4):
        attrs["activations"] = [g.one_of(["Relu", "Sigmoid", "Tanh"])] * ways
    while weights[-1] is None:
        weights.pop()
    # onnxruntime's gates make numbers of what is not finite, because they are clamped.
    if not all(np.isfinite(v.array).all() for v in (x, *weights) if v is not None):
        raise RejectedError
    g.add(kind, [x, *weights], g.between(1, 3 if kind == "LSTM" else 2), **attrs)


# --- control flow ----------------------------------------------------------------------------------------------------


def _grown(g: Graph, params: list[Value], grow: Grow, least: int = 1) -> Graph:
    """A subgraph with a few random nodes in it; what it adds for nodes that fail stays out of sight."""
    body = g.sub(params)
    grow(body, g.between(least, 3))
    return body


def _scalar_bool(g: Graph, held: bool) -> Value:
    array = np.asarray(held)
    return g.input(array, fixed=True) if g.chance(0.6) else g.constant(array)


def branch(g: Graph, grow: Grow) -> None:
    """If: the second branch gives values of the types that the first gives."""
    taken = _grown(g, [], grow)
    made = [v for v in taken.values if not v.constant]
    outputs = made[-g.between(1, 2) :]
    if not outputs:
        raise RejectedError
    other = g.sub()
    others = []
    for value in outputs:
        near = other.constant(other.random(value.dtype, value.shape))
        if g.chance(0.5) and value.dtype != "bool":
            near = other.add("Abs", [near])[0]
        others.append(other.add("Identity", [near])[0])
    branches = [taken.proto(outputs, "first"), other.proto(others, "second")]
    first = g.chance(0.5)
    condition = _scalar_bool(g, first if g.chance(0.5) else not first)
    g.add(
        "If",
        [condition],
        len(outputs),
        then_branch=branches[0 if first else 1],
        else_branch=branches[1 if first else 0],
    )


def loop(g: Graph, grow: Grow) -> None:
    """Loop with one carried value, one stacked result, and what the body captures."""
    state = g.pick(lambda v: v.dtype in ("float32", "int64") and v.array.size < 300)
    start = Value(g.name("state"), state.array)
    at, going = Value(g.name("at"), np.asarray(0)), Value(g.name("going"), np.asarray(True))
    for value in (start, at, going):
        g.held[value.name] = value
    body = _grown(g, [start], grow)
    body.inputs = {v.name: v for v in (at, going, start)}
    same = [v for v in body.values if v.dtype == start.dtype and v.shape == start.shape and v is not start]
    after = same[-1] if same else body.add(g.one_of(["Neg", "Identity", "Abs"]), [start])[0]
    made = [v for v in body.values if v is not start and v is not after and v.array.size < 500]
    stacked = [g.one_of(made)] if made and g.chance(0.6) else []
    after, *stacked = (body.add("Identity", [v])[0] for v in (after, *stacked))
    if g.chance(0.3):
        more = body.add("Less", [at, body.constant(g.between(0, 3), "int64")])[0]
    else:
        more = body.add("Identity", [going])[0]
    trips = g.param(g.between(0 if g.chance(0.2) else 1, 4))
    condition = _scalar_bool(g, True) if g.chance(0.6) else None
    g.add("Loop", [trips, condition, state], 1 + len(stacked), body=body.proto([more, after, *stacked]))


def scan(g: Graph, grow: Grow) -> None:
    """Scan over the first or last axis of a value, with one state and one result."""
    x = g.pick(lambda v: v.dtype == "float32" and v.rank >= 1 and 0 < v.array.size < 600)
    axis = 0 if g.chance(0.7) else x.rank - 1
    piece = Value(g.name("piece"), np.ascontiguousarray(np.take(x.array, 0, axis)))
    total = Value(g.name("total"), np.zeros_like(piece.array))
    for value in (piece, total):
        g.held[value.name] = value
    body = _grown(g, [total, piece], grow, 0)
    after = body.add("Add", [total, piece])[0]
    made = [v for v in body.values if v not in (piece, total, after) and v.array.size < 500]
    result = body.add("Identity", [g.one_of(made) if made and g.chance(0.7) else after])[0]
    start = g.constant(total.array) if g.chance(0.5) else g.input(total.array)
    attrs = {"scan_input_axes": [axis] if axis else None, "scan_input_directions": g.one_of([None, [1]])}
    attrs["scan_output_directions"] = g.one_of([None, [1]])
    g.add("Scan", [start, x], 2, body=body.proto([after, result]), num_scan_inputs=1, **attrs)


# --- quantised fragments ---------------------------------------------------------------------------------------------


def _quantised(g: Graph, x: Value, dtype: str = "") -> Value:
    """`x` through QuantizeLinear and DequantizeLinear."""
    dtype = dtype or g.one_of(["uint8", "uint8", "int8"])
    finite = np.abs(x.array[np.isfinite(x.array)])
    scale = g.constant(float(finite.max(initial=0.1)) / g.between(90, 140), "float32")
    zero = g.constant(g.between(100, 140) if dtype == "uint8" else g.between(-9, 9), dtype)
    codes = g.add("QuantizeLinear", [x, scale, zero])[0]
    return g.add("DequantizeLinear", [codes, scale, zero])[0]


def _codes(g: Graph, shape: tuple[int, ...], axis: int) -> Value:
    """An int8 weight through DequantizeLinear, per tensor or per channel."""
    codes = g.constant(g.rng.integers(-127, 128, shape), "int8")
    channelled = g.opset >= 13 and g.chance(0.5)
    scale = g.rng.uniform(0.002, 0.02, shape[axis] if channelled else ())
    zero = np.zeros(scale.shape if channelled else (), np.int8)
    inputs = [codes, g.constant(scale, "float32"), g.constant(zero)]
    return g.add("DequantizeLinear", inputs, axis=axis if channelled else None)[0]


def qdq(g: Graph, grow: Grow) -> None:
    """A matmul, convolution, addition or pool between quantised values."""
    kind = g.one_of(["matmul", "conv", "conv", "add", "pool", "plain"])
    if kind == "conv":
        x = g.pick(lambda v: v.rank == 4 and v.dtype == "float32" and v.array.size > 0 and np.isfinite(v.array).all())
        inner = _quantised(g, x)
        w = _codes(g, (g.between(1, 6), x.shape[1], *(min(3, e) for e in x.shape[2:])), 0)
        made = g.add("Conv", [inner, w], pads=g.one_of([None, [1, 1, 1, 1]]))[0]
    elif kind == "matmul":
        x = g.pick(lambda v: v.rank >= 2 and v.dtype == "float32" and v.array.size > 0 and np.isfinite(v.array).all())
        made = g.add("MatMul", [_quantised(g, x), _codes(g, (x.shape[-1], g.extent()), 1)])[0]
    else:
        x = g.pick(lambda v: v.dtype == "float32" and v.array.size > 0 and np.isfinite(v.array).all())
        made = _quantised(g, x)
        if kind == "add":
            other = _quantised(g, g.operand("float32", x.shape))
            made = g.add(g.one_of(["Add", "Mul", "Sub"]), [made, other])[0]
        elif kind == "pool":
            made = g.add(g.one_of(["MaxPool", "AveragePool"]), [made], kernel_shape=[1] * (x.rank - 3) + [2])[0]
    if g.chance(0.4):
        made = g.add("Relu", [made])[0]
    if g.chance(0.8):
        _quantised(g, made)


def integer_layers(g: Graph, grow: Grow) -> None:
    """MatMulInteger, QLinearMatMul, DynamicQuantizeLinear."""
    if g.chance(0.3):
        x = g.pick(lambda v: v.dtype == "float32" and v.array.size > 0)
        g.add("DynamicQuantizeLinear", [x], 3)
        return
    rows, inner, columns = g.extent(), g.extent(), g.extent()
    a = g.input(g.rng.integers(0, 256, (rows, inner)).astype(np.uint8))
    b = g.constant(g.rng.integers(-64, 65, (inner, columns)), "int8")  # onnxruntime's int16 sums of pairs
    az, bz = g.constant(g.between(0, 255), "uint8"), g.constant(0, "int8")
    if g.chance(0.5):
        g.add("MatMulInteger", [a, b, *([az, bz][: g.between(0, 2)])])
        return
    scales = [g.constant(s, "float32") for s in (0.02, 0.01, 0.03)]
    g.add("QLinearMatMul", [a, scales[0], az, b, scales[1], bz, scales[2], g.constant(g.between(100, 150), "uint8")])


GENERATORS = {recurrent: 2, branch: 2, loop: 2, scan: 1, qdq: 4, integer_layers: 1}
