"""The slow, obvious interpreter: a graph, operator by operator, in numpy. It is the oracle for every target.

Needs no TVM: symbolic extents are strings by the time a graph is run here (see `dlc.ir.serial`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Dim, Graph, Node, Value, is_tensor, symbol_names
from dlc.ir.ops import OPS
from dlc.ir.ops.host import IF, ITEM, LOOP
from dlc.runtime.demands import Demands

PART = "dlc.part"
Observer = Callable[[Node, np.ndarray], None]
InnerObserver = Callable[[str, str, Any], None]
RunPart = Callable[[Node, list[Any], Mapping[str, int]], Any]
_SAFE = re.compile(r"[\w\s+\-*/%(),]*")


def evaluate_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """An extent as an int, given the symbols' sizes."""
    if isinstance(dim, int | np.integer):
        return int(dim)
    text = str(dim).replace("T.int64", "int").replace("T.", "")
    if not _SAFE.fullmatch(text):
        raise DlcError(f"extent '{text}' is not arithmetic")
    try:
        return int(eval(text, {"__builtins__": {}}, {**sizes, "int": int, "max": max, "min": min}))
    except NameError as error:
        raise DlcError(f"extent '{text}' has a symbol without a size: {error}") from None


def bind_sizes(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The size of each symbol, read from the inputs' shapes; DlcError where one is not what the model demands."""
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for value in (v for v in graph.inputs if is_tensor(v.dtype)):
        actual = inputs[value.name].shape
        if len(actual) != len(value.shape):
            raise DlcError(f"input '{value.name}' has shape {list(actual)}, expected {[str(d) for d in value.shape]}")
        for extent, dim in zip(actual, value.shape, strict=True):
            if not isinstance(dim, int) and str(dim).isidentifier():
                sizes.setdefault(str(dim), extent)
                source.setdefault(str(dim), value.name)
        for extent, dim in zip(actual, value.shape, strict=True):
            if (isinstance(dim, int) or str(dim).isidentifier()) and evaluate_dim(dim, sizes) != extent:
                raise DlcError(
                    f"input '{value.name}' has shape {list(actual)}, expected {[str(d) for d in value.shape]}"
                )
    Demands.of_graph(graph.attrs).check(sizes, source)
    return sizes


def check_extents(value: Value, result: np.ndarray, sizes: Mapping[str, int]) -> None:
    """Hold a result to its declared extents, as far as the symbols' sizes are known; DlcError where it differs."""
    known = [d if isinstance(d, int) or not _unknown(d, sizes) else None for d in value.shape]
    wanted = [None if d is None else evaluate_dim(d, sizes) for d in known]
    if len(wanted) != result.ndim or any(w not in (None, r) for w, r in zip(wanted, result.shape, strict=True)):
        shown = [str(d) if w is None else w for d, w in zip(value.shape, wanted, strict=True)]
        raise DlcError(f"'{value.name}' came out as {list(result.shape)}, declared {shown}")


def _unknown(dim: Dim, sizes: Mapping[str, int]) -> bool:
    return not isinstance(dim, int) and not symbol_names(dim) <= set(sizes)


def _concrete(attrs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    def one(item: Any) -> Any:
        if isinstance(item, tuple | list):
            return tuple(one(i) for i in item)
        if isinstance(item, int | float | bool | str) or item is None:
            return item
        return evaluate_dim(item, sizes)

    result = {key: one(value) for key, value in attrs.items()}
    for key in ("shape", "begin", "end"):  # the attributes that may be symbolic; serialised, they are strings
        if isinstance(result.get(key), tuple):
            result[key] = tuple(evaluate_dim(d, sizes) for d in result[key])
    return result


def apply(node: Node, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """Run one operator that makes a tensor."""
    return np.asarray(OPS[node.op].meaning(inputs, _concrete(node.attrs, sizes)))


def interpret(
    graph: Graph,
    inputs: Mapping[str, Any],
    observe: Observer | None = None,
    sizes: Mapping[str, int] | None = None,
    run_part: RunPart | None = None,
    observe_inside: InnerObserver | None = None,
) -> list[Any]:
    """Run `graph` on arrays by input name and return its outputs in order.

    `observe` sees every node that makes a tensor, with its result, inside regions too, but not what control flow runs;
    that `observe_inside` sees: (name of the block, name of a value, its result), the block's inputs among them.
    `run_part` runs the nodes of operator `PART` (see `dlc.composite`): given the node, its inputs and the symbols'
    sizes. Values are freed after their last reader.
    """
    known = dict(sizes) if sizes is not None else bind_sizes(graph, inputs)
    return _Run(observe, known, run_part, observe_inside).graph(graph, inputs)


def _one(node: Node, value: Any, what: str) -> Any:
    """The element of what must have one."""
    array = np.asarray(value)
    if array.size != 1:
        raise DlcError(f"node {node.origin}: the {what} has shape {list(array.shape)}, it must be one element")
    return array.reshape(())[()]


class _Run:
    """One run of a graph and of what is inside it.

    Attributes:
        sizes: of the symbols known so far; extents that depend on data join them when they are there.
    """

    def __init__(
        self,
        observe: Observer | None,
        sizes: dict[str, int],
        run_part: RunPart | None,
        observe_inside: InnerObserver | None,
    ) -> None:
        self.observe, self.sizes, self.run_part, self.observe_inside = observe, sizes, run_part, observe_inside

    def graph(self, graph: Graph, inputs: Mapping[str, Any]) -> list[Any]:
        """Run all nodes in order."""
        values: dict[str, Any] = {**graph.constants, **inputs}
        remaining: dict[str, int] = {}
        for name in [n for node in graph.nodes for n in node.inputs] + list(graph.outputs):
            remaining[name] = remaining.get(name, 0) + 1
        for node in graph.nodes:
            result = self.node(node, [values[name] for name in node.inputs])
            values[node.output.name] = result
            self.learn(node.output, result)
            for name in node.inputs:
                remaining[name] -= 1
                if not remaining[name] and name not in graph.constants:
                    values.pop(name, None)
        return [values[name] for name in graph.outputs]

    def node(self, node: Node, inputs: list[Any]) -> Any:
        """Run one node."""
        if node.body is not None:
            names = [v.name for v in node.body.inputs]
            (result,) = self.graph(node.body, dict(zip(names, inputs, strict=True)))
            return result
        if node.op == PART:
            assert self.run_part is not None
            return self.run_part(node, inputs, self.sizes)
        if OPS[node.op].kind == "host":
            return self.host(node, inputs)
        try:
            result = apply(node, inputs, self.sizes)
        except (ValueError, IndexError, OverflowError, MemoryError) as error:
            # The sizes or the data that came: what is known when compiling has been checked there.
            raise DlcError(f"node {node.origin}: {' '.join(str(error).split())}") from error
        if self.observe is not None:
            self.observe(node, result)
        return result

    def learn(self, value: Value, result: Any) -> None:
        """Note the size of every symbol that only this result tells."""
        for dim, extent in zip(value.shape, np.shape(result), strict=True) if is_tensor(value.dtype) else ():
            if not isinstance(dim, int) and str(dim).isidentifier():
                self.sizes.setdefault(str(dim), extent)

    # --- the host's operators ---

    def host(self, node: Node, inputs: list[Any]) -> Any:
        """Run an operator of `dlc.ir.ops.host`."""
        if node.op == IF:
            taken = node.blocks[0 if bool(_one(node, inputs[0], "condition")) else 1]
            return tuple(self.block(taken, inputs[1:]))
        if node.op == LOOP:
            return self.loop(node, inputs)
        result = OPS[node.op].meaning(inputs, node.attrs)
        if node.op == ITEM and is_tensor(node.output.dtype):
            # The reference implementation gives Python numbers and numpy scalars in places.
            result = np.asarray(result)
            if str(result.dtype) != node.output.dtype or result.ndim != len(node.output.shape):
                wanted = f"{node.output.dtype} of rank {len(node.output.shape)}"
                raise DlcError(f"node {node.origin}: expected {wanted}, got {result.dtype} of rank {result.ndim}")
            if self.observe is not None:
                self.observe(node, result)
        return result

    def block(self, block: Graph, inputs: Sequence[Any]) -> list[Any]:
        """Run a block: it sees the symbols around it, and has its own for what differs from run to run."""
        see = self.observe_inside
        observe = None if see is None else lambda node, result: see(block.name, node.output.name, result)
        inner = _Run(observe, dict(self.sizes), self.run_part, see)
        for value, result in zip(block.inputs, inputs, strict=True):
            inner.learn(value, result)
            if see is not None:
                see(block.name, value.name, result)
        return inner.graph(block, dict(zip((v.name for v in block.inputs), inputs, strict=True)))

    def loop(self, node: Node, inputs: list[Any]) -> tuple[Any, ...]:
        """Run ``dlc.loop``."""
        rest = list(inputs)
        trips = int(_one(node, rest.pop(0), "trip count")) if node.attrs["has_trips"] else None
        going = bool(_one(node, rest.pop(0), "condition")) if node.attrs["has_condition"] else True
        count, scans = node.attrs["carried"], node.attrs["scanned"]
        carried, scanned, captured = rest[:count], rest[count : count + scans], rest[count + scans :]
        (block,) = node.blocks
        stacks: list[list[np.ndarray]] = [[] for _ in block.outputs[1 + count :]]
        iteration = 0
        while going and (trips is None or iteration < trips):
            slices = [np.require(array[iteration], requirements="C") for array in scanned]
            at, condition = np.asarray(iteration, np.int64), np.asarray(going)
            going, *results = self.block(block, [at, condition, *carried, *slices, *captured])
            going = bool(_one(node, going, "condition"))
            carried = results[:count]
            for stack, result in zip(stacks, results[count:], strict=True):
                stack.append(result)
            iteration += 1
        return (*carried, *(self._stacked(node, count + i, stack) for i, stack in enumerate(stacks)))

    def _stacked(self, node: Node, index: int, stack: list[np.ndarray]) -> np.ndarray:
        shape, dtype = node.attrs["shapes"][index], node.attrs["dtypes"][index]
        if not stack:  # extents that only an iteration would tell are 0, as in ONNX Runtime
            return np.empty(
                [0, *(0 if _unknown(d, self.sizes) else evaluate_dim(d, self.sizes) for d in shape[1:])], dtype
            )
        first, other = stack[0].shape, next((a.shape for a in stack if a.shape != stack[0].shape), None)
        if other is not None:
            raise DlcError(
                f"node {node.origin}: results cannot be stacked: "
                f"iterations give the extents {list(first)} and {list(other)}"
            )
        return np.stack(stack)
