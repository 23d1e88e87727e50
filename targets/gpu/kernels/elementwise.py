"""What each elementwise operator is in C: one small function per operator, in the table `EMIT`.

A function takes (`Call`, arguments) and returns an expression; arguments are names or numbers of the inputs' types.
Integers wrap around: 32 bits and more go through unsigned arithmetic, because signed overflow is undefined in C;
narrower ones are computed as int and cut when they are stored in a variable of their type. Integer division is
towards zero and gives zero for a zero divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlc.targets.gpu.source import Writer, c_type, literal


@dataclass(frozen=True)
class Call:
    """The node being written: attributes, dtypes of inputs and output, and where statements go."""

    attrs: Mapping[str, Any]
    dtypes: tuple[str, ...]
    out: str
    w: Writer

    @property
    def dtype(self) -> str:
        """The first input's."""
        return self.dtypes[0]

    @property
    def is_float(self) -> bool:
        """Whether the first input is a float."""
        return self.dtype.startswith("float")

    def let(self, expression: str, dtype: str = "") -> str:
        """Name a value of the first input's type, or of `dtype`."""
        return self.w.let(c_type(dtype or self.dtype), expression)

    def number(self, value: float) -> str:
        """A constant of the first input's type."""
        return literal(value, self.dtype)


Emit = Callable[[Call, Sequence[str]], str]
EMIT: dict[str, Emit] = {}


def _register(*names: str) -> Callable[[Emit], Emit]:
    def add(function: Emit) -> Emit:
        for name in names:
            EMIT[f"relax.{name}"] = function
        return function

    return add


def is_signed(dtype: str) -> bool:
    """Whether `dtype` is a signed integer."""
    return dtype.startswith("int")


def wrap(dtype: str, expression: Callable[..., str], *args: str) -> str:
    """An integer expression of +, - and * modulo 2**bits."""
    kind = c_type(dtype)
    if dtype in ("int32", "int64"):
        return f"({kind})({expression(*(f'(u{kind[1:]}){a}' for a in args))})"
    return f"({kind})({expression(*args)})"


def _is_nan(x: str) -> str:
    return f"{x} != {x}"


# --- Arithmetic -------------------------------------------------------------------------------------------------------


def _binary(operator: str, on_bools: str) -> Emit:
    def emit(call: Call, args: Sequence[str]) -> str:
        if call.out == "bool":
            return f"{args[0]} {on_bools} {args[1]}"
        if call.is_float:
            return f"{args[0]} {operator} {args[1]}"
        return wrap(call.dtype, lambda a, b: f"{a} {operator} {b}", *args)

    return emit


EMIT |= {
    "relax.add": _binary("+", "|"),
    "relax.subtract": _binary("-", "^"),
    "relax.multiply": _binary("*", "&"),
}


def _negated(call: Call, x: str) -> str:
    return f"-{x}" if call.is_float else wrap(call.dtype, lambda a: f"0 - {a}", x)


def _quotient(call: Call, a: str, b: str) -> str:
    """Integer division towards zero; zero for a zero divisor; the least value divided by -1 wraps."""
    if not is_signed(call.dtype):
        return f"{b} == 0 ? 0 : {a} / {b}"
    return f"{b} == 0 ? 0 : {b} == -1 ? {_negated(call, a)} : {a} / {b}"


def _remainder(call: Call, a: str, b: str) -> str:
    risky = f"{b} == 0 || {b} == -1" if is_signed(call.dtype) else f"{b} == 0"
    return f"({risky}) ? 0 : {a} % {b}"


@_register("divide")
def _divide(call: Call, args: Sequence[str]) -> str:
    return f"{args[0]} / {args[1]}" if call.is_float else _quotient(call, *args)


@_register("mod")
def _mod(call: Call, args: Sequence[str]) -> str:
    return f"fmod({args[0]}, {args[1]})" if call.is_float else _remainder(call, *args)


@_register("floor_mod")
def _floor_mod(call: Call, args: Sequence[str]) -> str:
    a, b = args
    if not call.is_float:
        rest = call.let(_remainder(call, a, b))
        if not is_signed(call.dtype):
            return rest
        moved = wrap(call.dtype, lambda x, y: f"{x} + {y}", rest, b)
        return f"({rest} != 0 && ({rest} < 0) != ({b} < 0)) ? {moved} : {rest}"
    rest = call.let(f"fmod({a}, {b})")
    # numpy: a zero remainder takes the divisor's sign.
    zero = f"copysign({call.number(0)}, {b})"
    return f"{rest} == 0 ? {zero} : ({rest} < 0) != ({b} < 0) ? {rest} + {b} : {rest}"


@_register("floor_divide")
def _floor_divide(call: Call, args: Sequence[str]) -> str:
    a, b = args
    if not call.is_float:
        quotient, rest = call.let(_quotient(call, a, b)), call.let(_remainder(call, a, b))
        if not is_signed(call.dtype):
            return quotient
        less = wrap(call.dtype, lambda x: f"{x} - 1", quotient)
        return f"({rest} != 0 && ({rest} < 0) != ({b} < 0)) ? {less} : {quotient}"
    # numpy's npy_floor_divide: divide what the exact remainder leaves, then snap to the nearest integer below.
    rest = call.let(f"fmod({a}, {b})")
    exact = call.let(f"({a} - {rest}) / {b}")
    exact = call.let(f"({rest} != 0 && ({rest} < 0) != ({b} < 0)) ? {exact} - {call.number(1)} : {exact}")
    low = call.let(f"floor({exact})")
    low = call.let(f"{exact} - {low} > {call.number(0.5)} ? {low} + {call.number(1)} : {low}")
    zero = f"copysign({call.number(0)}, {a} / {b})"
    return f"{b} == 0 ? {a} / {b} : {exact} == 0 ? {zero} : {low}"


def extreme(dtype: str, comparison: str, a: str, b: str) -> str:
    """numpy's maximum (``>``) or minimum (``<``) of two names: a NaN wins."""
    nan = f" || {_is_nan(a)}" if dtype.startswith("float") else ""
    return f"({a} {comparison} {b}{nan}) ? {a} : {b}"


EMIT |= {
    "relax.maximum": lambda call, args: extreme(call.dtype, ">", *args),
    "relax.minimum": lambda call, args: extreme(call.dtype, "<", *args),
}


@_register("power")
def _power(call: Call, args: Sequence[str]) -> str:
    a, b = args
    if call.is_float:
        return f"{a} * {a}" if b == call.number(2) else f"pow({a}, {b})"
    bits = 64 if call.dtype.endswith("64") else 32
    return f"({c_type(call.dtype)})power_u{bits}((u{bits}){a}, (u{bits}){b})"


# --- Unary ------------------------------------------------------------------------------------------------------------


def _function(name: str) -> Emit:
    return lambda call, args: f"{name}({args[0]})"


for _name in (
    "exp", "log", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
    "atanh", "erf", "floor", "ceil",
):  # fmt: skip
    EMIT[f"relax.{_name}"] = _function(_name)
EMIT["relax.round"] = _function("rint")


@_register("rsqrt")
def _rsqrt(call: Call, args: Sequence[str]) -> str:
    return f"{call.number(1)} / sqrt({args[0]})"


@_register("sigmoid")
def _sigmoid(call: Call, args: Sequence[str]) -> str:
    return f"{call.number(1)} / ({call.number(1)} + exp(-{args[0]}))"


@_register("abs")
def _abs(call: Call, args: Sequence[str]) -> str:
    (x,) = args
    if call.is_float:
        return f"fabs({x})"
    return f"{x} < 0 ? {_negated(call, x)} : {x}" if is_signed(call.dtype) else x


@_register("negative")
def _negative(call: Call, args: Sequence[str]) -> str:
    return _negated(call, args[0])


@_register("sign")
def _sign(call: Call, args: Sequence[str]) -> str:
    (x,) = args
    if call.is_float:
        return f"{x} > 0 ? {call.number(1)} : {x} < 0 ? {call.number(-1)} : {_is_nan(x)} ? {x} : {call.number(0)}"
    return f"{x} > 0 ? 1 : {x} < 0 ? -1 : 0" if is_signed(call.dtype) else f"{x} > 0 ? 1 : 0"


@_register("nn.relu")
def _relu(call: Call, args: Sequence[str]) -> str:
    (x,) = args
    return f"{x} < 0 ? {call.number(0)} : {x}" if call.is_float or is_signed(call.dtype) else x


@_register("isnan")
def _isnan(call: Call, args: Sequence[str]) -> str:
    return _is_nan(args[0])


@_register("isinf")
def _isinf(call: Call, args: Sequence[str]) -> str:
    return f"fabs({args[0]}) == INFINITY"


# --- Comparisons, logic, bits -----------------------------------------------------------------------------------------


def _infix(operator: str) -> Emit:
    return lambda call, args: f"{args[0]} {operator} {args[1]}"


def _logical(operator: str) -> Emit:
    return lambda call, args: f"({args[0]} != 0) {operator} ({args[1]} != 0)"


EMIT |= {
    "relax.equal": _infix("=="),
    "relax.not_equal": _infix("!="),
    "relax.less": _infix("<"),
    "relax.less_equal": _infix("<="),
    "relax.greater": _infix(">"),
    "relax.greater_equal": _infix(">="),
    "relax.logical_and": _logical("&"),
    "relax.logical_or": _logical("|"),
    "relax.logical_xor": _logical("^"),
    "relax.logical_not": lambda call, args: f"{args[0]} == 0",
    "relax.bitwise_and": _infix("&"),
    "relax.bitwise_or": _infix("|"),
    "relax.bitwise_xor": _infix("^"),
    "relax.bitwise_not": lambda call, args: f"{args[0]} == 0" if call.dtype == "bool" else f"~{args[0]}",
}


def _width(dtype: str) -> int:
    return int("".join(c for c in dtype if c.isdigit()))


@_register("left_shift")
def _left_shift(call: Call, args: Sequence[str]) -> str:
    x, count = args
    bits = "u64" if _width(call.dtype) == 64 else "u32"
    return f"(u64){count} < {_width(call.dtype)} ? ({c_type(call.dtype)})(({bits}){x} << {count}) : 0"


@_register("right_shift")
def _right_shift(call: Call, args: Sequence[str]) -> str:
    x, count = args
    rest = f"{x} < 0 ? -1 : 0" if is_signed(call.dtype) else "0"
    return f"(u64){count} < {_width(call.dtype)} ? {x} >> {count} : ({rest})"


# --- Selection and types ----------------------------------------------------------------------------------------------


@_register("where")
def _where(call: Call, args: Sequence[str]) -> str:
    condition, yes, no = args
    kind = c_type(call.out)
    return f"{condition} != 0 ? ({kind}){yes} : ({kind}){no}"


@_register("astype")
def _astype(call: Call, args: Sequence[str]) -> str:
    return f"{args[0]} != 0" if call.out == "bool" else f"({c_type(call.out)}){args[0]}"
