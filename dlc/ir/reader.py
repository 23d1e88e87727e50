"""From Relax to the plain graph view."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tvm
from tvm import relax

from dlc.ir.graph import Graph, Node
from dlc.ir.spelling import READ, constant_array, origin_of, plain, plain_attrs, value_of

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
        self.nodes.append(Node("dlc.item", (source,), outputs, {"index": index}, origin_of(value)))

    def call(self, var: Any, call: Any) -> None:
        outputs = (value_of(var),)
        origin = origin_of(call)
        if isinstance(call.op, tvm.ir.GlobalVar):
            body = view(self.module, call.op.name_hint if hasattr(call.op, "name_hint") else call.op.name)
            inputs = tuple(self.name_of(a) for a in call.args)
            self.nodes.append(Node("call", inputs, outputs, dict(body.attrs), origin, body))
            return
        name = str(call.op.name)
        ours = name.startswith("dlc.")
        attrs = plain_attrs(call.attrs) if ours else READ.get(name, lambda c: {})(call)
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


def _function_attrs(function: Any) -> dict[str, Any]:
    attrs = function.attrs
    if attrs is None:
        return {}
    result = {}
    for key in attrs.keys():  # noqa: SIM118
        text = plain(attrs[key])
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
