"""Move out of loops what need not be computed in each iteration.

- A carried value that stays what it is, is captured.
- A carried counter (an integer that grows by a constant) is computed from the iteration's number.
- A row that is taken at the iteration's number from a captured tensor is a slice of a scanned one.
- What depends on captured values alone is computed once, before the loop.
- A contraction that depends on slices of scanned values alone (and what leads to it, and its bias) is computed for all
  iterations at once: one large product runs at a multiple of the speed of many small ones.

The rules are for any loop; LSTM, GRU and RNN, whatever they are spelled with, get their input projection from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlc.ir.convert import shape_of, view
from dlc.ir.graph import Node, Value, free_name
from dlc.ir.loops import LoopParts, Operand, State, take_apart
from dlc.ir.ops import OPS
from dlc.ir.ops.host import ITEM, LOOP
from dlc.ir.rewrite import Rewriter, graph_module, live_nodes, map_blocks
from dlc.passes.simplify import run as simplify_run
from dlc.passes.specialize.batch import batch
from dlc.pipeline import Context, Pass

CONTRACTIONS = ("dlc.matmul", "dlc.conv")


@dataclass
class _Hoister:
    """One loop that is being rewritten. What stands outside it is a name of the old graph, or a new expression.

    Attributes:
        rw: the rewrite of the graph around it.
        parts: the loop as it is by now, but for the nodes and constants of its block.
        used: the results that somebody reads, by index.
        nodes, constants: the block's.
        results: an expression for each old result that is no longer the loop's.
        left: the old index of each result that the loop still has.
    """

    rw: Rewriter
    parts: LoopParts
    used: frozenset[int]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    changed: bool = False

    def __post_init__(self) -> None:
        block = self.parts.block
        self.nodes, self.constants, self.values = list(live_nodes(block)), dict(block.constants), block.values()
        self.left = list(range(len(self.parts.states) + len(self.parts.stacks)))
        self.given = {o.inside.name for o in self.parts.scanned}
        self.trips = self._trips()

    def _trips(self) -> Any:
        """How many iterations there are at most, as a number or an extent; None where that is not known."""
        array = self.rw.constant(self.parts.trips) if self.parts.trips is not None else None
        if array is not None:
            return int(array.reshape(-1)[0])
        every = [s.shape[0] for s in self.parts.stacks] + [self._outside(o).shape[0] for o in self.parts.scanned]
        return every[0] if every else None

    def _outside(self, operand: Operand) -> Value:
        return self.rw.value(operand.outside)

    def expression(self, outside: Any) -> Any:
        """What stands outside, as an expression."""
        return self.rw.new(outside) if isinstance(outside, str) else outside

    # --- the block ---

    def value(self, hint: str, shape: Sequence[Any], dtype: str) -> Value:
        """A new block value."""
        name = free_name(hint, {*self.values, *self.constants})
        self.values[name] = Value(name, tuple(shape), dtype)
        return self.values[name]

    def add(self, op: str, inputs: Sequence[str], attrs: dict[str, Any], shape: Sequence[Any], dtype: str) -> str:
        """A new node at the block's beginning; it reads what the block is given."""
        made = self.value("hoisted", shape, dtype)
        self.nodes.insert(self.added, Node(op, tuple(inputs), (made,), attrs))
        self.added += 1
        return made.name

    added: int = 0

    def number(self, value: int, dtype: str) -> str:
        """A new constant of one element."""
        name = self.value("number", (), dtype).name
        self.constants[name] = np.array(value, dtype)
        return name

    def substitute(self, old: str, new: str, but: str = "") -> None:
        """Let everybody read another value, but the node that makes `but`."""

        def turn(name: str) -> str:
            return new if name == old else name

        self.nodes = [
            n if n.output.name == but else replace(n, inputs=tuple(turn(i) for i in n.inputs)) for n in self.nodes
        ]
        parts = self.parts
        self.parts = replace(
            parts,
            goes_on=turn(parts.goes_on),
            states=tuple(replace(s, new=turn(s.new)) for s in parts.states),
            stacks=tuple(replace(s, value=turn(s.value)) for s in parts.stacks),
        )
        self.changed = True

    # --- carried values ---

    def carried(self) -> None:
        """Capture what stays, and compute counters from the iteration's number."""
        gone: set[int] = set()
        for index, state in enumerate(self.parts.states):
            if state.new == state.inside.name:
                self.parts = replace(self.parts, captured=(*self.parts.captured, Operand(state.initial, state.inside)))
                self.results[self.left[index]] = state.initial
                gone.add(index)
            else:
                counted, used = self.counter(state), self.left[index] in self.used
                if counted is not None:
                    self.substitute(state.inside.name, counted, but=state.new if used else "")
                if counted is not None and not used:
                    gone.add(index)
        if gone:
            self.changed = True
            self.left = [old for position, old in enumerate(self.left) if position not in gone]
            states = tuple(s for position, s in enumerate(self.parts.states) if position not in gone)
            self.parts = replace(self.parts, states=states)

    def counter(self, state: State) -> str | None:
        """The block value start + step * iteration that a counter is equal to; None where the state is no counter."""
        start = self.rw.constant(state.initial)
        maker = next((n for n in self.nodes if n.output.name == state.new), None)
        integer = state.inside.dtype in ("int64", "int32") and all(d == 1 for d in state.inside.shape)
        if start is None or maker is None or maker.op != "relax.add" or not integer:
            return None
        rest = [self.constants.get(name) for name in maker.inputs if name != state.inside.name]
        if len(rest) != 1 or rest[0] is None or rest[0].size != 1:
            return None
        name, dtype = self.parts.counter.name, "int64"
        for op, number in (("relax.multiply", int(rest[0].reshape(-1)[0])), ("relax.add", int(start.reshape(-1)[0]))):
            if number != (op == "relax.multiply"):
                name = self.add(op, [name, self.number(number, dtype)], {}, (), dtype)
        if state.inside.dtype != dtype:
            name = self.add("relax.astype", [name], {"dtype": state.inside.dtype}, (), state.inside.dtype)
        if state.inside.shape:
            shape = state.inside.shape
            name = self.add("relax.reshape", [name], {"shape": shape}, shape, state.inside.dtype)
        return name

    # --- slices ---

    def scan(self) -> None:
        """Scan what is taken row by row."""
        captured = {o.inside.name: o for o in self.parts.captured}
        counters = {self.parts.counter.name}
        for node in list(self.nodes):
            if node.op == "relax.reshape" and node.inputs[0] in counters:
                counters.add(node.output.name)
            if node.op != "relax.take" or node.inputs[0] not in captured or node.inputs[1] not in counters:
                continue
            operand = captured[node.inputs[0]]
            shape, axis = operand.inside.shape, node.attrs["axis"] % len(operand.inside.shape)
            if self.trips is None or not _at_most(self.trips, shape[axis]):
                continue
            whole = self.expression(operand.outside)
            if axis:
                order = (axis, *(a for a in range(len(shape)) if a != axis))
                whole = self.rw.emit("relax.permute_dims", [whole], {"axes": order}, node.origin)
            row = self.value("row", shape[:axis] + shape[axis + 1 :], operand.inside.dtype)
            self.parts = replace(self.parts, scanned=(*self.parts.scanned, Operand(whole, row)))
            self.nodes = [n for n in self.nodes if n is not node and n.output.name != node.output.name]
            name = row.name
            if node.output.shape != row.shape:
                attrs = {"shape": node.output.shape}
                name = self.add("relax.reshape", [name], attrs, node.output.shape, row.dtype)
            self.substitute(node.output.name, name)

    # --- computations ---

    def compute(self) -> None:
        """Compute before the loop what depends on captured values alone, and contractions of slices alone."""
        outside: dict[str, Any] = {o.inside.name: o.outside for o in self.parts.captured}
        fixed = set(outside)
        count, rows = self._rows()
        outside |= rows
        writers: dict[str, Any] = {}
        for node in self.nodes:
            inputs = [n for n in node.inputs if n not in self.constants]
            if not inputs or not all(n in outside or n in writers for n in inputs) or OPS[node.op].kind == "host":
                continue
            batched = frozenset(i for i, n in enumerate(node.inputs) if n in rows or (n in writers and n not in fixed))
            writer = batch(node, [self.values[n] for n in node.inputs], batched, count) if batched else _plain(node)
            if writer is not None:
                writers[node.output.name] = writer
                if not batched:
                    fixed.add(node.output.name)
        wanted = self._wanted(writers, fixed)
        done = [n for n in self.nodes if n.output.name in wanted]
        self.nodes = [n for n in self.nodes if n.output.name not in wanted]
        for node in done:
            operands = [
                self.rw.const(self.constants[n]) if n in self.constants else self.expression(outside[n])
                for n in node.inputs
            ]
            origin = node.origin

            def emit(op: str, inputs: Sequence[Any], attrs: Any, origin: Any = origin) -> Any:
                return self.rw.emit(op, inputs, attrs, origin)

            outside[node.output.name] = writers[node.output.name](emit, operands)
        new = [Operand(outside[n.output.name], n.output) for n in done if n.output.name in self._read()]
        scanned = tuple(o for o in new if o.inside.name not in fixed)
        captured = tuple(o for o in new if o.inside.name in fixed)
        self.changed = self.changed or bool(done)
        self.parts = replace(self.parts, scanned=self.parts.scanned + scanned, captured=self.parts.captured + captured)

    def _read(self) -> set[str]:
        """What the block's nodes and results read."""
        inside = {n for node in self.nodes for n in node.inputs} | {self.parts.goes_on}
        return inside | {s.new for s in self.parts.states} | {s.value for s in self.parts.stacks}

    def _rows(self) -> tuple[Any, dict[str, Any]]:
        """The scanned values of one extent, and that extent."""
        found: dict[str, Any] = {}
        count: Any = None
        for operand in self.parts.scanned:
            extent = _extent(self.expression(operand.outside))
            count = extent if count is None else count
            if str(extent) == str(count):
                found[operand.inside.name] = operand.outside
        return count, found

    def _wanted(self, writers: dict[str, Any], fixed: set[str]) -> set[str]:
        """What is hoisted: all that is fixed, and contractions of slices with what they read and their bias."""
        wanted: set[str] = set()
        for node in self.nodes:
            name = node.output.name
            if name not in writers or name in fixed:
                continue
            first = next((n for n in node.inputs if n not in self.constants), "")
            if node.op in CONTRACTIONS or (node.op == "relax.add" and first in wanted and len(node.inputs) == 2):
                wanted.add(name)
        for node in reversed(self.nodes):
            if node.output.name in wanted:
                wanted |= {n for n in node.inputs if n in writers}
        return wanted | (fixed & set(writers))

    # --- the result ---

    def run(self) -> bool:
        """Rewrite the loop; whether anything was moved."""
        self.carried()
        self.scan()
        self.compute()
        whole = self.parts.join()[2]
        self.nodes = live_nodes(replace(whole, nodes=tuple(self.nodes), constants=self.constants))
        self.parts = replace(
            self.parts,
            captured=tuple(o for o in self.parts.captured if o.inside.name in self._read()),
            # What was scanned before may say how many iterations there are.
            scanned=tuple(o for o in self.parts.scanned if o.inside.name in self._read() | self.given),
            block=replace(self.parts.block, nodes=tuple(self.nodes), constants=self.constants),
        )
        return self.changed


def _plain(node: Node) -> Any:
    return lambda emit, operands: emit(node.op, operands, node.attrs)


def _extent(expr: Any) -> Any:
    return shape_of(expr)[0]


def _at_most(a: Any, b: Any) -> bool:
    """Whether a <= b is certain."""
    return a <= b if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


class _Rewrite:
    """Rewrites the loops of one graph."""

    def __init__(self, module: Any) -> None:
        self.module, self.rw = module, Rewriter(module)
        self.moved: dict[str, _Hoister] = {}

    def loop(self, node: Node) -> Any:
        """The loop with less inside it; None where nothing moves."""
        rw = self.rw
        items = (n for n in rw.graph.nodes if n.op == ITEM and n.inputs[0] == node.output.name)
        hoister = _Hoister(rw, take_apart(node), frozenset(n.attrs["index"] for n in items))
        if not hoister.run():
            return None
        self.moved[node.output.name] = hoister
        outside, attrs, block = hoister.parts.join()
        name = f"{block.name}_hoisted"
        rw.builder.add_region(name, graph_module(self.module, block)["main"])
        operands = [hoister.expression(o) for o in outside]
        attrs["tells"] = node.attrs["tells"]
        return rw.builder.host(LOOP, [name], operands, attrs, node.origin, node.output.name)

    def item(self, node: Node) -> Any:
        """A result of a loop."""
        hoister = self.moved.get(node.inputs[0])
        index = node.attrs["index"]
        if hoister is None:
            return self.rw.copy(node)
        if index in hoister.results:
            return hoister.expression(hoister.results[index])
        new = hoister.left.index(index)
        return self.rw.builder.item(self.rw.new(node.inputs[0]), new, node.origin, node.output.name)

    def run(self) -> Any:
        """The whole graph."""
        rw = self.rw
        for node in rw.graph.nodes:
            made = self.loop(node) if node.op == LOOP else self.item(node) if node.op == ITEM else None
            rw.env[node.output.name] = rw.copy(node) if made is None else made
        if not self.moved:
            return self.module
        return rw.finish()


def run(module: Any, context: Context) -> Any:
    """Hoist in every loop, the inner ones first, then tidy what was moved."""
    module = map_blocks(module, lambda _, block: run(block, context))
    if not any(node.op == LOOP for node in view(module).nodes):
        return module
    return simplify_run(_Rewrite(module).run(), context)


PASS = Pass("hoist", run)
