"""Compute any value of a region's body at a logical index, as a vector along the value's last dimension.

This is how every family of kernels computes what is fused into it: a pointwise kernel evaluates its outputs over the
whole index space, a contraction binds its accumulators and evaluates its output tile by tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm_ffi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, Operand, hold, splat
from dlc.targets.cpu.kernels.elementwise import EMIT, Call
from dlc.targets.cpu.kernels.lookup import bytes_at, in_registers
from dlc.targets.cpu.kernels.quantized import EMIT_QUANTIZED, table_index
from dlc.targets.cpu.kernels.storage import compute_dtype, round_trip, widen
from dlc.targets.layout import simplify

ELEMENTWISE = {**EMIT, **EMIT_QUANTIZED}
_QUANTIZE = ("dlc.quantize", "dlc.dequantize")
# Operators that give a value of their inputs' type unrounded, and the cast, which rounds by itself.
_EXACT = frozenset(f"relax.{name}" for name in ("abs", "astype", "maximum", "minimum", "negative", "nn.relu", "where"))


@dataclass(frozen=True)
class At:
    """Where a value is wanted.

    Attributes:
        index: one component per dimension of the value.
        lanes: how many elements.
        mask: lanes outside it may hold anything and must not be read; None for all lanes.
        gather: False: components are scalars and the lanes run along the last dimension. True: components are scalars
            or vectors of `lanes` positions, every one of them valid.
    """

    index: tuple[Expr, ...]
    lanes: int
    mask: Expr = None
    gather: bool = False


def is_one(extent: Expr) -> bool:
    """Whether an extent is known to be one."""
    return isinstance(extent, int) and extent == 1


def last_scalar(at: At) -> bool:
    """No component varies over the lanes."""
    return all(isinstance(i, int) or v.lanes_of(i) == 1 for i in at.index)


def to_gather(at: At) -> At:
    """The same elements with the last component as a vector; lanes outside the mask go to position 0."""
    if at.gather or at.lanes == 1:
        return at
    last = T.ramp(as_int64(at.index[-1]), T.int64(1), at.lanes)
    if at.mask is not None:
        last = T.Select(at.mask, last, T.broadcast(T.int64(0), at.lanes))
    return At((*at.index[:-1], hold(last)), at.lanes, None, True)


def as_int64(value: Expr) -> Expr:
    """An index component as an int64 expression."""
    return T.int64(value) if isinstance(value, int) else v.convert(value, "int64")


class _Memo:
    """Values by place; each is good while the loop or branch that it was computed in is open."""

    def __init__(self) -> None:
        self.entries: dict[Any, list[tuple[Any, At, Expr]]] = {}

    @staticmethod
    def _key(name: str, at: At) -> Any:
        index = tuple(i if isinstance(i, int) else tvm_ffi.structural_hash(i) for i in at.index)
        return name, at.lanes, at.gather, index

    @staticmethod
    def _same(a: At, b: At) -> bool:
        pairs = [*zip(a.index, b.index, strict=True), (a.mask, b.mask)]
        return all(x is y or (x is not None and y is not None and tvm_ffi.structural_equal(x, y)) for x, y in pairs)

    def get(self, name: str, at: At) -> Expr | None:
        open_frames = IRBuilder.current().frames
        for frame, place, value in self.entries.get(self._key(name, at), ()):
            if any(frame.same_as(f) for f in open_frames) and self._same(place, at):
                return value
        return None

    def put(self, name: str, at: At, value: Expr) -> None:
        frame = IRBuilder.current().frames[-1]
        self.entries.setdefault(self._key(name, at), []).append((frame, at, value))


class Evaluator:
    """Evaluates the values of `body` from `operands` (its inputs, by the body's names).

    Not every input needs an operand: a value that is bound is never computed.
    """

    def __init__(self, body: Graph, operands: Mapping[str, Operand], isa: Isa) -> None:
        self.body, self.operands, self.isa = body, operands, isa
        self.values = body.values()
        self.producers = body.producers()
        self.pieces: dict[str, int] = {}  # concat output -> the only input that is in range here
        self._bound: dict[str, Expr] = {}
        self._memo = _Memo()

    def bind(self, name: str, vector: Expr) -> None:
        """Set a value for the places that are evaluated next, instead of computing it."""
        self._bound[name] = vector
        self._memo = _Memo()

    def unbind(self, name: str) -> None:
        """Compute the value again."""
        self._bound.pop(name, None)
        self._memo = _Memo()

    def value(self, name: str, index: Sequence[Expr], lanes: int = 1, mask: Expr = None) -> Expr:
        """`lanes` elements of value `name` from the logical `index` on, along its last dimension.

        The element type is `compute_dtype` of the value's. Lanes outside `mask` may hold anything.
        """
        return self.at(name, At(tuple(index), lanes, mask))

    def at(self, name: str, at: At) -> Expr:
        """The value at any kind of place."""
        if name in self._bound:
            bound = self._bound[name]
            assert v.lanes_of(bound) == at.lanes, f"'{name}' is bound with {v.lanes_of(bound)} lanes, not {at.lanes}"
            return bound
        scalar = self.scalar(name)
        if scalar is not None:
            return v.constant(scalar, compute_dtype(self.values[name].dtype), at.lanes)
        if at.gather and last_scalar(at):
            return splat(self.at(name, At(at.index, 1)), at.lanes)
        found = self._memo.get(name, at)
        if found is None:
            found = hold(self._compute(name, at))
            self._memo.put(name, at, found)
        return found

    def scalar(self, name: str) -> Any:
        """The number that a constant of one element holds; None for other values."""
        array = self.body.constants.get(name)
        return None if array is None or array.size != 1 else array.reshape(-1)[0].item()

    def _compute(self, name: str, at: At) -> Expr:
        if name in self.operands:
            return self._load(self.operands[name], at)
        node = self.producers[name]
        if node.op in ELEMENTWISE:
            return self._elementwise(node, at)
        if node.op == "dlc.table":
            return self._lookup(node, at)
        from dlc.targets.cpu.kernels.injective import INJECTIVE

        return INJECTIVE[node.op](self, node, at)

    def _load(self, operand: Operand, at: At) -> Expr:
        if not at.gather:
            return widen(operand.load(at.index, at.lanes, at.mask), operand.dtype)
        flat: Expr = as_int64(operand.layout.offset)
        for component, stride in zip(at.index, operand.layout.strides, strict=True):
            flat = flat + as_int64(component) * as_int64(stride)
        return widen(operand.buffer[flat], operand.dtype)

    def _lookup(self, node: Node, at: At) -> Expr:
        codes = self.broadcast(node.inputs[0], node.output.shape, at)
        table = self.operands.get(node.inputs[1])
        if table is not None and in_registers(table, at.lanes, self.isa):
            codes = (
                v.reinterpret(codes, "uint8") ^ v.constant(128, "uint8", at.lanes)
                if v.element(codes) == "int8"
                else codes
            )
            return bytes_at(table, hold(codes))
        return self.at(node.inputs[1], At((hold(table_index(codes)),), at.lanes, None, at.lanes > 1))

    def _elementwise(self, node: Node, at: At) -> Expr:
        shape = node.output.shape
        args = []
        for position, name in enumerate(node.inputs):
            if position and node.op in _QUANTIZE and len(self.values[name].shape) == 1 and len(shape) > 1:
                args.append(self._along_axis(name, node.attrs["axis"] % len(shape), shape, at))
            else:
                args.append(self.broadcast(name, shape, at))
        call = Call(
            node.attrs,
            tuple(self.values[n].dtype for n in node.inputs),
            node.output.dtype,
            self.isa,
            tuple(self.scalar(n) for n in node.inputs),
        )
        result = ELEMENTWISE[node.op](call, args)
        # As the meaning has it, whatever is fused: every operator rounds its result to its type.
        return result if node.op in _EXACT else round_trip(hold(result), node.output.dtype)

    def _along_axis(self, name: str, axis: int, shape: Sequence[Expr], at: At) -> Expr:
        """A vector of parameters along one axis of a tensor of `shape`, at the tensor's place."""
        if is_one(self.values[name].shape[0]):
            return splat(self.at(name, At((0,), 1)), at.lanes)
        if at.gather or axis == len(shape) - 1:
            return self.at(name, replace(at, index=(at.index[axis],)))
        return splat(self.at(name, At((at.index[axis],), 1)), at.lanes)

    def broadcast(self, name: str, shape: Sequence[Expr], at: At) -> Expr:
        """A value that numpy broadcasts to `shape`, at a place of that shape."""
        if self.scalar(name) is not None:  # whatever its rank is: dimensions of `shape` may have been joined
            return self.at(name, at)
        own = self.values[name].shape
        shift = len(shape) - len(own)
        fixed = [is_one(n) and not is_one(shape[shift + i]) for i, n in enumerate(own)]
        index = tuple(0 if f else at.index[shift + i] for i, f in enumerate(fixed))
        if at.gather or at.lanes == 1:
            return self.at(name, replace(at, index=index))
        if own and not fixed[-1]:
            return self.at(name, replace(at, index=index))
        return splat(self.at(name, At(index, 1)), at.lanes)


def compute_width(body: Graph) -> int:
    """Bits of the widest type that the body computes with, which sets the number of lanes; at least 8, at most 64."""
    widths = [v.width(compute_dtype(value.dtype)) for value in body.values().values()]
    inner = [32 for node in body.nodes if node.op.startswith("dlc.") and node.op != "dlc.table"]
    return max([8, *widths, *inner])


def lanes_for(body: Graph, isa: Isa) -> int:
    """Lanes that fill one vector register with the widest type of the body."""
    return isa.lanes(compute_width(body))


def dense_strides(shape: Sequence[Expr]) -> list[Expr]:
    """Row-major strides of a shape."""
    strides: list[Expr] = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = simplify(strides[axis + 1] * shape[axis + 1])
    return strides
