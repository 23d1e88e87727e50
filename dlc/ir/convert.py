"""Between Relax and the plain graph view, in both directions: the one module that knows how Relax spells attributes.

`view(function)` reads a Relax function as a `Graph`; `FunctionBuilder.emit(op, inputs, attrs)` writes one node. The two
are inverse, so a pass reads nodes and emits nodes. This is also the adapter for TVM's private interfaces.
"""

from __future__ import annotations

import functools
import json
import re
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

from dlc.ir.graph import OBJECT, TUPLE, Graph, Node, Origin, Value, is_tensor
from dlc.ir.ops import OPS


class IrTypeError(ValueError):
    """An operator's operands do not fit it; the text is the reason alone, without the node's name."""


class UndecidedTypeError(IrTypeError):
    """Whether operands fit depends on the sizes of symbols."""


# --- registration of our operators ---


def _type_rule(name: str) -> Callable[[Any, Any], Any]:
    spec = OPS[name]

    def infer(call: Any, _builder: Any) -> Any:
        types = [(tuple(_plain(d) for d in a.ty.shape.values), str(a.ty.dtype)) for a in call.args]
        assert spec.infer is not None
        shape, dtype = spec.infer(types, _plain_attrs(call.attrs))
        return relax.TensorType([_int64(d) for d in shape], dtype)

    return infer


def _host_rule(call: Any, _builder: Any) -> Any:
    """The type that a host operator declares: a tuple, one entry a result."""
    attrs = _plain_attrs(call.attrs)
    pairs = zip(attrs["shapes"], attrs["dtypes"], strict=True)
    return relax.TupleType([_type_of(Value("", shape, dtype)) for shape, dtype in pairs])


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


# --- plain values ---


def _int64(dim: Any) -> Any:
    return tirx.IntImm("int64", dim) if isinstance(dim, int) else dim


def _plain(value: Any) -> Any:
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
        return tuple(_plain(item) for item in value)
    return value


def _plain_attrs(attrs: Any) -> dict[str, Any]:
    return {str(key): _plain(attrs[key]) for key in attrs.keys()} if attrs is not None else {}  # noqa: SIM118


def shape_of(expr: Any) -> tuple[Any, ...]:
    """The extents of a typed Relax tensor expression; ints where known."""
    return tuple(_extent(d) for d in expr.ty.shape.values)


def _extent(dim: Any) -> Any:
    """An extent in plain form."""
    plain = _plain(dim)
    return plain if isinstance(plain, int | tirx.Var) else _settled(plain)


@functools.lru_cache(1 << 12)
def _settled(extent: Any) -> Any:
    """Relax divides by a negative stride, which TVM's own simplifier and code cannot do: the same by a positive one.

    Remembered by the object, because one extent is that of many values.
    """
    divisions: list[Any] = []
    tvm_ffi.structural_walk(extent, (tirx.FloorDiv, divisions.append))
    if not any(_is_negative(division.b) for division in divisions):
        return extent
    turned = tvm_ffi.structural_map(extent, (tirx.FloorDiv, _positive_divisor))
    return _plain(Analyzer().simplify(turned))


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


def _type_of(value: Value) -> Any:
    """The Relax type of a value; what is no tensor has the object type."""
    if not is_tensor(value.dtype):
        return relax.ObjectType()
    return relax.TensorType([_int64(d) for d in value.shape], value.dtype)


# --- origins ---


def _span(origin: Origin) -> Any:
    text = json.dumps([origin.op, origin.node, origin.value, origin.channels_last])
    return tvm.ir.Span(tvm.ir.SourceName(text), 0, 0, 0, 0)


def _origin(expr: Any) -> Origin:
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
    return [_plain(v) for v in values.fields]


def _end_shift(stride: int) -> int:
    """What is added to a slice's end, so that TVM finds the extent: it computes (end - begin + stride - 1) // stride,
    which for negative strides is that of an end two further on."""
    return 2 if stride < 0 else 0


def _read_slice(call: Any) -> dict[str, Any]:
    axes, begin, end, strides = (tuple(_prims(a)) for a in call.args[1:])
    end = tuple(e - _end_shift(stride) for e, stride in zip(end, strides, strict=True))
    return {"axes": axes, "begin": begin, "end": end, "strides": strides}


_BUILD: dict[str, Build] = {
    "relax.where": lambda x, a: relax.op.where(*x),
    "relax.astype": lambda x, a: relax.op.astype(x[0], a["dtype"]),
    "relax.reshape": lambda x, a: relax.op.reshape(x[0], relax.ShapeExpr([_int64(d) for d in a["shape"]])),
    "relax.broadcast_to": lambda x, a: relax.op.broadcast_to(x[0], relax.ShapeExpr([_int64(d) for d in a["shape"]])),
    "relax.permute_dims": lambda x, a: relax.op.permute_dims(x[0], list(a["axes"])),
    "relax.concat": lambda x, a: relax.op.concat(list(x), a["axis"]),
    "relax.strided_slice": lambda x, a: relax.op.strided_slice(
        x[0],
        list(a["axes"]),
        [_int64(v) for v in a["begin"]],
        [_int64(v + _end_shift(stride)) for v, stride in zip(a["end"], a["strides"], strict=True)],
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
    _BUILD[f"relax.{_reduction}"] = _build_reduction(getattr(relax.op, _reduction))


def _read_axes(call: Any) -> dict[str, Any]:
    rank = len(call.args[0].ty.shape.values)
    axes = call.attrs.axis
    picked = range(rank) if axes is None else [int(a) % rank for a in axes]
    return {"axes": tuple(picked), "keepdims": bool(call.attrs.keepdims)}


_READ: dict[str, Read] = {
    "relax.astype": lambda c: {"dtype": str(c.attrs.dtype)},
    "relax.reshape": lambda c: {"shape": tuple(_plain(d) for d in c.args[1].values)},
    "relax.broadcast_to": lambda c: {"shape": tuple(_plain(d) for d in c.args[1].values)},
    "relax.permute_dims": lambda c: {"axes": tuple(int(a) for a in c.attrs.axes)},
    "relax.concat": lambda c: {"axis": int(c.attrs.axis)},
    "relax.strided_slice": _read_slice,
    "relax.nn.pad": lambda c: {
        "pad_width": tuple(int(v) for v in c.attrs.pad_width),
        "mode": str(c.attrs.pad_mode),
        "value": float(c.attrs.pad_value),
    },
    "relax.take": lambda c: {"axis": int(c.attrs.axis)},
    "relax.gather_elements": lambda c: {"axis": int(_plain(c.attrs.axis))},
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


def _relax_function(name: str) -> Callable[..., Any]:
    target: Any = relax.op
    for part in name.removeprefix("relax.").split("."):
        target = getattr(target, part)
    return target


# --- Relax -> Graph ---


_OPERANDS = (relax.TensorType, relax.TupleType, relax.ObjectType)


class _Viewer:
    def __init__(self, module: Any, function: Any, name: str) -> None:
        self.module, self.function, self.name = module, function, name
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[Any, str] = {}  # a constant's handle -> its name
        self.alias: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.attrs = _function_attrs(function)
        self.objects: dict[str, str] = dict(self.attrs.get("dlc.objects", {}))
        self.declared: dict[str, tuple[str, ...]] = {}  # a tuple's name -> the dtypes of its entries
        # A variable may be called c0 too: a model names its values as it likes.
        self.taken = {p.name for p in function.params}
        self.taken |= {b.var.name for block in function.body.blocks for b in block.bindings}

    def _fresh_constant(self) -> str:
        number = len(self.names)
        while f"c{number}" in self.taken:
            number += 1
        self.taken.add(f"c{number}")
        return f"c{number}"

    def name_of(self, expr: Any) -> str:
        if isinstance(expr, tvm.ir.GenericConst):
            key = tvm_ffi_address(expr)
            if key not in self.names:
                self.names[key] = self._fresh_constant()
                self.constants[self.names[key]] = constant_array(expr)
            return self.names[key]
        return self.alias.get(expr.name, expr.name)

    def inputs_of(self, call: Any) -> list[str]:
        names: list[str] = []
        for arg in call.args:
            fields = arg.fields if isinstance(arg, tvm.ir.Tuple) else [arg]
            # A symbolic bound of a slice is a variable too, but no tensor; nor is a function.
            names += [self.name_of(f) for f in fields if isinstance(getattr(f, "ty", None), _OPERANDS)]
        return names

    def bind(self, var: Any, value: Any) -> None:
        if isinstance(value, tvm.ir.Var | tvm.ir.GenericConst):
            self.alias[var.name] = self.name_of(value)
        elif isinstance(value, tvm.ir.TupleGetItem):
            self.item(var, value)
        elif isinstance(value, tvm.ir.Call):
            self.call(var, value)
        else:
            raise TypeError(f"unexpected binding of {var.name}: {type(value).__name__}")

    def item(self, var: Any, value: Any) -> None:
        source = self.name_of(value.tuple_value)
        index = int(value.index)
        self.objects[var.name] = self.declared[source][index]
        outputs = (value_of(var, self.objects),)
        self.nodes.append(Node("dlc.item", (source,), outputs, {"index": index}, _origin(value)))

    def call(self, var: Any, call: Any) -> None:
        outputs = (value_of(var),)
        origin = _origin(call)
        if isinstance(call.op, tvm.ir.GlobalVar):
            body = view(self.module, call.op.name_hint if hasattr(call.op, "name_hint") else call.op.name)
            inputs = tuple(self.name_of(a) for a in call.args)
            self.nodes.append(Node("call", inputs, outputs, dict(body.attrs), origin, body))
            return
        name = str(call.op.name)
        ours = name.startswith("dlc.")
        attrs = _plain_attrs(call.attrs) if ours else _READ.get(name, lambda c: {})(call)
        if "dtypes" in attrs:
            self.declared[var.name] = tuple(attrs["dtypes"])
        blocks = tuple(view(self.module, a.name_hint) for a in call.args if isinstance(a, tvm.ir.GlobalVar))
        self.nodes.append(Node(name, tuple(self.inputs_of(call)), outputs, attrs, origin, None, blocks))

    def run(self) -> Graph:
        body = self.function.body
        for block in body.blocks:
            for binding in block.bindings:
                self.bind(binding.var, binding.value)
        result = body.body
        outs = result.fields if isinstance(result, tvm.ir.Tuple) else [result]
        if not isinstance(result, tvm.ir.Tuple) and result.name in self.alias:
            outs = [result]
        return Graph(
            self.name,
            tuple(value_of(p, self.objects) for p in self.function.params),
            tuple(self.name_of(o) for o in outs),
            tuple(self.nodes),
            self.constants,
            self.attrs,
        )


def tvm_ffi_address(obj: Any) -> Any:
    """A hashable identity of a TVM object: equal for two Python handles of one object."""
    return obj.__hash__() if not hasattr(obj, "__chandle__") else obj.__chandle__()


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


def _read_from(array: np.ndarray) -> Any:
    """The Relax constant that the very same array was read from, or None."""
    entry = _READ_FROM.get(id(array))
    return entry[1] if entry is not None and entry[0]() is array else None


def _function_attrs(function: Any) -> dict[str, Any]:
    attrs = function.attrs
    if attrs is None:
        return {}
    result = {}
    for key in attrs.keys():  # noqa: SIM118
        text = _plain(attrs[key])
        result[str(key)] = json.loads(text) if str(key).startswith("dlc.") and isinstance(text, str) else text
    return result


def inner_functions(module: Any) -> list[tuple[str, Any]]:
    """The functions of `module` that its ``main`` calls or runs, by name, each behind those that it uses itself."""
    functions = {var.name_hint: function for var, function in module.functions.items() if var.name_hint != "main"}
    ordered: dict[str, Any] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        for block in functions[name].body.blocks:
            for binding in block.bindings:
                for arg in getattr(binding.value, "args", ()):
                    if isinstance(arg, tvm.ir.GlobalVar):
                        add(arg.name_hint)
        ordered[name] = functions[name]

    for name in functions:
        add(name)
    return list(ordered.items())


def view(module: Any, name: str = "main") -> Graph:
    """Read a Relax function of `module` as a `Graph`; called region functions become nodes with a body."""
    return _Viewer(module, module[name], name).run()


# --- Graph -> Relax ---


def _expression(op: str, inputs: list[Any], attrs: dict[str, Any], origin: Origin) -> Any:
    if op.startswith("dlc."):
        node = tvm.ir.make_node("ir.DictAttrs", **attrs)
        return relax.Call(Op.get(op), inputs, node, span=_span(origin))
    call = _BUILD[op](inputs, attrs) if op in _BUILD else _relax_function(op)(*inputs)
    return relax.Call(call.op, list(call.args), call.attrs, list(call.ty_args), span=_span(origin))


def infer_type(
    op: str, types: Sequence[tuple[Sequence[Any], str]], attrs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], str]:
    """The extents and dtype that `op` gives for operands of these types, without writing a node.

    Raises IrTypeError when the operands do not fit, or when Relax cannot tell the extents (two symbols that might
    differ under broadcasting).
    """
    spec = OPS[op]
    try:
        if spec.infer is not None:
            shape, dtype = spec.infer([(tuple(s), d) for s, d in types], attrs)
            return tuple(_plain(d) for d in shape), dtype
        operands = [relax.Var("t", relax.TensorType([_int64(d) for d in s], d)) for s, d in types]
        typed = relax.BlockBuilder().normalize(_expression(op, operands, dict(attrs), Origin())).ty
    except Exception as error:
        raise IrTypeError(_reason(error)) from error
    if typed.shape is None:
        texts = " and ".join(f"[{', '.join(str(d) for d in s)}]" for s, _ in types)
        raise UndecidedTypeError(f"cannot tell whether the extents of {texts} agree")
    return tuple(_extent(d) for d in typed.shape.values), str(typed.dtype)


class FunctionBuilder:
    """Writes Relax functions node by node. Attribute values of functions are stored as JSON under ``dlc.*`` keys."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.builder = relax.BlockBuilder()
        self._regions: dict[str, Any] = {}
        self.params: list[Any] = []
        self._frames: list[Any] = []
        self._used: set[str] = set()
        self._objects: dict[str, str] = {}
        self._items: dict[tuple[str, int], Any] = {}

    def input(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """Declare a parameter; all inputs come before the first `emit`."""
        var = relax.Var(name, _type_of(Value(name, tuple(shape), dtype)))
        if not is_tensor(dtype):
            self._objects[name] = dtype
        self.params.append(var)
        self._used.add(name)
        return var

    def constant(self, array: np.ndarray) -> Any:
        """A constant; the dtype is kept exactly."""
        known = _read_from(array)
        if known is not None:
            return known
        array = np.asarray(array)
        array = np.ascontiguousarray(array).reshape(array.shape)
        return relax.const(array, str(array.dtype))

    def _open(self) -> None:
        if not self._frames:
            function = self.builder.function(self.name, self.params)
            function.__enter__()
            block = self.builder.dataflow()
            block.__enter__()
            self._frames = [function, block]

    def emit(
        self,
        op: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
        name: str | None = None,
    ) -> Any:
        """Add one node and return its variable; raises IrTypeError when the operands do not fit the operator."""
        self._open()
        origin = origin or Origin()
        try:
            expr = _expression(op, list(inputs), dict(attrs or {}), origin)
            return self.builder.emit(expr, name_hint=self._unique(name or origin.value or op.rsplit(".", 1)[-1]))
        except Exception as error:
            raise IrTypeError(_reason(error)) from error

    def add_region(self, name: str, function: Any) -> None:
        """Add a function that nodes may `call` or run as a block; before the first `emit`."""
        self._regions[name] = self.builder.add_func(function, name)

    def add_functions(self, module: Any) -> None:
        """Add every function of `module` but its ``main``."""
        for name, function in inner_functions(module):
            self.add_region(name, function)

    def host(
        self, op: str, blocks: Sequence[str], inputs: Sequence[Any], attrs: Mapping[str, Any], origin: Origin, name: str
    ) -> Any:
        """One host operator (see `dlc.ir.ops.host`); `blocks` name functions that were added. Returns its tuple."""
        self._open()
        node = tvm.ir.make_node("ir.DictAttrs", **attrs)
        operands = [*(self._regions[block] for block in blocks), *inputs]
        return self.builder.emit(relax.Call(Op.get(op), operands, node, span=_span(origin)), self._unique(name))

    def item(self, source: Any, index: int, origin: Origin, name: str) -> Any:
        """One result of a host operator; asked for twice, the same variable."""
        key = source.name, index
        if key not in self._items:
            made = self.builder.emit(tvm.ir.TupleGetItem(source, index, span=_span(origin)), self._unique(name))
            self._items[key] = made
        return self._items[key]

    def call(self, region: str, inputs: Sequence[Any], origin: Origin, name: str) -> Any:
        """Call a function that `add_region` added."""
        self._open()
        call = relax.Call(self._regions[region], list(inputs), span=_span(origin))
        return self.builder.emit(call, name_hint=self._unique(name))

    def _unique(self, name: str) -> str:
        """A variable name that no parameter and no earlier node has: Relax itself lets a node shadow a parameter."""
        base = _hint(name)
        chosen, count = base, 0
        while chosen in self._used:
            count += 1
            chosen = f"{base}_{count}"
        self._used.add(chosen)
        return chosen

    def finish(self, outputs: Sequence[Any], attrs: Mapping[str, Any] | None = None) -> Any:
        """Close the function and return the module. `attrs` must be JSON-able; keys get the prefix ``dlc.``."""
        self._open()
        function, block = self._frames
        # An output must be a variable that this block binds, and each result its own.
        bound = [self.builder.emit_output(o) for o in outputs]
        block.__exit__(None, None, None)
        self.builder.emit_func_output(bound[0] if len(bound) == 1 else relax.Tuple(bound))
        function.__exit__(None, None, None)
        module = self.builder.get()
        objects = {"objects": self._objects} if self._objects else {}
        for key, value in {**(attrs or {}), **objects}.items():
            module[self.name] = module[self.name].with_attr(f"dlc.{key}", json.dumps(value))
        return module


def _hint(name: str) -> str:
    """A Relax variable name: the printer would rename odd characters anyway."""
    cleaned = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"v{cleaned}"


def _reason(error: Exception) -> str:
    """The reason alone, on one line, without TVM's spelling of operators, integers and shapes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.split("Check failed:", 1)[-1].strip() if "Check failed" in text else text
    text = re.sub(r'ir\.Op\(.*?name="([\w.]+)".*?support_level=\d+\)', r"\1", text)
    text = re.sub(r"T\.int64\((-?\d+)\)", r"\1", text)
    return text.replace("R.shape(", "(").replace("T.bool", "bool").replace('dtype="', '"')


_register_ops()
