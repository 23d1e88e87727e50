"""What each elementwise operator is on vectors: one small function per operator, in the table `EMIT`.

A function takes (`Call`, arguments) and returns a vector of the output's compute type; arguments have the compute types
of the inputs and as many lanes each. Integers wrap around; integer division is towards zero and gives zero for a zero
divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vecmath
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, hold, splat, stack, store, unfused_add
from dlc.targets.cpu.kernels.storage import compute_dtype, odd_float32, round_trip


@dataclass(frozen=True)
class Call:
    """The node being emitted: attributes, dtypes of inputs and output, instruction set, scalar constants or None."""

    attrs: Mapping[str, Any]
    dtypes: tuple[str, ...]
    out: str
    isa: Isa
    scalars: tuple[float | int | None, ...]


Emit = Callable[[Call, Sequence[Expr]], Expr]
EMIT: dict[str, Emit] = {}


def _register(*names: str) -> Callable[[Emit], Emit]:
    def add(function: Emit) -> Emit:
        for name in names:
            EMIT[name] = function
        return function

    return add


def _unsigned(value: Expr) -> Expr:
    """Signed integers as unsigned ones of the same bits: LLVM treats signed overflow as impossible."""
    kind = v.element(value)
    return v.reinterpret(value, f"u{kind}") if v.is_signed(kind) else value


class _Modular:
    """An integer whose +, - and * wrap around.

    TVM declares overflow of 32-bit and wider arithmetic impossible, of signed and of unsigned integers, and LLVM draws
    conclusions from it (it dropped a relu behind an unsigned difference). The vector-predicated intrinsics carry no
    such claim and become the plain instruction.
    """

    def __init__(self, value: Expr) -> None:
        self.value = value

    def _apply(self, operation: str, other: _Modular | Expr) -> _Modular:
        a, b = self.value, other.value if isinstance(other, _Modular) else other
        if v.width(v.element(a)) < 32:
            return _Modular({"add": a + b, "sub": a - b, "mul": a * b}[operation])
        lanes = v.lanes_of(a)
        if lanes == 1:  # the intrinsics are for vectors; LLVM takes the one lane out again
            pair = stack(v.element(a), 2)
            store(pair, 0, _modular(operation, splat(a, 2), splat(b, 2)), 2)
            return _Modular(hold(pair[0]))
        return _Modular(_modular(operation, a, b))

    def __add__(self, other: _Modular | Expr) -> _Modular:
        return self._apply("add", other)

    def __sub__(self, other: _Modular | Expr) -> _Modular:
        return self._apply("sub", other)

    def __mul__(self, other: _Modular | Expr) -> _Modular:
        return self._apply("mul", other)


def _modular(operation: str, a: Expr, b: Expr) -> Expr:
    lanes = v.lanes_of(a)
    return v.intrinsic(f"llvm.vp.{operation}", a, b, T.broadcast(T.bool(True), lanes), T.uint32(lanes))


def wrapping(operation: Callable[..., _Modular], *args: Expr) -> Expr:
    """`operation` (of +, - and *) on integers modulo 2**bits."""
    return operation(*(_Modular(a) for a in args)).value


def opposite(value: Expr) -> Expr:
    """Minus an integer, wrapping."""
    return wrapping(lambda zero, x: zero - x, v.like(0, value), value)


def _is_zero(value: Expr) -> Expr:
    return v.equal(value, v.like(0, value))


# --- Arithmetic -------------------------------------------------------------------------------------------------------


@_register("relax.add")
def _add(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = args
    if call.out == "bool":
        return v.either(a, b)
    return unfused_add(a, b) if v.is_float(v.element(a)) else wrapping(lambda x, y: x + y, a, b)


@_register("relax.subtract")
def _subtract(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = args
    if v.is_float(v.element(a)):
        return v.fence(a) - v.fence(hold(b))  # held: the simplifier takes x - x for zero, which infinity is not
    return wrapping(lambda x, y: x - y, a, b)


@_register("relax.multiply")
def _multiply(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = args
    if call.out == "bool":
        return v.both(a, b)
    if not v.is_float(v.element(a)):
        return wrapping(lambda x, y: x * y, a, b)
    # The simplifier takes 0 * x for zero, also of infinity and NaN.
    a, b = (v.fence(x) if scalar == 0 else x for x, scalar in zip(args, call.scalars, strict=True))
    return a * b


def _quotient(a: Expr, b: Expr) -> Expr:
    """Integer division towards zero; zero for a zero divisor; the least value divided by -1 wraps."""
    kind = v.element(a)
    bad = hold(_is_zero(b))
    if v.width(kind) <= 32:
        # Exact: the quotient of two 32-bit integers never rounds up to an integer in float64.
        safe = v.convert(v.select(bad, v.like(1, b), b), "float64")
        wide = v.convert(v.convert(a, "float64") / safe, "int64" if v.width(kind) == 32 else "int32")
        result = v.convert(wide, kind)
    else:
        risky = v.either(bad, v.equal(b, v.like(-1, b))) if v.is_signed(kind) else bad
        result = T.Div(a, hold(v.select(risky, v.like(1, b), b)))
        if v.is_signed(kind):
            result = v.select(v.equal(b, v.like(-1, b)), opposite(a), result)
    return hold(v.select(bad, v.like(0, a), hold(result)))


def _remainder(a: Expr, b: Expr) -> Expr:
    """a - quotient * b; zero for a zero divisor."""
    rest = wrapping(lambda x, q, y: x - q * y, a, _quotient(a, b), b)
    return hold(v.select(_is_zero(b), v.like(0, a), hold(rest)))


@_register("relax.divide")
def _divide(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = (hold(x) for x in args)
    return a / b if v.is_float(v.element(a)) else _quotient(a, b)


def _fmod(a: Expr, b: Expr) -> Expr:
    return v.libm("fmodf" if v.element(a) == "float32" else "fmod", a, b)


@_register("relax.mod")
def _mod(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = (hold(x) for x in args)
    return _fmod(a, b) if v.is_float(v.element(a)) else _remainder(a, b)


def _opposed(rest: Expr, b: Expr) -> Expr:
    """The remainder is not zero and its sign is not the divisor's."""
    zero = v.like(0, b)
    return hold(v.both(v.unequal(rest, zero), v.differ(rest < zero, b < zero)))


@_register("relax.floor_mod")
def _floor_mod(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = (hold(x) for x in args)
    if not v.is_float(v.element(a)):
        rest = _remainder(a, b)
        return v.select(_opposed(rest, b), wrapping(lambda x, y: x + y, rest, b), rest)
    rest = _fmod(a, b)
    # numpy: a zero remainder takes the divisor's sign.
    zero = v.with_sign(v.like(0, a), b)
    return v.select(_is_zero(rest), zero, v.select(_opposed(rest, b), rest + b, rest))


@_register("relax.floor_divide")
def _floor_divide(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = (hold(x) for x in args)
    if not v.is_float(v.element(a)):
        quotient, rest = _quotient(a, b), _remainder(a, b)
        return v.select(_opposed(rest, b), wrapping(lambda q, one: q - one, quotient, v.like(1, quotient)), quotient)
    # numpy's npy_floor_divide: divide what the exact remainder leaves, then snap to the nearest integer below.
    rest = _fmod(a, b)
    exact = hold((v.fence(a) - rest) / b)
    exact = hold(v.select(_opposed(rest, b), exact - v.like(1, a), exact))
    low = hold(v.floor(exact, call.isa))
    low = hold(v.select(exact - low > v.like(0.5, a), low + v.like(1, a), low))
    low = hold(v.select(_is_zero(exact), v.with_sign(v.like(0, a), a / b), low))
    return v.select(_is_zero(b), a / b, low)


@_register("relax.maximum")
def _maximum(call: Call, args: Sequence[Expr]) -> Expr:
    return v.either(*args) if call.out == "bool" else v.maximum(*args)


@_register("relax.minimum")
def _minimum(call: Call, args: Sequence[Expr]) -> Expr:
    return v.both(*args) if call.out == "bool" else v.minimum(*args)


@_register("relax.power")
def _power(call: Call, args: Sequence[Expr]) -> Expr:
    a, b = (hold(x) for x in args)
    kind = v.element(a)
    if call.scalars[1] == 2:
        return a * a if v.is_float(kind) else wrapping(lambda x: x * x, a)
    if kind == "float32":
        return vecmath.power(a, b, call.isa)
    if kind == "float64":
        return v.libm("pow", a, b)
    result, square = v.like(1, a), a
    for bit in range(v.width(kind) - v.is_signed(kind)):  # square and multiply; exponents are not negative
        taken = v.unequal(b & v.like(1 << bit, b), v.like(0, b))
        result = hold(v.select(taken, wrapping(lambda x, y: x * y, result, square), result))
        square = hold(wrapping(lambda x: x * x, square))
    return result


# --- Unary ------------------------------------------------------------------------------------------------------------


def _transcendental(name: str) -> Emit:
    return lambda call, args: vecmath.unary(name, args[0], call.isa)


for _name in (*vecmath.FLOAT32, "sigmoid"):
    EMIT[f"relax.{_name}"] = _transcendental(_name)


@_register("relax.abs")
def _abs(call: Call, args: Sequence[Expr]) -> Expr:
    (x,) = args
    if v.is_float(v.element(x)):
        return v.absolute(x)
    x = hold(x)
    return v.select(x < v.like(0, x), opposite(x), x) if v.is_signed(v.element(x)) else x


@_register("relax.negative")
def _negative(call: Call, args: Sequence[Expr]) -> Expr:
    (x,) = args
    return v.negated(x) if v.is_float(v.element(x)) else opposite(x)


@_register("relax.sqrt")
def _sqrt(call: Call, args: Sequence[Expr]) -> Expr:
    return v.intrinsic("llvm.sqrt", args[0])


@_register("relax.rsqrt")
def _rsqrt(call: Call, args: Sequence[Expr]) -> Expr:
    return v.like(1, args[0]) / v.intrinsic("llvm.sqrt", args[0])


@_register("relax.floor")
def _floor(call: Call, args: Sequence[Expr]) -> Expr:
    return v.floor(args[0], call.isa)


@_register("relax.ceil")
def _ceil(call: Call, args: Sequence[Expr]) -> Expr:
    return v.ceil(args[0], call.isa)


@_register("relax.round")
def _round(call: Call, args: Sequence[Expr]) -> Expr:
    return v.rint(args[0], call.isa)


@_register("relax.sign")
def _sign(call: Call, args: Sequence[Expr]) -> Expr:
    x = hold(args[0])
    kind = v.element(x)
    zero, one = v.like(0, x), v.like(1, x)
    if not (v.is_float(kind) or v.is_signed(kind)):
        return v.select(x > zero, one, zero)
    below = v.select(x < zero, v.like(-1, x), v.select(v.is_nan(x), x, zero) if v.is_float(kind) else zero)
    return v.select(x > zero, one, below)


@_register("relax.nn.relu")
def _relu(call: Call, args: Sequence[Expr]) -> Expr:
    (x,) = args
    return v.larger(v.like(0, x), x)  # one instruction, and a NaN goes through


@_register("relax.isnan")
def _isnan(call: Call, args: Sequence[Expr]) -> Expr:
    return v.is_nan(args[0])


@_register("relax.isinf")
def _isinf(call: Call, args: Sequence[Expr]) -> Expr:
    return v.equal(v.absolute(args[0]), v.like(np.inf, args[0]))


# --- Comparisons, logic, bits -----------------------------------------------------------------------------------------


def _comparison(compare: Callable[[Expr, Expr], Expr]) -> Emit:
    def emit(call: Call, args: Sequence[Expr]) -> Expr:
        # TVM compares bools as floats: bytes instead.
        a, b = (v.convert(x, "uint8") if v.element(x) == "bool" else x for x in args)
        # Held: the simplifier takes x == x for true, also of NaN.
        return compare(a, hold(b) if v.is_float(v.element(b)) else b)

    return emit


EMIT |= {
    "relax.equal": _comparison(v.equal),
    "relax.not_equal": _comparison(v.unequal),
    "relax.less": _comparison(lambda a, b: a < b),
    "relax.less_equal": _comparison(lambda a, b: a <= b),
    "relax.greater": _comparison(lambda a, b: a > b),
    "relax.greater_equal": _comparison(lambda a, b: a >= b),
}


def _logical(combine: Callable[..., Expr]) -> Emit:
    return lambda call, args: combine(*(v.convert(a, "bool") for a in args))


EMIT |= {
    "relax.logical_and": _logical(v.both),
    "relax.logical_or": _logical(v.either),
    "relax.logical_xor": _logical(v.differ),
    "relax.logical_not": _logical(v.invert),
    "relax.bitwise_and": lambda call, args: v.both(*args),
    "relax.bitwise_or": lambda call, args: v.either(*args),
    "relax.bitwise_xor": lambda call, args: v.differ(*args),
    "relax.bitwise_not": lambda call, args: v.invert(*args),
}


def _shift_count(b: Expr) -> tuple[Expr, Expr]:
    """(count within the width, whether it is); a count beyond shifts everything out."""
    b = hold(b)
    small = hold(_unsigned(b) < _unsigned(v.like(v.width(v.element(b)), b)))
    return hold(v.select(small, b, v.like(0, b))), small


@_register("relax.left_shift")
def _left_shift(call: Call, args: Sequence[Expr]) -> Expr:
    count, small = _shift_count(args[1])
    return v.select(
        small, v.reinterpret(_unsigned(args[0]) << _unsigned(count), v.element(args[0])), v.like(0, args[0])
    )


@_register("relax.right_shift")
def _right_shift(call: Call, args: Sequence[Expr]) -> Expr:
    count, small = _shift_count(args[1])
    x = hold(args[0])
    rest = x >> v.like(v.width(v.element(x)) - 1, x) if v.is_signed(v.element(x)) else v.like(0, x)
    return v.select(small, x >> count, rest)


# --- Selection and types ----------------------------------------------------------------------------------------------


@_register("relax.where")
def _where(call: Call, args: Sequence[Expr]) -> Expr:
    condition, yes, no = args
    kind = compute_dtype(call.out)
    condition = v.convert(condition, "bool")
    if kind == "bool":
        return v.either(v.both(condition, yes), v.both(v.invert(condition), no))
    return v.select(condition, v.convert(yes, kind), v.convert(no, kind))


@_register("relax.astype")
def _astype(call: Call, args: Sequence[Expr]) -> Expr:
    (value,), kind = args, compute_dtype(call.out)
    source = v.element(value)
    if call.out == call.dtypes[0]:
        return value
    if source == "float64" and call.out == "float16":
        value = odd_float32(value)  # as numpy, rounded once; ml_dtypes' types go through float32
    elif v.is_float(source) and not v.is_float(kind) and kind != "bool" and v.width(kind) < 32:
        value = v.convert(value, "int32")  # as numpy: beyond the type's range, the low bits of the integer
    return round_trip(v.convert(value, kind), call.out)
