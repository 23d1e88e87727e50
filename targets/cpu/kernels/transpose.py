"""Regions around one transpose that moves the last dimension: square tiles are turned in registers.

Rows of a tile are computed along the input's last dimension, turned by interleaving pairs of vectors log2(rows) times,
bound in the evaluator, and what follows the transpose is computed along the output's last dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dlc.ir.graph import Graph, Node, Value
from dlc.passes.simplify.match import same_shape
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, Operand, hold, let, store, tail_mask
from dlc.targets.cpu.kernels.evaluate import ELEMENTWISE, Evaluator, compute_width, is_one
from dlc.targets.cpu.kernels.loops import int64, nest, serial
from dlc.targets.layout import Layout, simplify

_TABLED = ("dlc.quantize", "dlc.dequantize", "dlc.table")  # inputs other than the first need not broadcast
_WIDEST = 16  # rows of a tile; more do not fit the registers
_FEW = 4  # numbers of the output's last dimension up to which columns are stored as one piece: the colours of a picture


def turned(body: Graph) -> Node | None:
    """The transpose of a body whose outputs all follow it element by element; None for any other body."""
    found = [n for n in body.nodes if n.op == "relax.permute_dims"]
    if len(found) != 1 or any(n.op not in ELEMENTWISE and n.op != "dlc.table" for n in body.nodes if n not in found):
        return None
    (node,) = found
    rank = len(node.output.shape)
    if rank < 2 or int(node.attrs["axes"][-1]) % rank == rank - 1:
        return None
    return node if rides_on(body, node) else None


def rides_on(body: Graph, node: Node) -> bool:
    """Whether all outputs follow `node` element by element, at its shape."""
    values, after = body.values(), {node.output.name}
    for other in body.nodes:
        if after & set(other.inputs):
            elementwise = other.op in ELEMENTWISE or other.op == "dlc.table"
            tabled = other.op in _TABLED and after & set(other.inputs[1:])
            if not elementwise or tabled or not same_shape(other.output.shape, node.output.shape):
                return False
            after.add(other.output.name)
    return all(name in after and same_shape(values[name].shape, node.output.shape) for name in body.outputs)


def join(body: Graph, layouts: Mapping[str, Layout]) -> tuple[Graph, dict[str, Layout]]:
    """Join dimensions that stay neighbours through the transpose; operands must be whole and dense, or one number."""
    node = turned(body)
    if node is None or not all(n.op == node.op or n.op in ELEMENTWISE for n in body.nodes):
        return body, dict(layouts)
    values = body.values()
    own, out = values[node.inputs[0]].shape, node.output.shape
    axes = [int(a) % len(own) for a in node.attrs["axes"]]
    groups = [[axes[0]]]
    for axis in axes[1:]:
        if axis == groups[-1][-1] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    order = sorted(range(len(groups)), key=lambda g: groups[g][0])
    shapes = {
        tuple(map(str, own)): tuple(simplify(prod((own[a] for a in groups[g]), start=1)) for g in order),
        tuple(map(str, out)): tuple(simplify(prod((own[a] for a in group), start=1)) for group in groups),
    }

    def value(old: Value) -> Value:
        return replace(old, shape=shapes.get(tuple(map(str, old.shape)), old.shape))

    single = {name for name, x in values.items() if all(map(is_one, x.shape))}
    plain = all(tuple(map(str, x.shape)) in shapes for name, x in values.items() if name not in single)
    ambiguous = len(shapes) == 1  # a shape that is its own transpose does not say on which side a value is
    if len(groups) == len(axes) or not plain or ambiguous or any(not lay.is_dense for lay in layouts.values()):
        return body, dict(layouts)
    nodes = []
    for old in body.nodes:
        attrs = {**old.attrs, "axes": [order.index(g) for g in range(len(groups))]} if old is node else old.attrs
        if "axis" in attrs:
            attrs = {**attrs, "axis": 0}  # its parameters are single numbers
        nodes.append(replace(old, outputs=tuple(map(value, old.outputs)), attrs=attrs))
    joined = replace(body, inputs=tuple(map(value, body.inputs)), nodes=tuple(nodes))
    fresh = joined.values()
    return joined, {name: Layout.dense(fresh[name].shape) for name in layouts}


def interleave(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose as many vectors as they have lanes (a power of two): vector i becomes the lanes i of all."""
    count = len(rows)
    half = count // 2
    low = [lane for i in range(half) for lane in (i, count + i)]
    high = [half + lane for lane in low]
    rows = list(rows)
    for _ in range(count.bit_length() - 1):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [hold(tirx.Shuffle(list(pair), lanes)) for pair in pairs for lanes in (low, high)]
    return rows


@dataclass(frozen=True)
class _Tiles:
    """One region: `moved` is the output position of the input's last dimension, `axes` the permutation."""

    evaluator: Evaluator
    node: Node
    outputs: Mapping[str, Operand]
    axes: tuple[int, ...]
    moved: int
    size: int

    def tile(self, index: Sequence[Expr], i: Expr, j: Expr, width: Expr, height: Expr) -> None:
        """The tile at (i, j) of (moved, last) output positions; `width` by `height` of it exist, None for all."""
        lanes, rank = self.size, len(self.axes)
        across = None if width is None else let(tail_mask(int64(width), lanes))
        rows: list[Expr] = []
        for row in range(lanes):
            if isinstance(height, int) and row >= height:
                rows.append(rows[0])  # junk that nobody stores
                continue
            # Beyond a symbolic end the last row is read again.
            step = T.min(T.int64(row), height - 1) if height is not None and not isinstance(height, int) else row
            place: list[Expr] = [0] * rank
            for position, axis in enumerate(self.axes):
                place[axis] = index[position]
            place[rank - 1], place[self.axes[-1]] = i, j + step
            value = self.evaluator.value(self.node.inputs[0], place, lanes, across)
            rows.append(v.convert(value, "uint8") if v.element(value) == "bool" else value)
        down = None if height is None else let(tail_mask(int64(height), lanes))
        for column, vector in enumerate(interleave(rows)):
            if isinstance(width, int) and column >= width:
                break
            target = (*index[: self.moved], i + column, *index[self.moved + 1 : -1], j)
            if width is None or isinstance(width, int):
                self.store(target, vector, lanes, down)
            else:
                with T.If(T.int64(column) < width), T.Then():
                    self.store(target, vector, lanes, down)

    def is_narrow(self) -> bool:
        """Whether the output's last dimension is a few numbers that lie close behind those of the next column."""
        last, alone = self.node.output.shape[-1], len(self.evaluator.body.nodes) == 1
        few = isinstance(last, int) and last <= _FEW and self.moved == len(self.axes) - 2
        return alone and few and self.outputs[self.node.output.name].layout.strides[-2:] == (last, 1)

    def narrow(self, index: Sequence[Expr], i: Expr) -> None:
        """Columns i to i + size of a narrow output, which are one piece of memory: rows go into one another."""
        height, rank, rows = int(self.node.output.shape[-1]), len(self.axes), []
        source = self.evaluator.operands[self.node.inputs[0]]
        for row in range(height):
            place: list[Expr] = [0] * rank
            for position, axis in enumerate(self.axes):
                place[axis] = index[position]
            place[rank - 1], place[self.axes[-1]] = i, row
            rows.append(hold(source.load(place, self.size)))
        (operand,) = self.outputs.values()
        base = operand.layout.flat((*index[: self.moved], i, 0))
        for first in range(0, height * self.size, self.size):
            lanes = [e % height * self.size + e // height for e in range(first, first + self.size)]
            store(operand.buffer, simplify(base + first), tirx.Shuffle(rows, lanes), self.size)

    def store(self, target: Sequence[Expr], vector: Expr, lanes: int, mask: Expr) -> None:
        kind = self.node.output.dtype
        self.evaluator.bind(self.node.output.name, v.convert(vector, "bool") if kind == "bool" else vector)
        for name, operand in self.outputs.items():
            operand.store(target, self.evaluator.value(name, target, lanes, mask), lanes, mask)

    def scalar(self, target: Sequence[Expr]) -> None:
        self.evaluator.unbind(self.node.output.name)
        for name, operand in self.outputs.items():
            operand.store(target, self.evaluator.value(name, target), 1)


def _blocks(extent: Expr, size: int) -> tuple[Expr, Expr]:
    """(whole blocks, the rest)."""
    if isinstance(extent, int):
        return divmod(extent, size)
    whole = let(T.floordiv(extent, T.int64(size)))
    return whole, let(extent - whole * size)


def fill(
    body: Graph, inputs: Mapping[str, Operand], outputs: Mapping[str, Operand], isa: Isa, node: Node, masked: bool
) -> None:
    """Emit the loops of a region for which `turned` found `node`."""
    shape = node.output.shape
    rank = len(shape)
    axes = tuple(int(a) % rank for a in node.attrs["axes"])
    moved = axes.index(rank - 1)
    size = min(_WIDEST, isa.lanes(compute_width(body)))
    tiles = _Tiles(Evaluator(body, inputs, isa), node, outputs, axes, moved, size)
    # Without masks, LLVM makes better code of single bytes and short words one after the other.
    narrow = tiles.is_narrow() and (masked or v.width(node.output.dtype) == 32)
    outer = [n for axis, n in enumerate(shape[:-1]) if axis != moved]
    (wide, width), (high, height) = _blocks(shape[moved], size), _blocks(shape[-1], size)

    def plane(given: tuple[Expr, ...]) -> None:
        index = (*given[:moved], 0, *given[moved:], 0)

        def strip(i: Expr, some: Expr) -> None:
            if some is None and narrow:
                tiles.narrow(index, i)
                return
            serial(high, lambda b: tiles.tile(index, i, b * size, some, None))
            if masked:
                _if_any(height, lambda: tiles.tile(index, i, high * size, some, height))

        serial(wide, lambda b: strip(b * size, None))
        if masked:
            _if_any(width, lambda: strip(wide * size, width))
            return

        def single(i: Expr, j: Expr) -> None:
            tiles.scalar((*index[:moved], i, *index[moved + 1 : -1], j))

        serial(wide * size, lambda i: serial(shape[-1], lambda j: single(i, j), begin=high * size))
        serial(shape[moved], lambda i: serial(shape[-1], lambda j: single(i, j)), begin=wide * size)

    nest(outer, plane)


def _if_any(count: Expr, action: Callable[[], None]) -> None:
    """Run `action` if `count` is not zero."""
    if isinstance(count, int):
        if count:
            action()
        return
    with T.If(count > T.int64(0)), T.Then():
        action()
