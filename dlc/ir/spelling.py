"""How Relax spells types, attributes, origins and constants; our operators registered with it.

This is the adapter for TVM's private interfaces.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
import tvm.ir._ffi_api as ir_ffi
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Op
from tvm.sym import Analyzer

from dlc.ir.graph import OBJECT, TUPLE, Origin, Value, is_tensor
from dlc.ir.ops import OPS

# --- plain values ---


def int64(dim: Any) -> Any:
    """An extent as Relax wants it: numbers as int64 immediates."""
    return tirx.IntImm("int64", dim) if isinstance(dim, int) else dim


def plain(value: Any) -> Any:
    """TVM containers and immediates as Python values; symbolic expressions stay."""
    if isinstance(value, tirx.IntImm):
        return int(value.value)
    if isinstance(value, tirx.FloatImm):
        return float(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tvm.ir.Expr):  # before the container: an abstract class is slow to ask
        return value
    if isinstance(value, tvm.ir.Array | list | tuple):
        return tuple(plain(item) for item in value)
    return value


def plain_attrs(attrs: Any) -> dict[str, Any]:
    """The attributes of a call of ours."""
    return {str(key): plain(attrs[key]) for key in attrs.keys()} if attrs is not None else {}  # noqa: SIM118


def shape_of(expr: Any) -> tuple[Any, ...]:
    """The extents of a typed Relax tensor expression; ints where known."""
    return tuple(extent(d) for d in expr.ty.shape.values)


def extent(dim: Any) -> Any:
    """An extent in plain form."""
    given = plain(dim)
    return given if isinstance(given, int | tirx.Var) else _settled(given)


@functools.lru_cache(1 << 12)
def _settled(given: Any) -> Any:
    """Relax divides by a negative stride, which TVM's own simplifier and code cannot do: the same by a positive one.

    Remembered by the object, because one extent is that of many values.
    """
    divisions: list[Any] = []
    tvm_ffi.structural_walk(given, (tirx.FloorDiv, divisions.append))
    if not any(_is_negative(division.b) for division in divisions):
        return given
    turned = tvm_ffi.structural_map(given, (tirx.FloorDiv, _positive_divisor))
    return plain(Analyzer().simplify(turned))


def _is_negative(divisor: Any) -> bool:
    return isinstance(divisor, tirx.IntImm) and divisor.value < 0


def _positive_divisor(division: Any) -> Any:
    if not _is_negative(division.b):
        return division
    return tirx.FloorDiv(tirx.IntImm("int64", 0) - division.a, tirx.IntImm("int64", -int(division.b.value)))


def value_of(var: Any, objects: Mapping[str, str] | None = None) -> Value:
    """A Relax variable as a `Value`; `objects` says what the variables of Relax's object type are."""
    if isinstance(var.ty, relax.TensorType):
        return Value(var.name, shape_of(var), str(var.ty.dtype))
    if isinstance(var.ty, relax.TupleType):
        return Value(var.name, (), TUPLE)
    return Value(var.name, (), (objects or {}).get(var.name, OBJECT))


def type_of(value: Value) -> Any:
    """The Relax type of a value; what is no tensor has the object type."""
    if not is_tensor(value.dtype):
        return relax.ObjectType()
    return relax.TensorType([int64(d) for d in value.shape], value.dtype)


# --- origins ---


def span(origin: Origin) -> Any:
    """An origin as a node carries it: Relax keeps spans, but cleans names."""
    text = json.dumps([origin.op, origin.node, origin.value, origin.channels_last])
    return tvm.ir.Span(tvm.ir.SourceName(text), 0, 0, 0, 0)


def origin_of(expr: Any) -> Origin:
    """What `span` wrote; empty for other nodes."""
    span = getattr(expr, "span", None)
    if span is None or getattr(span, "source_name", None) is None:
        return Origin()
    try:
        return Origin(*json.loads(str(span.source_name.name)))
    except (ValueError, TypeError):
        return Origin()


# --- Relax's own operators: how each is built and how its attributes are read ---

Build = Callable[[Sequence[Any], Mapping[str, Any]], Any]
Read = Callable[[Any], dict[str, Any]]


def _prims(values: Any) -> list[Any]:
    return [plain(v) for v in values.fields]


def _end_shift(stride: int) -> int:
    """What is added to a slice's end, so that TVM finds the extent: it computes (end - begin + stride - 1) // stride,
    which for negative strides is that of an end two further on."""
    return 2 if stride < 0 else 0


def _read_slice(call: Any) -> dict[str, Any]:
    axes, begin, end, strides = (tuple(_prims(a)) for a in call.args[1:])
    end = tuple(e - _end_shift(stride) for e, stride in zip(end, strides, strict=True))
    return {"axes": axes, "begin": begin, "end": end, "strides": strides}


BUILD: dict[str, Build] = {
    "relax.where": lambda x, a: relax.op.where(*x),
    "relax.astype": lambda x, a: relax.op.astype(x[0], a["dtype"]),
    "relax.reshape": lambda x, a: relax.op.reshape(x[0], relax.ShapeExpr([int64(d) for d in a["shape"]])),
    "relax.broadcast_to": lambda x, a: relax.op.broadcast_to(x[0], relax.ShapeExpr([int64(d) for d in a["shape"]])),
    "relax.permute_dims": lambda x, a: relax.op.permute_dims(x[0], list(a["axes"])),
    "relax.concat": lambda x, a: relax.op.concat(list(x), a["axis"]),
    "relax.strided_slice": lambda x, a: relax.op.strided_slice(
        x[0],
        list(a["axes"]),
        [int64(v) for v in a["begin"]],
        [int64(v + _end_shift(stride)) for v, stride in zip(a["end"], a["strides"], strict=True)],
        list(a["strides"]),
        # Ours are clamped already; without this an end of -1 below a negative stride would count from the back.
        assume_inbound=True,
    ),
    "relax.nn.pad": lambda x, a: relax.op.nn.pad(x[0], list(a["pad_width"]), a["mode"], float(a["value"])),
    "relax.take": lambda x, a: relax.op.take(x[0], x[1], a["axis"]),
    "relax.gather_elements": lambda x, a: relax.op.gather_elements(x[0], x[1], a["axis"]),
    "relax.nn.softmax": lambda x, a: relax.op.nn.softmax(x[0], a["axis"]),
    "relax.nn.log_softmax": lambda x, a: relax.op.nn.log_softmax(x[0], a["axis"]),
    "relax.nn.layer_norm": lambda x, a: relax.op.nn.layer_norm(*x, axes=list(a["axes"]), epsilon=a["epsilon"]),
    "relax.argmax": lambda x, a: relax.op.argmax(x[0], a["axis"], bool(a["keepdims"])),
    "relax.argmin": lambda x, a: relax.op.argmin(x[0], a["axis"], bool(a["keepdims"])),
}


def _build_reduction(function: Callable[..., Any]) -> Build:
    return lambda x, a: function(x[0], list(a["axes"]), bool(a["keepdims"]))


for _reduction in ("sum", "mean", "max", "min", "prod"):
    BUILD[f"relax.{_reduction}"] = _build_reduction(getattr(relax.op, _reduction))


def _read_axes(call: Any) -> dict[str, Any]:
    rank = len(call.args[0].ty.shape.values)
    axes = call.attrs.axis
    picked = range(rank) if axes is None else [int(a) % rank for a in axes]
    return {"axes": tuple(picked), "keepdims": bool(call.attrs.keepdims)}


READ: dict[str, Read] = {
    "relax.astype": lambda c: {"dtype": str(c.attrs.dtype)},
    "relax.reshape": lambda c: {"shape": tuple(plain(d) for d in c.args[1].values)},
    "relax.broadcast_to": lambda c: {"shape": tuple(plain(d) for d in c.args[1].values)},
    "relax.permute_dims": lambda c: {"axes": tuple(int(a) for a in c.attrs.axes)},
    "relax.concat": lambda c: {"axis": int(c.attrs.axis)},
    "relax.strided_slice": _read_slice,
    "relax.nn.pad": lambda c: {
        "pad_width": tuple(int(v) for v in c.attrs.pad_width),
        "mode": str(c.attrs.pad_mode),
        "value": float(c.attrs.pad_value),
    },
    "relax.take": lambda c: {"axis": int(c.attrs.axis)},
    "relax.gather_elements": lambda c: {"axis": int(plain(c.attrs.axis))},
    "relax.nn.softmax": lambda c: {"axis": int(c.attrs.axis)},
    "relax.nn.log_softmax": lambda c: {"axis": int(c.attrs.axis)},
    "relax.nn.layer_norm": lambda c: {
        "axes": tuple(int(a) for a in c.attrs.axes),
        "epsilon": float(c.attrs.epsilon),
    },
    "relax.argmax": lambda c: {"axis": int(c.attrs.axis), "keepdims": bool(c.attrs.keepdims)},
    "relax.argmin": lambda c: {"axis": int(c.attrs.axis), "keepdims": bool(c.attrs.keepdims)},
    **{f"relax.{name}": _read_axes for name in ("sum", "mean", "max", "min", "prod")},
}


def relax_function(name: str) -> Callable[..., Any]:
    """The function that builds one of Relax's operators without attributes."""
    target: Any = relax.op
    for part in name.removeprefix("relax.").split("."):
        target = getattr(target, part)
    return target


# --- constants ---


# Arrays that were read from a Relax constant, by id: writing one back gives that constant, not a copy. A pass reads and
# writes every weight of the model, so this is most of the time and memory that passes take on large ones.
_SHARED = frozenset(
    ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
_READ_FROM: dict[int, tuple[weakref.ref[np.ndarray], Any]] = {}


def constant_array(const: Any) -> np.ndarray:
    """A Relax constant's value (small floats as ml_dtypes), read-only; not a copy where numpy can share."""
    shared = str(const.value.dtype) in _SHARED
    array: np.ndarray = np.from_dlpack(const.value) if shared else const.value.numpy()
    array.setflags(write=False)
    key = id(array)
    _READ_FROM[key] = (weakref.ref(array, lambda _: _READ_FROM.pop(key, None)), const)
    return array


def read_from(array: np.ndarray) -> Any:
    """The Relax constant that the very same array was read from, or None."""
    entry = _READ_FROM.get(id(array))
    return entry[1] if entry is not None and entry[0]() is array else None


# --- registration of our operators ---


def _type_rule(name: str) -> Callable[[Any, Any], Any]:
    spec = OPS[name]

    def infer(call: Any, _builder: Any) -> Any:
        types = [(tuple(plain(d) for d in a.ty.shape.values), str(a.ty.dtype)) for a in call.args]
        assert spec.infer is not None
        shape, dtype = spec.infer(types, plain_attrs(call.attrs))
        return relax.TensorType([int64(d) for d in shape], dtype)

    return infer


def _host_rule(call: Any, _builder: Any) -> Any:
    """The type that a host operator declares: a tuple, one entry a result."""
    attrs = plain_attrs(call.attrs)
    pairs = zip(attrs["shapes"], attrs["dtypes"], strict=True)
    return relax.TupleType([type_of(Value("", shape, dtype)) for shape, dtype in pairs])


def _register_ops() -> None:
    known = set(Op.list_op_names())
    for name, spec in OPS.items():
        if (spec.infer is None and spec.kind != "host") or name in known:
            continue
        ir_ffi.RegisterOp(name, (spec.meaning.__module__ or "") + ": see its module")
        op = Op.get(name)
        op.set_num_inputs(-1)
        op.set_attr("FInferType", _host_rule if spec.kind == "host" else _type_rule(name))
        op.set_attr("FPurity", True)


_register_ops()
