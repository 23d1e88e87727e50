"""The rules of the IR, as code. Runs after every pass in tests and under ``DLC_DEBUG=1``."""

from __future__ import annotations

from typing import Any

from dlc.ir.convert import view
from dlc.ir.graph import Graph, is_tensor
from dlc.ir.ops import OPS

INTEGERS = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
SMALL_FLOATS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPES = frozenset(("bool", *INTEGERS, *FLOATS, *SMALL_FLOATS))


class IrError(AssertionError):
    """The IR breaks one of its rules: a defect of the compiler, not of the user's model."""


def _check(condition: bool, where: str, text: str) -> None:
    if not condition:
        raise IrError(f"{where}: {text}")


def _verify_graph(graph: Graph, where: str) -> None:
    known = {v.name for v in graph.inputs} | set(graph.constants)
    _check(len({v.name for v in graph.inputs}) == len(graph.inputs), where, "two inputs of one name")
    for node in graph.nodes:
        label = f"{where}: {node.op} {node.origin}"
        _check(node.op == "call" or node.op in OPS, label, f"operator '{node.op}' is not in the table")
        for name in node.inputs:
            _check(name in known, label, f"reads '{name}' before it is made")
        for value in node.outputs:
            _check(value.name not in known, label, f"'{value.name}' is made twice")
            _check(value.dtype in DTYPES or not is_tensor(value.dtype), label, f"dtype {value.dtype}")
            known.add(value.name)
        _verify_node(graph, node, label)
        for block in node.blocks:
            _verify_graph(block, label)
        if node.body is not None:
            _check(len(node.body.inputs) == len(node.inputs), label, "region called with the wrong number of inputs")
            for array in node.body.constants.values():
                _check(array.size == 1, label, "a region holds a constant that is not a scalar")
            _check(all(n.op != "call" for n in node.body.nodes), label, "a region calls another region")
            _verify_graph(node.body, label)
    for name in graph.outputs:
        _check(name in known, where, f"output '{name}' is not made")


def _verify_node(graph: Graph, node: Any, label: str) -> None:
    if node.op == "dlc.requantize":
        attrs = node.attrs
        _check(attrs["mode"] in ("float", "fixed"), label, f"mode {attrs['mode']}")
        _check(attrs["lo"] <= attrs["hi"], label, "empty clamp range")
        _check(len(attrs["term_zero_points"]) == attrs["terms"], label, "one zero point a term")
    if node.op in ("dlc.conv", "dlc.matmul"):
        integer = node.attrs["out_dtype"] == "int32"
        _check(integer or node.attrs["out_dtype"].startswith(("float", "bfloat")), label, "out_dtype")


def verify(module: Any, after: str = "") -> None:
    """Check every rule; raises IrError that names the pass, the function and the node."""
    where = f"after {after}: main" if after else "main"
    _verify_graph(view(module), where)
