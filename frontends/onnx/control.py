"""Control flow: If, Loop and Scan as `dlc.if` and `dlc.loop`, whose blocks are functions of the module.

An extent that a loop changes, or in which two branches differ, becomes a symbol that gets its size when running.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from dlc.errors import DlcError
from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import Block, ConversionError, Dim, HostError, Tensor
from dlc.ir.dims import symbols
from dlc.ir.ops.host import FIRST, IF, LOOP, MOST_STEPS, STEPS


def _fresh(c: Context, hint: str) -> Any:
    return c.symbols.fresh(hint, least=0)


def _like(tensor: Tensor) -> Tensor:
    """A new tensor of the same type, content unknown."""
    return Tensor(tensor.shape, tensor.dtype, type=tensor.type)


def _joined(c: Context, a: Tensor, b: Tensor, what: str, free: frozenset[str] = frozenset()) -> Tensor:
    """The type of a value that may be of either type: extents that differ become new symbols; `free` ones stay."""
    if a.is_object or b.is_object:
        if a.is_object and b.is_object:
            return _like(a)
        raise HostError(f"{what} is {a} and {b}")
    if a.dtype != b.dtype:
        raise ConversionError(f"{what} is {a} and {b}")
    if a.rank != b.rank:
        raise HostError(f"the rank of {what} changes: {a} and {b}")
    pairs = zip(a.shape, b.shape, strict=True)
    dims = [x if str(x) in free or c.symbols.same(x, y) else _fresh(c, "extent") for x, y in pairs]
    return Tensor(tuple(dims), a.dtype)


def _outside(c: Context, tensor: Tensor, before: frozenset[str]) -> Tensor:
    """A block's result as seen from around it: extents over symbols that exist only inside become new ones."""
    dims = [d if {str(v.name) for v in symbols([d])} <= before else _fresh(c, "extent") for d in tensor.shape]
    return Tensor(tuple(dims), tensor.dtype, type=tensor.type)


# --- If --------------------------------------------------------------------------------------------------------------


@converter("If")
def if_(c: Context, condition: Tensor) -> Sequence[Tensor]:
    """The taken branch, where the condition is known when compiling; else both as blocks."""
    if condition.value is not None:
        return c.branch(c.require("then_branch" if condition.value.reshape(-1)[0] else "else_branch"))
    before = c.symbols.names()
    blocks = _branches(c)
    if len(blocks[0].outputs) != len(blocks[1].outputs):
        counts = " and ".join(str(len(block.outputs)) for block in blocks)
        raise ConversionError(f"its branches return {counts} values")
    _settle_facts(c, *blocks)
    pairs = zip(blocks[0].outputs, blocks[1].outputs, strict=True)
    types = [
        _joined(c, _outside(c, a, before), _outside(c, b, before), f"output {index}")
        for index, (a, b) in enumerate(pairs)
    ]
    captured = c.captured(blocks)
    for block in blocks:
        block.take(captured)
    return c.results(IF, [condition, *captured], {}, types, blocks)


def _branches(c: Context) -> list[Block]:
    """Both branches. Code for certain sizes may know that one fails for them: then it does so when it is taken."""
    blocks: list[Block | DlcError] = []
    for name in ("then_branch", "else_branch"):
        try:
            blocks.append(c.block(c.require(name), []))
        except DlcError as error:
            if not c.symbols.assuming:
                raise
            blocks.append(error)
    fitting = [block for block in blocks if isinstance(block, Block)]
    if not fitting:
        raise next(block for block in blocks if isinstance(block, DlcError))
    # The message begins with the model's name, which whoever runs the package need not know.
    reasons = [None if isinstance(block, Block) else str(block).partition(": ")[2] for block in blocks]
    return [fitting[0] if why is None else c.failing(why, fitting[0]) for why in reasons] if any(reasons) else fitting


def _settle_facts(c: Context, then: Block, other: Block) -> None:
    """What both branches demand of a size holds whichever runs.

    Raises:
        FactFoundError: there is such a fact, and the If itself is certain to run.
    """
    wanted = {(found.name, found.fact) for found in other.noted}
    for found in then.noted:
        if (found.name, found.fact) in wanted:
            if c.certain:
                raise found
            c.symbols.noted.append(found)


# --- Loop ------------------------------------------------------------------------------------------------------------


@converter("Loop")
def loop(c: Context, trips: Tensor | None, condition: Tensor | None, *initial: Tensor) -> Sequence[Tensor]:
    """A loop with a trip count, a condition, or both."""
    graph: onnx.GraphProto = c.require("body")
    start = [_like(t) for t in initial]
    return _loop(c, trips, condition, start, list(initial), [], graph, _LoopForm())


class _LoopForm:
    """How a Loop's body takes its parameters and gives its results."""

    def params(self, counter: Tensor, going: Tensor, states: list[Tensor], slices: list[Tensor]) -> list[Tensor]:
        return [counter, going, *states, *slices]

    def outputs(self, c: Context, outputs: list[Tensor]) -> list[Tensor]:
        return outputs


class _ScanForm(_LoopForm):
    """A Scan's body has no counter and no condition."""

    def params(self, counter: Tensor, going: Tensor, states: list[Tensor], slices: list[Tensor]) -> list[Tensor]:
        return [*states, *slices]

    def outputs(self, c: Context, outputs: list[Tensor]) -> list[Tensor]:
        return [c.constant(True), *outputs]


def _loop(
    c: Context, trips: Tensor | None, condition: Tensor | None, types: list[Tensor], initial: list[Tensor],
    scanned: list[Tensor], graph: onnx.GraphProto, form: _LoopForm,
) -> list[Tensor]:  # fmt: skip
    """`types` are the carried values' types, widened until the body gives back what it takes."""
    before = c.symbols.names()
    free: frozenset[str] = frozenset()
    while True:
        states = [_like(t) for t in types]
        slices = [Tensor(t.shape[1:], t.dtype) for t in scanned]
        for state in states:
            c.symbols.carry(state, before)
        counter, going = Tensor((), "int64"), Tensor((), "bool")
        block = c.block(graph, form.params(counter, going, states, slices))
        block.params = [counter, going, *states, *slices]
        block.outputs = form.outputs(c, block.outputs)
        results = block.outputs[1 : 1 + len(states)]
        if len(results) < len(states):
            raise ConversionError(f"the body returns {len(results)} of {len(states)} carried values")
        known = c.symbols.names()
        pairs = enumerate(zip(states, results, strict=True))
        types = [_joined(c, state, result, f"carried value {index}", free) for index, (state, result) in pairs]
        if c.symbols.names() == known:
            break
        free |= c.symbols.names() - known
    stacks = block.outputs[1 + len(states) :]
    for index, stack in enumerate(stacks):
        if stack.type is not None and stack.type.WhichOneof("value") != "tensor_type":
            raise ConversionError(f"scan output {index} of the body is no tensor, iterations cannot be stacked")
    length, early = _length(c, trips, condition, block)
    initial, scanned = list(initial), list(scanned)
    if stacks and length is None and trips is not None and _countable(trips):
        length = _fresh(c, "steps")
        scanned += c.results(STEPS, [trips], {}, [Tensor((length,), "bool")])
        block.params.append(Tensor((), "bool"))
    else:
        early = False
    if early:
        _count(c, block, len(states))
        initial.append(c.constant(np.zeros((), np.int64)))
    length = _fresh(c, "iterations") if length is None else length
    inside = block.params[2 : 2 + len(initial)]
    stacked = [Tensor((length, *t.shape), t.dtype) for t in (_outside(c, t, before) for t in stacks)]
    attrs = {
        "carried": len(initial),
        "scanned": len(scanned),
        "has_trips": trips is not None,
        "has_condition": condition is not None,
    }
    given = [t for t in (trips, condition) if t is not None]
    captured = c.captured([block])
    block.take(captured)
    types = [*(_outside(c, t, before) for t in inside), *stacked]
    results = c.results(LOOP, [*given, *initial, *scanned, *captured], attrs, types, [block])
    if not early:
        return results
    finals, done, whole = results[: len(states)], results[len(states)], results[len(states) + 1 :]
    count = _fresh(c, "iterations")
    return [*finals, *(c.results(FIRST, [t, done], {}, [Tensor((count, *t.shape[1:]), t.dtype)])[0] for t in whole)]


def _countable(trips: Tensor) -> bool:
    """Whether memory for the results of all iterations can be taken before the first: else a loop grows as it runs."""
    return trips.value is None or int(trips.value.reshape(-1)[0]) <= MOST_STEPS


def _count(c: Context, block: Block, position: int) -> None:
    """Carry the number of iterations that were done, behind the `position` carried values that there are."""
    done = Tensor((), "int64")
    block.params.insert(2 + position, done)
    block.outputs.insert(1 + position, replace(c, calls=block.calls).emit("add", done, 1))


def _length(c: Context, trips: Tensor | None, condition: Tensor | None, block: Block) -> tuple[Dim | None, bool]:
    """(how many iterations there are, None where only data tell; whether a condition may end the loop before)."""
    going = block.outputs[0]
    goes_on = going.value is not None and bool(going.value.reshape(-1)[0])
    started = condition is None or (condition.value is not None and bool(condition.value.reshape(-1)[0]))
    unchanged = going is block.params[1] and started
    early = not ((goes_on and started) or unchanged)
    known = None if trips is None or early else trips.value if trips.value is not None else trips.elements
    if known is None:
        return None, early
    count = known.reshape(-1)[0]
    return (max(int(count), 0) if isinstance(count, int | np.integer) else count), early


# --- Scan ------------------------------------------------------------------------------------------------------------


def _to_front(c: Context, x: Tensor, axis: int) -> Tensor:
    return c.transpose(x, [axis, *(a for a in range(x.rank) if a != axis)])


def _from_front(c: Context, x: Tensor, axis: int) -> Tensor:
    order = list(range(1, x.rank))
    order.insert(axis, 0)
    return c.transpose(x, order)


def _scan(
    c: Context, states: list[Tensor], sequences: list[Tensor], backwards: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """(Final states, stacked results) of a scan over axis 0 of `sequences`."""
    if not sequences:
        raise ConversionError("a Scan needs a sequence to scan")
    for other in sequences[1:]:
        c.equal(other.shape[0], sequences[0].shape[0], "the lengths of the scanned sequences")
    turned = [c.flip(x, 0) if back else x for x, back in zip(sequences, backwards, strict=True)]
    trips = c.reshape(c.extents([turned[0].shape[0]]), ())
    results = _loop(c, trips, None, [_like(t) for t in states], states, turned, c.require("body"), _ScanForm())
    return results[: len(states)], results[len(states) :]


def _carried(c: Context, inputs: Sequence[Tensor]) -> int:
    """How many of the inputs are states; the others are scanned."""
    scans = int(c.require("num_scan_inputs"))
    if scans > len(inputs):
        raise ConversionError(f"attribute 'num_scan_inputs' is {scans}, but there are {len(inputs)} inputs")
    return len(inputs) - scans


def _one_each(c: Context, name: str, count: int) -> list[int]:
    values = list(c.attr(name) or [0] * count)
    if len(values) != count:
        raise ConversionError(f"attribute '{name}' is {values}, it must have {count} values")
    return values


@converter("Scan", since=8)
def scan_of_batch(c: Context, lengths: Tensor | None, *inputs: Tensor) -> Sequence[Tensor]:
    """Opset 8's form: axis 0 is a batch, of which each element is scanned along its next axis."""
    if not inputs or any(x.rank < 1 for x in inputs):
        raise ConversionError("a Scan of opset 8 needs inputs with a batch as their first dimension")
    batch = inputs[0].shape[0]
    if lengths is not None or not isinstance(batch, int):
        raise HostError("the batch of a Scan of opset 8, or the lengths of its sequences, are known only when running")
    count = _carried(c, inputs)
    backwards = _one_each(c, "directions", len(inputs) - count)
    runs = []
    for element in range(batch):
        own = [c.emit("take", x, c.constant(element), axis=0) for x in inputs]
        finals, stacks = _scan(c, own[:count], own[count:], backwards)
        runs.append([*finals, *stacks])
    return [
        c.emit("concat", *(c.reshape(t, (1, *t.shape)) for t in results), axis=0) for results in zip(*runs, strict=True)
    ]


@converter("Scan", since=9)
def scan(c: Context, *inputs: Tensor) -> Sequence[Tensor]:
    """A loop over slices of its last inputs."""
    count = _carried(c, inputs)
    states, sequences = list(inputs[:count]), list(inputs[count:])
    axes = _one_each(c, "scan_input_axes", len(sequences))
    moved = [_to_front(c, x, c.axis(axis, x.rank)) for x, axis in zip(sequences, axes, strict=True)]
    finals, stacks = _scan(c, states, moved, _one_each(c, "scan_input_directions", len(sequences)))
    axes = _one_each(c, "scan_output_axes", len(stacks))
    backwards = _one_each(c, "scan_output_directions", len(stacks))
    turned = []
    for x, axis, back in zip(stacks, axes, backwards, strict=True):
        forward = c.flip(x, 0) if back else x
        turned.append(_from_front(c, forward, c.axis(axis, x.rank)))
    return [*finals, *turned]
