"""Random elementwise nodes: unary, binary with broadcasting, choices, casts, clips."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.fuzz.graph import FLOATS, INTS, Graph, RejectedError, Value

_UNARY = [
    "Abs",
    "Neg",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Sqrt",
    "Floor",
    "Ceil",
    "Round",
    "Erf",
    "Sin",
    "Cos",
    "Softplus",
    "Softsign",
    "Sign",
    "Identity",
    "HardSwish",
    "Reciprocal",
    "Log",
    "Atan",
    "Sinh",
    "Asinh",
    "Mish",
    "Tan",
    "Asin",
    "Acos",
    "Acosh",
    "Atanh",
    "Cosh",
    "IsNaN",
]
_WITH_ALPHA = {"LeakyRelu": (-0.5, 1.5), "Elu": (0.1, 2.0), "Celu": (0.2, 2.0), "ThresholdedRelu": (-0.5, 1.5)}
_ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Add", "Mul", "Sub", "Max", "Min", "Pow", "Mod"]
_COMPARE = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]


def unary(g: Graph) -> None:
    """One of many functions of one value."""
    x = g.pick(lambda v: v.dtype in FLOATS or v.dtype in INTS)
    op = g.one_of(_UNARY if x.dtype in FLOATS else ["Abs", "Neg", "Sign", "Identity", "Relu"])
    if op == "HardSwish" and x.dtype == "float64":  # onnx.reference rounds its factor to float32
        raise RejectedError
    g.add(op, [x])


def activation(g: Graph) -> None:
    """An activation with parameters."""
    x = g.floats()
    kind = g.one_of([*_WITH_ALPHA, "Selu", "HardSigmoid", "Gelu", "Shrink", "PRelu", "Swish"])
    if kind in ("Shrink", "Gelu") and x.dtype == "float64":  # onnxruntime computes them in float32
        raise RejectedError
    if kind in _WITH_ALPHA:
        low, high = _WITH_ALPHA[kind]
        g.add(kind, [x], alpha=float(g.rng.uniform(low, high)) if g.chance(0.7) else None)
    elif kind == "HardSigmoid":
        g.add(kind, [x], alpha=g.one_of([None, 0.1, 0.5]), beta=g.one_of([None, 0.3, 0.0]))
    elif kind == "Gelu":
        g.add(kind, [x], approximate=g.one_of([None, "none", "tanh"]))
    elif kind == "Shrink":
        g.add(kind, [x], lambd=g.one_of([None, 0.2, 1.0]), bias=g.one_of([None, 0.5]))
    elif kind == "PRelu":
        g.add(kind, [x, g.weight(x.dtype, _narrowed(g, x.shape))])
    else:
        g.add(kind, [x])


def _narrowed(g: Graph, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`."""
    kept = tuple(1 if g.chance(0.3) else e for e in shape)
    return kept[g.between(0, len(kept)) :] if g.chance(0.4) else kept


def _partner(g: Graph, x: Value) -> Value:
    """A value that broadcasts with `x`, either way round."""
    if g.chance(0.4):
        fitting = [v for v in g.seen() if v.dtype == x.dtype and v is not x and _broadcasts(v.shape, x.shape)]
        if fitting:
            return g.recent(fitting)
    shape = _narrowed(g, x.shape)
    if g.chance(0.15):  # the partner is the larger one
        shape = tuple(g.extent() if e == 1 and g.chance(0.5) else e for e in shape)
        shape = (g.between(1, 4), *shape) if g.chance(0.3) and len(shape) == x.rank < 5 else shape
    return g.operand(x.dtype, shape)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(i == j or 1 in (i, j) for i, j in zip(a[::-1], b[::-1], strict=False))


def binary(g: Graph) -> None:
    """Arithmetic or a comparison of two values, with broadcasting."""
    x = g.pick(lambda v: v.dtype != "bool")
    op = g.one_of(_ARITHMETIC if g.chance(0.75) else _COMPARE)
    y = _partner(g, x)
    inputs = [x, y] if g.chance(0.6) else [y, x]
    attrs = {}
    if op == "Mod":
        attrs["fmod"] = 1 if x.dtype in FLOATS or g.chance(0.3) else 0
    if x.dtype in INTS and op in ("Div", "Mod", "Pow"):
        small = g.rng.integers(1, 4, y.shape).astype(x.dtype)
        inputs = [x, g.constant(small) if g.chance(0.7) else g.input(small)]
        if op != "Pow" and x.dtype.startswith("int") and g.chance(0.3):
            inputs = [x, g.constant(-small)]
        if op == "Pow" and (np.abs(x.array.astype(np.float64)) ** 3 > np.iinfo(x.dtype).max).any():
            raise RejectedError  # onnxruntime goes through float64: what overflows is open
    if op == "Pow" and x.dtype in FLOATS:
        inputs = [x, g.constant(np.asarray(g.one_of([2.0, 3.0, 0.5, -1.0, 1.5, 0.0]), x.dtype))]
        if g.chance(0.3):
            inputs = [g.add("Abs", [x])[0], y]
    if op in ("Max", "Min") and g.opset < 8 and x.shape != y.shape:  # before it, they do not broadcast
        raise RejectedError
    if op in ("Max", "Min") and g.opset >= 8 and g.chance(0.3):
        inputs.append(_partner(g, x))
    g.add(op, inputs, **attrs)


def variadic(g: Graph) -> None:
    """Sum or Mean of one to four values."""
    x = g.floats()
    inputs = [x, *(_partner(g, x) for _ in range(g.between(0, 3)))]
    if g.opset < 8 and any(v.shape != x.shape for v in inputs):  # before it, they do not broadcast
        raise RejectedError
    g.add(g.one_of(["Sum", "Mean", "Max", "Min"]), inputs)


def logic(g: Graph) -> None:
    """Boolean and bitwise operators."""
    if g.chance(0.6):
        x = g.pick(lambda v: v.dtype == "bool")
        op = g.one_of(["And", "Or", "Xor", "Not", "Equal"])
        g.add(op, [x] if op == "Not" else [x, _partner(g, x)])
        return
    x = g.pick(lambda v: v.dtype in INTS)
    op = g.one_of(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"])
    if op == "BitShift":
        shift = g.constant(g.rng.integers(0, 5, _narrowed(g, x.shape)).astype(x.dtype))
        g.add(op, [x, shift], direction=g.one_of(["LEFT", "RIGHT"]))
    else:
        g.add(op, [x] if op == "BitwiseNot" else [x, _partner(g, x)])


def where(g: Graph) -> None:
    """Where, with broadcasting among the three."""
    x = g.pick()
    try:
        condition = g.pick(lambda v: v.dtype == "bool" and _broadcasts(v.shape, x.shape))
    except RejectedError:
        condition = g.operand("bool", _narrowed(g, x.shape))
    inputs = [x, _partner(g, x)]
    g.add("Where", [condition, *(inputs if g.chance(0.5) else inputs[::-1])])


def cast(g: Graph) -> None:
    """A cast; floats outside the integer type's range stay floats, for what they become is not defined."""
    x = g.pick()
    to = g.one_of([*FLOATS, *FLOATS, *INTS, "bool", "bool"])
    if x.dtype in FLOATS and to in INTS:
        limits = np.iinfo(to)
        if not x.array.size or not np.isfinite(x.array).all():
            raise RejectedError
        if float(x.array.min()) <= max(limits.min, -1e9) or float(x.array.max()) >= min(limits.max, 1e9):
            x = g.add("Clip", [x, g.constant(0, x.dtype), g.constant(100, x.dtype)])[0]
    g.add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def clip(g: Graph) -> None:
    """Clip in both of its forms, with one bound, both or none."""
    x = g.pick(lambda v: v.dtype in FLOATS or (v.dtype in INTS and g.opset >= 12))
    if not np.isfinite(x.array).all():  # onnxruntime bounds an open side by the largest finite number
        raise RejectedError
    low, high = -g.between(0, 2), g.between(0, 6)
    low = max(low, 0) if x.dtype.startswith("uint") else low
    if g.opset < 11:
        g.add("Clip", [x], min=g.one_of([None, float(low)]), max=g.one_of([None, float(high)]))
        return
    bounds = [g.param(low, x.dtype) if g.chance(0.8) else None, g.param(high, x.dtype) if g.chance(0.8) else None]
    g.add("Clip", [x, *bounds])


GENERATORS = {unary: 9, activation: 4, binary: 14, variadic: 2, logic: 3, where: 3, cast: 5, clip: 2}
