"""Turn convolutions and pools to channels-last, and let everything between them follow.

Each value is kept in one or both of two forms: as the graph has it, and with channels last. Operators that understand
channels-last take that form; the others get a `permute_dims`. Constants are turned at compile time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.ir.graph import Node, Origin
from dlc.ir.ops import OPS
from dlc.ir.ops.windows import CHANNELS_FIRST, CHANNELS_LAST
from dlc.ir.rewrite import Rewriter, copy_node
from dlc.pipeline import Context, Pass


def to_last(rank: int) -> list[int]:
    """The permutation (N, C, spatial...) -> (N, spatial..., C)."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """Inverse of `to_last`."""
    return [0, rank - 1, *range(1, rank - 1)]


def _axis(axis: int, rank: int) -> int:
    """Where a channels-first axis lies in the channels-last form."""
    return to_last(rank).index(axis % rank)


def _last(node: Node) -> Origin:
    return replace(node.origin, channels_last=True)


def _permute(rw: Rewriter, expr: Any, shape: Sequence[Any], axes: Sequence[int]) -> Any:
    """Transpose; a reshape when only extents of one change places, since that moves no memory."""
    moved = [a for a in axes if shape[a] != 1]
    if moved == sorted(moved):
        return rw.emit("relax.reshape", [expr], {"shape": [shape[a] for a in axes]})
    return rw.emit("relax.permute_dims", [expr], {"axes": list(axes)})


def _feeds_windows(rw: Rewriter, node: Node) -> bool:
    """A quantiser in front of a convolution: turned before it, so that it writes the convolution's padded input."""
    readers = rw.consumers[node.output.name]
    return node.op == "dlc.quantize" and any(r.op in ("dlc.conv", "dlc.pool") for r in readers)


class _Turner:
    """The handler: remembers the channels-last form of every value that has one."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    # --- the two forms of a value ---

    def as_last(self, rw: Rewriter, name: str) -> Any:
        if name not in self.last:
            array = rw.constant(name)
            if array is not None:
                self.last[name] = rw.const(np.ascontiguousarray(array.transpose(to_last(array.ndim))))
            else:
                shape = rw.value(name).shape
                self.last[name] = _permute(rw, rw.new(name), shape, to_last(len(shape)))
        return self.last[name]

    def settle(self, rw: Rewriter, name: str) -> Any:
        """Make sure that the channels-first form exists."""
        if name not in rw.env and name in self.last:
            shape = rw.value(name).shape
            turned = [shape[a] for a in to_last(len(shape))]
            rw.env[name] = _permute(rw, self.last[name], turned, to_first(len(shape)))
        return rw.new(name)

    def aligned(self, rw: Rewriter, name: str, rank: int) -> Any | None:
        """An elementwise operand in channels-last form, or None when it has none."""
        value = rw.value(name)
        if len(value.shape) == rank:
            return self.as_last(rw, name)
        if all(d == 1 for d in value.shape):
            return self.settle(rw, name)
        array = rw.constant(name)
        if array is None:
            return None
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        return rw.const(np.ascontiguousarray(full.transpose(to_last(rank))))

    def parameter(self, rw: Rewriter, name: str, rank: int) -> Any | None:
        """A scale or zero point: a scalar, a vector along the node's axis, or one that broadcasts as operands do."""
        return self.settle(rw, name) if len(rw.value(name).shape) <= 1 else self.aligned(rw, name, rank)

    # --- operators ---

    def window(self, rw: Rewriter, node: Node) -> Any:
        inputs = [self.as_last(rw, node.inputs[0]), *(self.settle(rw, n) for n in node.inputs[1:])]
        return rw.emit(node.op, inputs, {**node.attrs, "layout": CHANNELS_LAST}, _last(node))

    def elementwise(self, rw: Rewriter, node: Node) -> Any | None:
        rank = len(node.output.shape)
        if rank < 3 or not any(n in self.last and rw.constant(n) is None for n in node.inputs):
            return None
        if node.op in ("dlc.quantize", "dlc.dequantize"):
            inputs = [self.as_last(rw, node.inputs[0]), *(self.parameter(rw, n, rank) for n in node.inputs[1:])]
            attrs = {**node.attrs, "axis": _axis(node.attrs["axis"], rank)}
            return None if any(i is None for i in inputs) else rw.emit(node.op, inputs, attrs, _last(node))
        if node.op == "dlc.table":
            return rw.emit(
                node.op, [self.as_last(rw, node.inputs[0]), self.settle(rw, node.inputs[1])], {}, _last(node)
            )
        inputs = [self.aligned(rw, n, rank) for n in node.inputs]
        return None if any(i is None for i in inputs) else rw.emit(node.op, inputs, node.attrs, _last(node))

    def structural(self, rw: Rewriter, node: Node) -> Any | None:
        name = node.inputs[0]
        rank = len(rw.value(name).shape)
        attrs: dict[str, Any] = dict(node.attrs)
        if node.op == "relax.concat":
            if not any(n in self.last for n in node.inputs):
                return None
            attrs["axis"] = _axis(attrs["axis"], rank)
            return rw.emit(node.op, [self.as_last(rw, n) for n in node.inputs], attrs, _last(node))
        if node.op == "relax.strided_slice":
            attrs["axes"] = [_axis(a, rank) for a in attrs["axes"]]
        elif node.op == "relax.nn.pad":
            pairs = np.asarray(attrs["pad_width"]).reshape(rank, 2)[to_last(rank)]
            attrs["pad_width"] = [int(v) for v in pairs.reshape(-1)]
        elif node.op == "dlc.resize":
            turn = to_last(rank)
            halves = attrs["roi"][:rank], attrs["roi"][rank:]
            attrs |= {key: tuple(attrs[key][a] for a in turn) for key in ("shape", "scales")}
            attrs["roi"] = tuple(half[a] for half in halves for a in turn if half)
        elif node.op in ("relax.nn.softmax", "relax.nn.log_softmax"):
            attrs["axis"] = _axis(attrs["axis"], rank)
        else:
            return None
        return rw.emit(node.op, [self.as_last(rw, name)], attrs, _last(node))

    def reduction(self, rw: Rewriter, node: Node) -> tuple[Any, bool] | None:
        """(new expression, whether it is in channels-last form)."""
        rank = len(rw.value(node.inputs[0]).shape)
        axes = [a % rank for a in node.attrs["axes"]]
        keep = node.attrs["keepdims"]
        # Without keepdims the two forms agree only when every spatial axis goes.
        if not keep and not set(range(2, rank)) <= set(axes):
            return None
        attrs = {"axes": sorted(_axis(a, rank) for a in axes), "keepdims": keep}
        origin = _last(node) if keep else node.origin
        return rw.emit(node.op, [self.as_last(rw, node.inputs[0])], attrs, origin), bool(keep)

    def reshape(self, rw: Rewriter, node: Node) -> Any | None:
        """Dropping spatial extents of one is the same in both forms."""
        name = node.inputs[0]
        shape = rw.value(name).shape
        if name in rw.env or any(d != 1 for d in shape[2:]) or len(node.attrs["shape"]) != 2:
            return None
        return rw.emit("relax.reshape", [self.last[name]], node.attrs, node.origin)

    def __call__(self, rw: Rewriter, node: Node) -> Any:
        name = node.output.name
        spec = OPS[node.op]
        turned: Any = None
        is_last = True
        if node.op in ("dlc.conv", "dlc.pool") and node.attrs["layout"] == CHANNELS_FIRST:
            turned = self.window(rw, node)
        elif spec.kind == "elementwise":
            if _feeds_windows(rw, node):
                self.as_last(rw, node.inputs[0])
            turned = self.elementwise(rw, node)
        elif node.inputs and node.inputs[0] in self.last and len(node.output.shape) >= 2:
            if node.op == "relax.reshape":
                turned, is_last = self.reshape(rw, node), False
            elif spec.kind == "reduction" and "axes" in node.attrs and "keepdims" in node.attrs:
                turned, is_last = self.reduction(rw, node) or (None, False)
            else:
                turned = self.structural(rw, node)
        if turned is not None and is_last:
            self.last[name] = turned
            # The channels-first form is made when somebody asks for it.
            return _LATER
        if turned is not None:
            return turned
        return copy_node(rw.builder, node, [self.settle(rw, n) for n in node.inputs])


_LATER = object()


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    rw, turner = Rewriter(module), _Turner()
    for node in rw.graph.nodes:
        expr = turner(rw, node)
        if expr is not _LATER:
            rw.env[node.output.name] = expr
    return rw.finish([turner.settle(rw, name) for name in rw.graph.outputs])


PASS = Pass("channels-last", run)
