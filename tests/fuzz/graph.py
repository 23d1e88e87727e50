"""A random graph under construction: every value is there with its content, because each node runs when it is added.

So generators may be careless about types and shapes: a node that no oracle runs is dropped, and indices, extents and
magnitudes can be chosen by looking at what the values hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.fuzz.oracle import OracleError, run_oracle

FLOATS = ("float32", "float16", "float64")
INTS = ("int64", "int32", "int8", "uint8", "int16", "uint16", "uint32", "uint64")
_MOST_ELEMENTS = 6000
_LARGEST = {"float16": 2e3, "float32": 1e6, "float64": 1e6}
OLDEST_IR = 8


class RejectedError(Exception):
    """The node that was tried is not possible here; nothing has been added."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph and what it holds for the chosen inputs."""

    name: str
    array: np.ndarray
    constant: bool = False

    @property
    def dtype(self) -> str:
        """numpy's name of the element type."""
        return str(self.array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents."""
        return self.array.shape

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.array.ndim

    @property
    def given(self) -> bool:
        """Whether it is an input or a constant, which nothing rounds."""
        return self.constant or (self.name[0] == "x" and self.name[1:].isdigit())


def info(name: str, array: np.ndarray, dims: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    """The declaration of a value."""
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape if dims is None else dims
    )


@dataclass
class Graph:
    """A graph, or a subgraph that sees the values of `parent`."""

    rng: np.random.Generator
    opset: int
    parent: Graph | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, Value] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)  # inputs whose extents stay numbers
    held: dict[str, Value] = field(default_factory=dict)  # every value of the model, by name; shared with subgraphs

    # --- chance ---

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def one_of(self, choices: Sequence[Any]) -> Any:
        """One of several, all equally likely."""
        if not len(choices):
            raise RejectedError
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, low: int, high: int) -> int:
        """An integer of the closed range."""
        if high < low:
            raise RejectedError
        return int(self.rng.integers(low, high + 1))

    def random(self, dtype: str, shape: Sequence[int]) -> np.ndarray:
        """Random content: moderate numbers, now and then special ones."""
        if dtype == "bool":
            return np.asarray(self.rng.random(tuple(shape)) < 0.5)
        kind = np.dtype(dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            low, high = (0 if kind.kind == "u" else -9), 10
            if self.chance(0.1):
                low, high = int(limits.min), int(limits.max)
            return np.asarray(self.rng.integers(low, high, tuple(shape), kind, endpoint=True))
        array = np.asarray(self.rng.standard_normal(tuple(shape)) * self.one_of([0.3, 1, 1, 3]))
        if self.chance(0.15):
            array = np.round(array * 2) / 2  # ties, zeros, equal elements
        if self.chance(0.03):
            array = np.where(self.rng.random(tuple(shape)) < 0.1, self.one_of([np.nan, np.inf, -np.inf]), array)
        return array.astype(dtype)

    def extent(self) -> int:
        """The extent of one dimension."""
        return int(self.one_of([1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 16, 17, 19]))

    def shape(self, low: int = 0, high: int = 5) -> tuple[int, ...]:
        """Extents for a random rank, often those of a value that is there."""
        rank = self.between(low, high)
        known = [e for v in self.seen() for e in v.shape if e]
        pick = [int(self.one_of(known)) if known and self.chance(0.4) else self.extent() for _ in range(rank)]
        if rank and self.chance(0.02):
            pick[self.between(0, rank - 1)] = 0
        while int(np.prod(pick)) > _MOST_ELEMENTS // 4:
            pick[int(np.argmax(pick))] = self.between(1, 3)
        return tuple(pick)

    # --- values ---

    def seen(self) -> list[Value]:
        """The values that a node may read."""
        return self.values + (self.parent.seen() if self.parent is not None else [])

    def name(self, hint: str) -> str:
        """A new name, of the whole model."""
        name = f"{hint.lower()}{len(self.held)}"
        self.held[name] = Value(name, np.empty(0))
        return name

    def _hold(self, value: Value) -> Value:
        self.held[value.name] = value
        return value

    def constant(self, array: Any, dtype: str | None = None) -> Value:
        """An initialiser, at times a Constant node."""
        array = np.asarray(array, dtype=dtype)
        name = self.name("c")
        if self.chance(0.15):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        else:
            self.constants.append(numpy_helper.from_array(array, name))
        return self._hold(Value(name, array, constant=True))

    def input(self, array: np.ndarray, fixed: bool = False) -> Value:
        """A new input of the whole graph."""
        if self.parent is not None:
            return self.parent.input(array, fixed)
        value = self._hold(Value(self.name("x"), np.asarray(array)))
        self.inputs[value.name] = value
        if fixed:
            self.fixed.add(value.name)
        else:
            self.values.append(value)
        return value

    def param(self, array: Any, dtype: str = "int64") -> Value:
        """What is a constant in most models (axes, extents), and an input in some."""
        array = np.asarray(array, dtype=dtype)
        return self.input(array, fixed=True) if self.chance(0.05) else self.constant(array)

    def operand(self, dtype: str, shape: Sequence[int]) -> Value:
        """A value of a type: one that is there, a constant, or a new input."""
        found = [v for v in self.seen() if v.dtype == dtype and v.shape == tuple(shape)]
        if found and self.chance(0.6):
            return self.recent(found)
        array = self.random(dtype, shape)
        return self.constant(array) if self.chance(0.6) else self.input(array)

    def weight(self, dtype: str, shape: Sequence[int]) -> Value:
        """A mostly constant operand of moderate size."""
        array = (self.rng.standard_normal(tuple(shape)) / np.sqrt(max(1, np.prod(shape[1:])))).astype(dtype)
        return self.constant(array) if self.chance(0.85) else self.input(array)

    def recent(self, values: Sequence[Value]) -> Value:
        """One of the values, later ones more often."""
        if not values:
            raise RejectedError
        return values[len(values) - 1 - min(int(self.rng.geometric(0.25)) - 1, len(values) - 1)]

    def pick(self, accept: Callable[[Value], bool] = lambda v: True) -> Value:
        """A value that is there and acceptable; RejectedError if there is none."""
        own = [v for v in self.values if accept(v)]
        around = [v for v in self.seen() if accept(v)]
        return self.recent(own if own and self.chance(0.8) else around)

    def floats(self, low: int = 0, high: int = 9) -> Value:
        """A float value of a rank in a range, made from another one or new where there is none."""
        try:
            return self.pick(lambda v: v.dtype in FLOATS and low <= v.rank <= high)
        except RejectedError:
            if self.chance(0.5):
                raise
            dtype = self.one_of(["float32"] * 6 + ["float16", "float64"])
            return self.input(self.random(dtype, self.shape(low, min(high, 5))))

    # --- nodes ---

    def since(self, op: str, domain: str = "") -> int:
        """The version of an operator that holds here; RejectedError if there is none."""
        try:
            schema = onnx.defs.get_schema(op, self.opset, domain)
        except onnx.defs.SchemaError:
            raise RejectedError from None
        if schema.deprecated:
            raise RejectedError
        return int(schema.since_version)

    def add(self, op: str, inputs: Sequence[Value | None], outputs: int = 1, **attrs: Any) -> list[Value]:
        """Add a node, run it, and return its outputs; RejectedError if that does not work."""
        self.since(op)
        attrs = {key: value for key, value in attrs.items() if value is not None}
        names = [self.name(op) for _ in range(outputs)]
        node = helper.make_node(op, [v.name if v else "" for v in inputs], names, name=f"n_{names[0]}", **attrs)
        feeds = [self.held[name] for name in dict.fromkeys(reads(node))]
        arrays = self._run(node, feeds)
        if sum(a.size for a in arrays) > _MOST_ELEMENTS:
            raise RejectedError
        if op.endswith("Pool") and not all(a.size for a in arrays):  # no window fits: whether that is valid is open
            raise RejectedError
        if op.endswith("MaxPool") and _lowest(arrays[0]):
            raise RejectedError
        if any(_wild(a) for a in arrays) and self.chance(0.9):
            raise RejectedError
        self.nodes.append(node)
        made = [self._hold(Value(n, a)) for n, a in zip(names, arrays, strict=True)]
        self.values += made
        return made

    def _run(self, node: onnx.NodeProto, feeds: Sequence[Value]) -> list[np.ndarray]:
        graph = onnx.GraphProto(name="one", node=[node])
        graph.input.extend(info(v.name, v.array) for v in feeds if not v.constant)
        graph.initializer.extend(numpy_helper.from_array(v.array, v.name) for v in feeds if v.constant)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir_of(self))
        try:
            return run_oracle(model, {v.name: v.array for v in feeds if not v.constant})[1]
        except OracleError as error:
            raise RejectedError(str(error)) from None

    def sub(self, rng_values: Sequence[Value] = ()) -> Graph:
        """An empty subgraph that sees this one's values; its inputs hold the given values."""
        inner = Graph(self.rng, self.opset, self, held=self.held)
        inner.inputs = {v.name: v for v in rng_values}
        inner.values = [v for v in rng_values]
        return inner

    def proto(self, outputs: Sequence[Value], name: str = "body") -> onnx.GraphProto:
        """The graph as a subgraph's proto."""
        return helper.make_graph(
            self.nodes,
            name,
            [info(v.name, v.array, [None] * v.rank) for v in self.inputs.values()],
            [info(v.name, v.array, [None] * v.rank) for v in outputs],
            self.constants,
        )


def ir_of(graph: Graph) -> int:
    """An IR version that fits the operator set."""
    return OLDEST_IR if graph.opset < 19 else 10


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, from around its subgraphs too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += _free(attribute.g)
    return names


def _free(graph: onnx.GraphProto) -> list[str]:
    made = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    found = []
    for node in graph.node:
        found += [name for name in reads(node) if name not in made]
        made |= set(node.output)
    return found + [v.name for v in graph.output if v.name not in made]


def _wild(array: np.ndarray) -> bool:
    """Whether a result would drown what follows."""
    if array.dtype.kind == "i" and array.dtype.itemsize == 8 and array.size:
        return bool(np.abs(array.astype(np.float64)).max() > 1e12)  # runtimes overflow in different ways
    if array.dtype.kind != "f" or not array.size:
        return False
    with np.errstate(all="ignore"):
        bad = ~np.isfinite(array)
        return bool(bad.mean() > 0.3 or np.max(np.abs(np.where(bad, 0, array))) > _LARGEST[str(array.dtype)])


def _lowest(array: np.ndarray) -> bool:
    """Whether a maximum is the lowest finite number: what onnxruntime answers for windows that hold only -inf."""
    return array.dtype.kind == "f" and bool((array == np.finfo(array.dtype).min).any())


def replaced(value: Value, array: np.ndarray) -> Value:
    """The value with other content."""
    return dataclasses.replace(value, array=array)
