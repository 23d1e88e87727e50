"""Reshapes that only add or drop extents of one move behind what reads them, so that they part no operators.

A matrix product between such reshapes (a convolution of one position is one) keeps its bias, its activation and its
slices next to it. A transpose that moves nothing but extents of one is such a reshape itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.ir.graph import Node
from dlc.ir.ops.relax_ops import BINARY, UNARY
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.simplify.match import same_shape, unnamed
from dlc.pipeline import Context, Pass

VIEW = "relax.reshape"
_ELEMENTWISE = frozenset(f"relax.{name}" for name in (*UNARY, *BINARY, "where", "astype"))


def _long(shape: Sequence[Any]) -> list[int]:
    """The axes whose extent is not known to be one."""
    return [axis for axis, extent in enumerate(shape) if not same(extent, 1)]


def _squeezed(shape: Sequence[Any]) -> list[Any]:
    return [shape[axis] for axis in _long(shape)]


def _source(rw: Rewriter, name: str) -> str | None:
    """What `name` is a reshape of, where that has a lower rank and only lacks extents of one."""
    view = rw.producer(name, VIEW)
    if view is None:
        return None
    before, after = rw.value(view.inputs[0]).shape, rw.value(name).shape
    fits = len(before) < len(after) and same_shape(_squeezed(before), _squeezed(after))
    return view.inputs[0] if fits else None


def _elementwise(rw: Rewriter, node: Node) -> Any:
    full = node.output.shape
    found = [_source(rw, n) for n in node.inputs if same_shape(rw.value(n).shape, full)]
    sources = [name for name in found if name is not None]
    if not sources:
        return None
    wanted = rw.value(sources[0]).shape
    axis_of = dict(zip(_long(wanted), _long(full), strict=True))

    def fitted(name: str) -> Any:
        own = rw.value(name).shape
        padded = [1] * (len(full) - len(own)) + list(own)
        shape = tuple(padded[axis_of[axis]] if axis in axis_of else 1 for axis in range(len(wanted)))
        array = rw.constant(name)
        if array is not None:
            return rw.const(array.reshape(shape))
        return rw.emit(VIEW, [rw.new(name)], {"shape": shape}, unnamed(node.origin))

    result = rw.emit(node.op, [fitted(name) for name in node.inputs], node.attrs, unnamed(node.origin))
    return rw.emit(VIEW, [result], {"shape": full}, node.origin)


def _slice(rw: Rewriter, node: Node) -> Any:
    source = _source(rw, node.inputs[0])
    if source is None:
        return None
    full, before = rw.value(node.inputs[0]).shape, rw.value(source).shape
    axis_of = dict(zip(_long(full), _long(before), strict=True))
    axes = [axis % len(full) for axis in node.attrs["axes"]]
    if not all(axis in axis_of for axis in axes):
        return None
    attrs = {**node.attrs, "axes": tuple(axis_of[axis] for axis in axes)}
    result = rw.emit(node.op, [rw.new(source)], attrs, unnamed(node.origin))
    return rw.emit(VIEW, [result], {"shape": node.output.shape}, node.origin)


def _transpose(rw: Rewriter, node: Node) -> Any:
    long = set(_long(rw.value(node.inputs[0]).shape))
    kept = [axis for axis in node.attrs["axes"] if axis in long]
    if kept != sorted(kept):
        return None
    return rw.emit(VIEW, [rw.new(node.inputs[0])], {"shape": node.output.shape}, node.origin)


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""

    def handle(rw: Rewriter, node: Node) -> Any:
        if node.op in _ELEMENTWISE:
            return _elementwise(rw, node)
        rule = {"relax.strided_slice": _slice, "relax.permute_dims": _transpose}.get(node.op)
        return rule(rw, node) if rule is not None else None

    return rewrite(module, handle)


PASS = Pass("views", run)
