"""A region's body as C expressions: the value of any of its nodes at any place, computed where it is asked for.

An `Index` is one C expression (a name or a number) for each dimension. Values are named once per place and scope, so
that what two readers share is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dlc.ir.graph import Graph, Node
from dlc.targets.gpu.kernels.elementwise import EMIT, Call
from dlc.targets.gpu.kernels.quantized import EMIT_QUANTIZED, table_index
from dlc.targets.gpu.source import Writer, c_type, has_type, literal

Index = tuple[str, ...]
Follow = Callable[["Evaluator", Node, Index], str]
ELEMENTWISE = {**EMIT, **EMIT_QUANTIZED}
_PARAMETRIC = frozenset({"dlc.quantize", "dlc.dequantize"})  # inputs 1 and 2 are vectors along an axis


def add(a: str, b: str) -> str:
    """The sum of two int expressions, folded where it is plain."""
    if a.lstrip("-").isdigit() and b.lstrip("-").isdigit():
        return str(int(a) + int(b))
    if b == "0":
        return a
    return b if a == "0" else f"({a} + {b})"


def multiply(a: str, b: str) -> str:
    """The product of two int expressions, folded where it is plain."""
    if a.isdigit() and b.isdigit():
        return str(int(a) * int(b))
    if "0" in (a, b):
        return "0"
    if b == "1":
        return a
    return b if a == "1" else f"{a} * {b}"


class Evaluator:
    """Writes the expressions of one body.

    `follow` holds what is not elementwise: an operator's name -> a function that writes its value at a place.
    """

    def __init__(self, writer: Writer, body: Graph, follow: Mapping[str, Follow]) -> None:
        self.w, self.body, self.follow = writer, body, follow
        self.values, self.producers = body.values(), body.producers()
        self._known: dict[tuple[str, Index], str] = {}

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """A braced scope: what is named inside is not known outside."""
        known = dict(self._known)
        with self.w.block(header):
            yield
        self._known = known

    # --- places ---

    def extents(self, shape: Sequence[Any]) -> list[str]:
        """A shape as C text."""
        return [self.w.extent(d) for d in shape]

    def flat(self, index: Sequence[str], shape: Sequence[Any]) -> str:
        """Row-major position."""
        position = "0"
        for component, extent in zip(index, self.extents(shape), strict=True):
            position = add(multiply(f"({position})" if "+" in position else position, extent), component)
        return position

    def unflatten(self, position: str, shape: Sequence[Any]) -> Index:
        """The index of a row-major position (a name)."""
        extents = self.extents(shape)
        index: list[str] = []
        rest = position
        for axis in range(len(extents) - 1, -1, -1):
            if extents[axis] == "1":
                index.append("0")
            elif all(e == "1" for e in extents[:axis]):
                index.append(rest)
                rest = "0"
            else:
                index.append(self.w.let("int", f"{rest} % {extents[axis]}", "i"))
                rest = self.w.let("int", f"{rest} / {extents[axis]}", "i")
        return tuple(reversed(index))

    def broadcast(self, shape: Sequence[Any], index: Index) -> Index:
        """numpy's broadcast: where an operand of `shape` is read for an output at `index`."""
        tail = index[len(index) - len(shape) :]
        return tuple("0" if isinstance(d, int) and d == 1 else i for d, i in zip(shape, tail, strict=True))

    # --- values ---

    def bind(self, name: str, index: Index, value: str) -> None:
        """State what a value is at a place: an anchor's result."""
        self._known[name, index] = value

    def load(self, name: str, position: str) -> str:
        """An element of a region input at a flat position."""
        return f"{self.w.pointer(name, self.values[name].dtype)}[{position}]"

    def at(self, name: str, index: Index) -> str:
        """The value of `name` at `index`: a C name or number of the value's type."""
        value = self.values[name]
        if name in self.body.constants:
            return literal(self.body.constants[name].reshape(-1)[0], value.dtype)
        key = (name, index)
        if key not in self._known:
            node = self.producers.get(name)
            text = self.load(name, self.flat(index, value.shape)) if node is None else self._compute(node, index)
            self._known[key] = self.w.let(c_type(value.dtype), text)
        return self._known[key]

    def _compute(self, node: Node, index: Index) -> str:
        if node.op in self.follow:
            return self.follow[node.op](self, node, index)
        if node.op == "dlc.table":
            q, table = node.inputs
            return self.load(table, table_index(self.at(q, index), self.values[q].dtype))
        arguments = [self.at(n, self._operand_index(node, k, index)) for k, n in enumerate(node.inputs)]
        dtypes = tuple(self.values[n].dtype for n in node.inputs)
        return ELEMENTWISE[node.op](Call(node.attrs, dtypes, node.output.dtype, self.w), arguments)

    def _operand_index(self, node: Node, position: int, index: Index) -> Index:
        shape = self.values[node.inputs[position]].shape
        if position and node.op in _PARAMETRIC and len(shape) == 1 and len(index) > 1:
            return ("0",) if shape[0] == 1 else (index[node.attrs["axis"]],)
        return self.broadcast(shape, index)


def unsupported(body: Graph, follow: Mapping[str, Any], anchor: str = "") -> str | None:
    """Why the nodes of a body, `anchor` (a value) apart, cannot be written; None when they can."""
    for value in body.values().values():
        if not has_type(value.dtype):
            return f"elements of {value.dtype}"
    for node in body.nodes:
        if node.output.name == anchor or node.op in ELEMENTWISE or node.op in follow or node.op == "dlc.table":
            continue
        return f"operator {node.op}"
    large = next((n for n, a in body.constants.items() if a.size != 1), None)
    return None if large is None else f"constant '{large}' has more than one element"
