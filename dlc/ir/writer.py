"""From nodes to Relax functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Op
from tvm.relax.expr import _update_type

from dlc.ir.dims import substitute, symbols
from dlc.ir.graph import Origin, Value, free_name, is_tensor
from dlc.ir.ops import OPS
from dlc.ir.reader import inner_functions
from dlc.ir.spelling import BUILD, extent, int64, plain, read_from, relax_function, shape_of, span, type_of

#: numpy holds these one a byte, TVM packs them: `FunctionBuilder.constant` takes none of them.
PACKED = ("int4", "uint4", "int2", "uint2")


class IrTypeError(ValueError):
    """An operator's operands do not fit it; the text is the reason alone, without the node's name."""


class UndecidedTypeError(IrTypeError):
    """Whether operands fit depends on the sizes of symbols."""


def _expression(op: str, inputs: list[Any], attrs: dict[str, Any], origin: Origin) -> Any:
    if op.startswith("dlc."):
        node = tvm.ir.make_node("ir.DictAttrs", **attrs)
        return relax.Call(Op.get(op), inputs, node, span=span(origin))
    call = BUILD[op](inputs, attrs) if op in BUILD else relax_function(op)(*inputs)
    return relax.Call(call.op, list(call.args), call.attrs, list(call.ty_args), span=span(origin))


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
            return tuple(plain(d) for d in shape), dtype
        operands = [relax.Var("t", relax.TensorType([int64(d) for d in s], d)) for s, d in types]
        typed = relax.BlockBuilder().normalize(_expression(op, operands, dict(attrs), Origin())).ty
    except Exception as error:
        raise IrTypeError(_reason(error)) from error
    if typed.shape is None:
        texts = " and ".join(f"[{', '.join(str(d) for d in s)}]" for s, _ in types)
        raise UndecidedTypeError(f"cannot tell whether the extents of {texts} agree")
    return tuple(extent(d) for d in typed.shape.values), str(typed.dtype)


class FunctionBuilder:
    """Writes Relax functions node by node. Attribute values of functions are stored as JSON under ``dlc.*`` keys."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.builder = relax.BlockBuilder()
        self._regions: dict[str, Any] = {}
        self._result_shapes: dict[str, tuple[Any, ...]] = {}
        self.params: list[Any] = []
        self._frames: list[Any] = []
        self._used: set[str] = set()
        self._objects: dict[str, str] = {}
        self._items: dict[tuple[str, int], Any] = {}

    def input(self, name: str, shape: Sequence[Any], dtype: str) -> Any:
        """Declare a parameter; all inputs come before the first `emit`."""
        var = relax.Var(name, type_of(Value(name, tuple(shape), dtype)))
        if not is_tensor(dtype):
            self._objects[name] = dtype
        self.params.append(var)
        self._used.add(name)
        return var

    def constant(self, array: np.ndarray) -> Any:
        """A constant; the dtype is kept exactly."""
        known = read_from(array)
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
            operands, given = list(inputs), dict(attrs or {})
            expr = _expression(op, operands, given, origin)
            if op == "relax.strided_slice" and min(given["strides"]) < 0:
                # Relax does not see that extents with negative divisors are equal: write them as we do.
                typed = self.builder.normalize(_expression(op, operands, given, origin))
                _update_type(expr, relax.TensorType([int64(d) for d in shape_of(typed)], typed.ty.dtype))
            return self.builder.emit(expr, name_hint=self._unique(name or origin.value or op.rsplit(".", 1)[-1]))
        except Exception as error:
            raise IrTypeError(_reason(error)) from error

    def add_region(self, name: str, function: Any) -> None:
        """Add a function that nodes may `call` or run as a block; before the first `emit`."""
        self._regions[name] = self.builder.add_func(function, name)
        result = function.body.body
        if isinstance(result.ty, relax.TensorType):
            self._result_shapes[name] = shape_of(result)

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
        return self.builder.emit(relax.Call(Op.get(op), operands, node, span=span(origin)), self._unique(name))

    def item(self, source: Any, index: int, origin: Origin, name: str) -> Any:
        """One result of a host operator; asked for twice, the same variable."""
        key = source.name, index
        if key not in self._items:
            made = self.builder.emit(tvm.ir.TupleGetItem(source, index, span=span(origin)), self._unique(name))
            self._items[key] = made
        return self._items[key]

    def call(self, region: str, inputs: Sequence[Any], origin: Origin, name: str) -> Any:
        """Call a function that `add_region` added."""
        self._open()
        call = relax.Call(self._regions[region], list(inputs), span=span(origin))
        extents = self._result_shapes.get(region, ())
        if not all(isinstance(d, int) for d in extents):
            # Relax forgets extents over symbols that no parameter has by themselves; ours are one a name.
            typed = self.builder.normalize(relax.Call(self._regions[region], list(inputs))).ty
            if typed.shape is None:
                given = {str(v.name): v for v in symbols(d for x in inputs for d in shape_of(x))}
                shape = [int64(substitute(d, given)) for d in extents]
                _update_type(call, relax.TensorType(shape, typed.dtype))
        return self.builder.emit(call, name_hint=self._unique(name))

    def _unique(self, name: str) -> str:
        """A variable name that no parameter and no earlier node has: Relax itself lets a node shadow a parameter."""
        chosen = free_name(_hint(name), self._used)
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
