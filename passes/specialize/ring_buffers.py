"""A carried state that every iteration shifts by one becomes a ring buffer: one row is written, nothing moves.

A *shift register* is a state s of depth d along some axis whose new value is rows 1 to d of the window
w = concat(s, x) along that axis, spelled as that slice or as concat(s[1:], x). Where everybody reads fixed rows of s,
of w or of the new value, the state is kept as r, rows first: row j of the window lies at (iteration + j) mod d for
j < d, row d is x, and x is written over row 0. Behind the loop the rows are brought into order again, from the number
of iterations, which one more carried value counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from dlc.ir.convert import view
from dlc.ir.graph import Graph, Node, Origin, Value, free_name
from dlc.ir.loops import State, take_apart
from dlc.ir.ops.host import ITEM, LOOP
from dlc.ir.ops.shapes import same
from dlc.ir.rewrite import graph_module, live_nodes, own_attrs
from dlc.passes.simplify.match import unnamed
from dlc.pipeline import Context, Pass

NAME = "ring_buffers"
VIEW, SLICE, CONCAT, TAKE = "relax.reshape", "relax.strided_slice", "relax.concat", "relax.take"


@dataclass(frozen=True)
class _Register:
    """A shift register of a block.

    Attributes:
        state: the block's input; index: which carried value that is.
        row: the value x that an iteration adds.
        new: the block's output that replaces the state.
        views: the values that are parts of the window -> the row of the window that they begin with.
    """

    state: Value
    index: int
    axis: int
    row: str
    new: str
    views: dict[str, int]

    @property
    def depth(self) -> int:
        """Rows of the state."""
        return int(self.state.shape[self.axis])

    @property
    def rest(self) -> tuple[Any, ...]:
        """A row's extents."""
        return (*self.state.shape[: self.axis], *self.state.shape[self.axis + 1 :])


def _span(node: Node | None) -> tuple[int, int, int] | None:
    """(axis, begin, end) of a slice along one axis with known bounds and step 1."""
    if node is None or node.op != SLICE or len(node.attrs["axes"]) != 1 or node.attrs["strides"][0] != 1:
        return None
    axis, begin, end = (node.attrs[key][0] for key in ("axes", "begin", "end"))
    return (axis, begin, end) if isinstance(begin, int) and isinstance(end, int) else None


class _Block:
    """A loop's block, as one looks for shift registers in it."""

    def __init__(self, node: Node) -> None:
        (block,) = node.blocks
        self.block = replace(block, nodes=tuple(live_nodes(block)))
        self.values, self.producers = self.block.values(), self.block.producers()
        self.consumers = self.block.consumers()
        self.carried = node.attrs["carried"]

    def register(self, index: int) -> _Register | None:
        """Carried value `index` as a shift register by one row; None where it is none."""
        state, new = self.block.inputs[2 + index], self.block.outputs[1 + index]
        made = self.producers.get(new)
        if made is None or made.op not in (SLICE, CONCAT):
            return None
        joined = made if made.op == CONCAT else self.producers.get(made.inputs[0])
        if joined is None or joined.op != CONCAT or len(joined.inputs) != 2:
            return None
        axis, row = joined.attrs["axis"], joined.inputs[1]
        depth = state.shape[axis]
        if made.op == SLICE:
            found = joined.inputs[0] == state.name and isinstance(depth, int) and _span(made) == (axis, 1, depth + 1)
        else:
            tail = self.producers.get(joined.inputs[0])
            found = tail is not None and tail.inputs == (state.name,) and _span(tail) == (axis, 1, depth)
        return _Register(state, index, axis, row, new, self.views(state, axis, row, new)) if found else None

    def views(self, state: Value, axis: int, row: str, new: str) -> dict[str, int]:
        """The values that are the window from some row on, to its last row or to the last one of the state."""
        found = {state.name: 0, new: 1}
        for node in self.consumers[state.name]:
            name, span = node.output.name, _span(node)
            if self.joins(node, state.name, axis, row):
                found.setdefault(name, 0)
            elif span is not None and span[::2] == (axis, state.shape[axis]):
                joined = any(self.joins(reader, name, axis, row) for reader in self.consumers[name])
                found |= {name: span[1]} if joined else {}
        return found

    @staticmethod
    def joins(node: Node, first: str, axis: int, row: str) -> bool:
        """Whether `node` is concat(first, row)."""
        return node.op == CONCAT and node.inputs == (first, row) and node.attrs["axis"] == axis

    def readers(self, register: _Register) -> list[Node]:
        """Who reads a part of the window for something else than the shift itself."""
        found = {n.output.name: n for view in register.views for n in self.consumers[view]}
        return [n for name, n in found.items() if name not in register.views]

    def why_not(self, register: _Register) -> str | None:
        """Why a shift register stays one; None where it becomes a ring buffer."""
        if not isinstance(register.state.shape[register.axis], int):
            return "its depth is known only when running"
        if not same(self.values[register.row].shape[register.axis], 1):
            return "it is shifted by more than one row"
        if self.block.outputs.count(register.new) > 1 or set(register.views) & set(self.block.outputs) - {register.new}:
            return "the shifted value is a result too"
        total = 0
        for node in self.readers(register):
            rows = self.rows(register, node)
            if rows is None:
                return f"node {node.origin} reads all of it"
            total += len(rows)
        if total > register.depth:
            return "as many rows are read as it holds"
        return None

    def rows(self, register: _Register, node: Node) -> list[int] | None:
        """The rows of the window that `node` picks; None where it does more than pick some."""
        first = register.views.get(node.inputs[0])
        if first is None or len(set(node.inputs) & set(register.views)) != 1:
            return None
        if self.joins(node, node.inputs[0], register.axis, register.row):
            return list(range(first, register.depth + 1))
        extent = self.values[node.inputs[0]].shape[register.axis]
        if node.op == SLICE and node.attrs["axes"] == (register.axis,):
            begin, end, stride = (node.attrs[key][0] for key in ("begin", "end", "strides"))
            if not isinstance(begin, int) or not isinstance(end, int):
                return None
            return [first + row for row in range(begin, end, stride)]
        if node.op == TAKE and node.attrs["axis"] == register.axis:
            picks = self.block.constants.get(node.inputs[1])
            if picks is None or picks.ndim > 1:
                return None
            return [first + int(row) % extent for row in picks.reshape(-1)]
        return None


class _Writer:
    """Collects new nodes under names that are free."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.constants = dict(graph.constants)
        self.taken = set(graph.values())
        self.origin = Origin()

    def name(self, hint: str) -> str:
        """A free name."""
        chosen = free_name(hint, self.taken)
        self.taken.add(chosen)
        return chosen

    def constant(self, array: np.ndarray) -> str:
        """A new constant."""
        name = self.name("ring_constant")
        self.constants[name] = array
        return name

    def emit(
        self, op: str, inputs: Iterable[str], shape: Sequence[Any], dtype: str, name: str = "", /, **attrs: Any
    ) -> str:
        """A new node; `name` is taken as it is."""
        name = name or self.name("ring")
        self.nodes.append(Node(op, tuple(inputs), (Value(name, tuple(shape), dtype),), attrs, self.origin))
        return name

    def reshape(self, x: str, shape: Sequence[Any], dtype: str, name: str = "") -> str:
        """`x` under other extents."""
        return self.emit(VIEW, [x], shape, dtype, name, shape=tuple(shape))

    def moved(self, x: str, shape: Sequence[Any], axes: Sequence[int], dtype: str, name: str = "") -> str:
        """A transpose of `x`, which has `shape`."""
        return self.emit("relax.permute_dims", [x], [shape[a] for a in axes], dtype, name, axes=tuple(axes))

    def rows_first(self, x: str, register: _Register) -> str:
        """A state with the axis of its rows before all others."""
        axes = [register.axis, *(a for a in range(len(register.state.shape)) if a != register.axis)]
        if not register.axis:
            return x
        if x in self.constants:
            return self.constant(self.constants[x].transpose(axes))
        return self.moved(x, register.state.shape, axes, register.state.dtype)

    def rows_last(self, rows: str, register: _Register, count: int, target: Value) -> str:
        """`target` from its rows (count, rest...): the axis goes back to where it was."""
        full = (count, *register.rest)
        axes = [*range(1, register.axis + 1), 0, *range(register.axis + 1, len(full))]
        turned = rows if count == 1 else self.moved(rows, full, axes, target.dtype)
        return self.reshape(turned, target.shape, target.dtype, target.name)


class _Positions(_Writer):
    """Writes the block: positions in the rings are shared by all rings of one depth."""

    def __init__(self, finder: _Block) -> None:
        super().__init__(finder.block)
        self.finder, self.iteration = finder, finder.block.inputs[0].name
        self.known: dict[Any, str] = {}

    def run(self, registers: Sequence[_Register]) -> dict[str, str]:
        """All nodes; returns what each register's new value has become."""
        of_reader = {n.output.name: r for r in registers for n in self.finder.readers(r)}
        of_new = {r.new: r for r in registers}
        inner = {view for r in registers for view in r.views}
        written: dict[str, str] = {}
        for node in self.finder.block.nodes:
            name = node.output.name
            if name in of_reader:
                self.pick(of_reader[name], node)
            elif name in of_new:
                written[name] = self.write(of_new[name], node.origin)
            elif name not in inner:
                self.nodes.append(node)
        self.origin = Origin()
        return written

    def place(self, depth: int, rows: Sequence[int]) -> str:
        """Where rows of the window lie in a ring: (iteration + rows) mod depth, a vector."""
        key = (depth, tuple(rows))
        if key not in self.known:
            shape, at = (len(rows),), self.reshape(self.iteration, (1,), "int64")
            if any(rows):
                at = self.emit("relax.add", [at, self.constant(np.array(rows, np.int64))], shape, "int64")
            period = self.constant(np.array([depth], np.int64))
            self.known[key] = self.emit("relax.floor_mod", [at, period], shape, "int64")
        return self.known[key]

    def pick(self, register: _Register, node: Node) -> None:
        """A reader of fixed rows, now of the ring and of x."""
        rows, state = self.finder.rows(register, node), register.state
        assert rows is not None
        self.origin = unnamed(node.origin)
        full = (len(rows), *register.rest)
        ring = [row for row in rows if row < register.depth]
        parts = []
        if ring:
            place, shape = self.place(register.depth, ring), (len(ring), *register.rest)
            parts.append(self.emit(TAKE, [state.name, place], shape, state.dtype, axis=0))
        if len(ring) < len(rows):
            parts.append(self.reshape(register.row, (1, *register.rest), state.dtype))
        if len(parts) == 2:
            joined = self.emit(CONCAT, parts, (len(ring) + 1, *register.rest), state.dtype, axis=0)
            order = [ring.index(row) if row < register.depth else len(ring) for row in rows]
            if order != list(range(len(rows))):
                joined = self.emit(TAKE, [joined, self.constant(np.array(order))], full, state.dtype, axis=0)
            parts = [joined]
        self.origin = node.origin
        self.rows_last(parts[0], register, len(rows), node.output)

    def write(self, register: _Register, origin: Origin) -> str:
        """x over the oldest row."""
        state, self.origin = register.state, unnamed(origin)
        row = self.reshape(register.row, (1, *register.rest), state.dtype)
        shape, inputs = (register.depth, *register.rest), [state.name, self.place(register.depth, [0]), row]
        return self.emit("dlc.scatter_rows", inputs, shape, state.dtype, reduction="none")


def _loop(main: _Writer, module: Any, node: Node, finder: _Block, registers: Sequence[_Register]) -> Any:
    """Write the loop over ring buffers, with a count of iterations as its last carried value; returns its block."""
    parts, writer = take_apart(replace(node, blocks=(finder.block,))), _Positions(finder)
    written = writer.run(registers)
    one, zero = writer.constant(np.array(1, np.int64)), main.constant(np.array(0, np.int64))
    count = writer.emit("relax.add", [writer.iteration, one], (), "int64")
    main.origin = unnamed(node.origin)
    states = list(parts.states)
    for register in registers:
        old, shape = states[register.index], (register.depth, *register.rest)
        inside = replace(register.state, shape=shape)
        states[register.index] = State(
            main.rows_first(old.initial, register), inside, written[old.new], shape, old.dtype
        )
    states.append(State(zero, Value(writer.name("iterations"), (), "int64"), count, (), "int64"))
    block = replace(finder.block, nodes=tuple(writer.nodes), constants=writer.constants)
    inputs, attrs, block = replace(parts, states=tuple(states), block=block).join()
    attrs["tells"] = node.attrs["tells"]
    main.nodes.append(replace(node, inputs=tuple(inputs), attrs=attrs, blocks=(block,)))
    return graph_module(module, block)["main"]


def _ordered(main: _Writer, item: Node, register: _Register, count: str) -> None:
    """The final state from its ring: row j lies at (iterations + j) mod depth."""
    depth, dtype = register.depth, register.state.dtype
    ring = main.name("ring")
    main.nodes.append(replace(item, outputs=(Value(ring, (depth, *register.rest), dtype),)))
    main.origin = unnamed(item.origin)
    steps = main.constant(np.arange(depth))
    at = main.emit("relax.add", [main.reshape(count, (1,), "int64"), steps], (depth,), "int64")
    at = main.emit("relax.floor_mod", [at, main.constant(np.array([depth]))], (depth,), "int64")
    rows = main.emit(TAKE, [ring, at], (depth, *register.rest), dtype, axis=0)
    main.origin = item.origin
    main.rows_last(rows, register, depth, item.output)


def _transformed(module: Any, graph: Graph, found: dict[str, tuple[_Block, list[_Register]]]) -> Any:
    """`module` with the loops of `found` (by their result) rewritten."""
    functions = {var.name_hint: function for var, function in module.functions.items()}
    main = _Writer(graph)
    counts: dict[str, str] = {}
    for node in graph.nodes:
        source = node.inputs[0] if node.op == ITEM else ""
        if node.output.name in found:
            finder, registers = found[node.output.name]
            functions[finder.block.name] = _loop(main, module, node, finder, registers)
            counts[node.output.name] = main.name("iterations")
            value = Value(counts[node.output.name], (), "int64")
            main.nodes.append(Node(ITEM, (node.output.name,), (value,), {"index": finder.carried}, node.origin))
        elif source in found:
            finder, registers = found[source]
            index = node.attrs["index"]
            ring = next((r for r in registers if r.index == index), None)
            if ring is not None:
                _ordered(main, node, ring, counts[source])
            else:
                shifted = {**node.attrs, "index": index + (index >= finder.carried)}
                main.nodes.append(replace(node, attrs=shifted))
        else:
            main.nodes.append(node)
    done = replace(graph, nodes=tuple(main.nodes), constants=main.constants)
    live = replace(done, nodes=tuple(live_nodes(done)))
    return graph_module(tvm.IRModule(functions), live, own_attrs(graph))


def run(module: Any, context: Context) -> Any:
    """See the module's docstring."""
    graph = view(module)
    found: dict[str, tuple[_Block, list[_Register]]] = {}
    for node in graph.nodes:
        if node.op != LOOP:
            continue
        finder, registers = _Block(node), []
        for index in range(finder.carried):
            register = finder.register(index)
            reason = finder.why_not(register) if register is not None else None
            if register is not None and reason is None:
                registers.append(register)
            elif reason is not None:
                context.decline(NAME, node.origin, f"carried value {index} is shifted as a whole: {reason}")
        if registers:
            found[node.output.name] = (finder, registers)
    return _transformed(module, graph, found) if found else module


PASS = Pass(NAME, run)
