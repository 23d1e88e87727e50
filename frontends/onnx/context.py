"""What a converter works with: the node's attributes, and `emit`, which notes an operator call or folds it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import ml_dtypes  # noqa: F401  (registers bfloat16 and the small floats with numpy)
import numpy as np
import onnx

from dlc.frontends.onnx.symbols import FactFoundError, Symbols, as_dims
from dlc.frontends.onnx.tensor import Block, Call, ConversionError, Dim, HostError, Tensor, constant
from dlc.ir.convert import UndecidedTypeError, infer_type
from dlc.ir.graph import TUPLE, symbol_names
from dlc.ir.ops import OPS
from dlc.ir.ops.host import FAIL, ITEM

# A folded constant is stored in the package: beyond this many elements the operator is cheaper than its result.
_FOLD_LIMIT = 1 << 22
_MOST_ELEMENTS = 1 << 48
# A pass forms integer operators from these, so they stay in the graph even on constants.
_NEVER_FOLDED = {"dlc.quantize", "dlc.dequantize"}
# Nobody convolves constants; a model with absurd paddings could ask for any amount of memory here.
_NEVER_FOLDED |= {"dlc.conv", "dlc.pool"}
Operand: TypeAlias = Tensor | int | float | bool


@dataclass(frozen=True)
class NodeView:
    """One ONNX node in plain Python: attributes decoded, references to a function's attributes resolved."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    proto: onnx.NodeProto

    @property
    def label(self) -> str:
        """How messages name the node."""
        known = self.name or next((o for o in self.outputs if o), "")
        domain = f"{self.domain}." if self.domain else ""
        return f"node '{known}' ({domain}{self.op_type})"


@dataclass
class Context:
    """The state of one node's conversion."""

    node: NodeView
    version: int
    symbols: Symbols
    calls: list[Call]
    onnx_op: str
    onnx_node: str
    certain: bool  # whether the node runs whenever the model does: not inside control flow
    branch: Callable[[onnx.GraphProto], tuple[Tensor, ...]]
    block: Callable[[onnx.GraphProto, Sequence[Tensor]], Block]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node; a default that is a fraction is rounded to float32, as attributes are."""
        default = float(np.float32(default)) if isinstance(default, float) else default
        return self.node.attrs.get(name, default)

    def require(self, name: str) -> Any:
        """An attribute that must be there."""
        if name not in self.node.attrs:
            raise ConversionError(f"attribute '{name}' is missing")
        return self.node.attrs[name]

    def wants(self, index: int) -> bool:
        """Whether the node's output at `index` is named."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    # --- constants and extents ---------------------------------------------------------------------------------------

    def constant(self, value: Any, dtype: str | None = None) -> Tensor:
        """A constant tensor."""
        return constant(np.asarray(value, dtype=dtype))

    def like(self, value: Any, tensor: Tensor) -> Tensor:
        """A scalar constant of a tensor's dtype."""
        return constant(np.asarray(value).astype(tensor.dtype))

    def extents(self, dims: Sequence[Dim]) -> Tensor:
        """An int64 vector that holds extents."""
        return self._from_elements(np.array(list(dims), dtype=object).reshape(len(dims)), "int64")

    def known(self, tensor: Tensor, what: str) -> np.ndarray:
        """The content of a tensor that must be constant; `what` is its role in the message."""
        if tensor.value is None:
            raise HostError(f"{what} must be known when compiling")
        return tensor.value

    def dims(self, tensor: Tensor, what: str) -> tuple[Dim, ...]:
        """The content of an integer tensor of extents: ints or symbolic expressions."""
        if tensor.elements is not None:
            return as_dims(tensor.elements)
        return as_dims(self.known(tensor, what))

    def ints(self, tensor: Tensor, what: str) -> tuple[int, ...]:
        """The content of an integer tensor that must be constant."""
        return tuple(int(v) for v in self.known(tensor, what).reshape(-1))

    def equal(self, a: Dim, b: Dim, what: str) -> Dim:
        """The one extent that `a` and `b` have to be; `what` names them in messages.

        Raises:
            ConversionError: they differ.
            FactFoundError: they are equal if an input's extent is a certain one, or in a certain range.
            HostError: only running tells, and what is to be done where they differ: the node may not run at all, or
                data say how large they are. Else a session holds the model's inputs to it.
        """
        difference = self.symbols.simplify(a - b)
        if isinstance(difference, int):
            if difference:
                raise ConversionError(f"{what} differ: {a} and {b}")
            return a if isinstance(a, int) else b
        self.find_size(a, b)
        if self.certain and self.symbols.demand(a, b, f"{self.node.label}: {what}, {a} and {b}, differ"):
            return a if isinstance(a, int) else b
        raise HostError(f"whether {what}, {a} and {b}, are equal is known only when running")

    def find_size(self, a: Dim, b: Dim) -> None:
        """Say where it follows from the equality of two extents how large a symbol is; see `Symbols.find_size`.

        In control flow, where the node may not run, it is only noted: see `dlc.frontends.onnx.control`.
        """
        try:
            self.symbols.find_size(a, b)
        except FactFoundError as found:
            if self.certain:
                raise
            self.symbols.noted.append(found)

    def number(self, tensor: Tensor, what: str) -> Any:
        """The one element of a constant."""
        array = self.known(tensor, what)
        if array.size != 1:
            raise ConversionError(f"{what} must have one element, got shape {list(array.shape)}")
        return array.reshape(-1)[0].item()

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front; ConversionError when there is no such axis."""
        if not -rank <= axis < rank:
            raise ConversionError(f"axis {axis} of a tensor with {rank} dimensions")
        return axis % rank

    # --- operators ---------------------------------------------------------------------------------------------------

    def emit(self, op: str, *operands: Operand, **attrs: Any) -> Tensor:
        """The result of an operator (``relax.`` is implied): folded where its operands are known, else a new call.

        Numbers become scalars of the first tensor's dtype.
        """
        op = op if op.startswith("dlc.") else f"relax.{op}"
        first = next((t for t in operands if isinstance(t, Tensor)), None)
        inputs = []
        for operand in operands:
            if isinstance(operand, Tensor):
                inputs.append(operand)
            else:
                assert first is not None
                inputs.append(self.like(operand, first))
        try:
            if op == "dlc.matmul":
                self._check_product(*inputs)
            elif op == "dlc.conv":
                self._check_inner(inputs[0].shape[1], inputs[1].shape[1] * attrs["groups"], inputs)
            shape, dtype = infer_type(op, [(t.shape, t.dtype) for t in inputs], attrs)
        except UndecidedTypeError as error:
            if OPS[op].kind == "elementwise":
                for dims in itertools.zip_longest(*(t.shape[::-1] for t in inputs), fillvalue=1):
                    for pair in itertools.combinations([d for d in dims if d != 1], 2):
                        self.symbols.find_limit(*pair)
                assumed = self._assumed_equal(inputs)
                if assumed is not None:
                    return self.emit(op.removeprefix("relax."), *assumed, **attrs)
            advice = "give the inputs' shapes, with one name for extents that are always equal"
            raise HostError(f"{error}; {advice}") from error
        shape = tuple(self.symbols.simplify(d) for d in shape)
        check_size(Tensor(shape, dtype))
        if any(isinstance(d, int) and d == 0 for d in shape):
            return self._empty(shape, dtype)
        folded = self._fold(op, inputs, attrs, shape, dtype)
        return folded if folded is not None else self._call(op, inputs, attrs, shape, dtype)

    def _assumed_equal(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Operands of one shape but for ones, where the import is for sizes for which they are; else None."""
        rank = max(t.rank for t in inputs)
        columns = zip(*([1] * (rank - t.rank) + list(t.shape) for t in inputs), strict=True)
        common = [next((d for d in column if not isinstance(d, int) or d != 1), 1) for column in columns]
        shapes = [
            [d if isinstance(d, int) and d == 1 else common[rank - t.rank + i] for i, d in enumerate(t.shape)]
            for t in inputs
        ]
        pairs = [pair for t, shape in zip(inputs, shapes, strict=True) for pair in zip(t.shape, shape, strict=True)]
        apart = [pair for pair in pairs if not self.symbols.same(*pair)]
        wrong = f"{self.node.label}: extents differ"
        if not self.symbols.assuming or not all(self.symbols.demand(a, b, wrong) for a, b in apart):
            return None
        return [self.reshape(t, shape) for t, shape in zip(inputs, shapes, strict=True)]

    def _empty(self, shape: tuple[Dim, ...], dtype: str) -> Tensor:
        """A tensor without elements: kernels need not know of them."""
        if all(isinstance(d, int) for d in shape):
            return constant(np.empty(shape, dtype))
        return self._call("relax.broadcast_to", [constant(np.zeros((), dtype))], {"shape": shape}, shape, dtype)

    def _check_product(self, a: Tensor, b: Tensor) -> None:
        """Hold a matrix product to extents that agree for every size of the symbols; its type rule takes that on trust.

        Raises:
            UndecidedTypeError: it depends on the sizes.
        """
        for x, y in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False):
            if 1 not in (x, y) and self.symbols.decide("equal", x, y) is None:
                self.symbols.find_limit(x, y)
                raise UndecidedTypeError(f"cannot tell whether the extents of {a} and {b} agree")
        if a.rank and b.rank:
            self._check_inner(a.shape[-1], b.shape[-2 if b.rank > 1 else -1], (a, b))

    def _check_inner(self, a: Dim, b: Dim, operands: Sequence[Tensor]) -> None:
        """The same for the extent that a contraction sums over."""
        if self.symbols.decide("equal", a, b) is None:
            self.symbols.find_size(a, b)
            self.symbols.find_limit(a, b)
            wrong = f"the extents {a} and {b} of {operands[0]} and {operands[1]} differ"
            if self.certain and self.symbols.demand(a, b, f"{self.node.label}: {wrong}"):
                return
            raise UndecidedTypeError(f"cannot tell whether the extents of {operands[0]} and {operands[1]} agree")

    def _call(
        self, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], shape: tuple[Dim, ...], dtype: str
    ) -> Tensor:
        return self._note(
            Call(op, tuple(self.materialised(t) for t in inputs), attrs, self.onnx_op, self.onnx_node),
            Tensor(shape, dtype),
        )

    def _note(self, call: Call, output: Tensor) -> Tensor:
        call.output, output.call = output, call
        self.calls.append(call)
        return output

    def results(
        self, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], types: Sequence[Tensor],
        blocks: Sequence[Block] = (),
    ) -> list[Tensor]:  # fmt: skip
        """The results of a host operator (see `dlc.ir.ops.host`), new tensors of the types of `types`."""
        operands = tuple(self.materialised(t) for t in inputs)
        declared: dict[str, Any] = {"shapes": tuple(t.shape for t in types), "dtypes": tuple(t.dtype for t in types)}
        declared["tells"] = tuple(
            sorted(self.symbols.told(declared["shapes"]) - symbol_names([t.shape for t in inputs]))
        )
        call = Call(op, operands, {**attrs, **declared}, self.onnx_op, self.onnx_node, blocks=tuple(blocks))
        source = self._note(call, Tensor((), TUPLE))
        items = []
        for index, wanted in enumerate(types):
            check_size(wanted)
            item = Call(ITEM, (source,), {"index": index}, self.onnx_op, self.onnx_node)
            items.append(self._note(item, Tensor(wanted.shape, wanted.dtype, type=wanted.type)))
            self.symbols.carry(items[-1], self.symbols.carriers)
        return items

    def failing(self, reason: str, other: Block) -> Block:
        """A block that fails; `other` is the one that does not: its results, and whatever it demands of sizes."""
        calls: list[Call] = []
        around = list(self.calls)
        self.calls[:] = []
        try:
            return Block([], calls, self.results(FAIL, [], {"reason": reason}, other.outputs), list(other.noted))
        finally:
            calls += self.calls
            self.calls[:] = around

    def captured(self, blocks: Sequence[Block]) -> list[Tensor]:
        """The values around blocks that they read, and those that only tell the size of a symbol inside."""
        found = list({id(t): t for block in blocks for t in block.captured()}.values())
        for block in blocks:
            made = {id(call.output) for call in block.calls}
            known = {str(d) for t in (*block.params, *found) for d in t.shape}
            extents = [[c.output.shape, [v for v in c.attrs.values() if not isinstance(v, str)]] for c in block.calls]
            wanted = symbol_names([extents, [t.shape for t in block.params]]) - known
            carriers = [self.symbols.carriers[name] for name in sorted(wanted) if name in self.symbols.carriers]
            found += {id(t): t for t in carriers if id(t) not in made}.values()
        return found

    def _fold(
        self, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], shape: tuple[Dim, ...], dtype: str
    ) -> Tensor | None:
        if not inputs or op in _NEVER_FOLDED or not all(t.value is not None or t.elements is not None for t in inputs):
            return None
        try:
            return self._folded(op, inputs, attrs, shape, dtype)
        except (ValueError, IndexError, OverflowError) as error:  # an index out of range, say
            raise ConversionError(" ".join(str(error).split())) from error

    def _folded(
        self, op: str, inputs: Sequence[Tensor], attrs: dict[str, Any], shape: tuple[Dim, ...], dtype: str
    ) -> Tensor | None:
        values = [t.value for t in inputs if t.value is not None]
        if len(values) < len(inputs):
            arrays = [t.elements if t.value is None else t.value.astype(object) for t in inputs]
            indices = op in ("relax.take", "relax.gather_elements")
            if indices:
                if inputs[1].value is None:
                    return None
                arrays[1] = inputs[1].value
            result = self.symbols.fold(op, [a for a in arrays if a is not None], attrs)
            return None if result is None else self._from_elements(result, dtype)
        if any(not isinstance(d, int) for d in shape) or any(_symbolic(v) for v in attrs.values()):
            return None
        if int(np.prod(shape, dtype=np.float64)) > max(_FOLD_LIMIT, 2 * sum(v.size for v in values)):
            return None
        array = np.asarray(OPS[op].meaning(values, attrs))
        return constant(array if str(array.dtype) == dtype else array.astype(dtype))

    def _from_elements(self, array: np.ndarray, dtype: str) -> Tensor:
        if all(isinstance(d, int | bool | np.integer | np.bool_) for d in array.reshape(-1)):
            return constant(array.astype(dtype))
        return Tensor(tuple(array.shape), dtype, elements=array)

    def materialised(self, tensor: Tensor) -> Tensor:
        """The tensor as an operand of a call: symbolic elements are computed when running, by ``dlc.extents``."""
        if tensor.elements is None:
            return tensor
        dims = as_dims(tensor.elements.reshape(-1))
        result = self._call("dlc.extents", [], {"shape": dims}, (len(dims),), "int64")
        if tensor.rank != 1:
            result = self._call("relax.reshape", [result], {"shape": tensor.shape}, tensor.shape, "int64")
        if tensor.dtype != "int64":
            result = self._call("relax.astype", [result], {"dtype": tensor.dtype}, tensor.shape, tensor.dtype)
        return result

    # --- short forms used by many converters -------------------------------------------------------------------------

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """`x` with another element type."""
        return x if x.dtype == dtype else self.emit("astype", x, dtype=dtype)

    def reshape(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """`x` with other extents of the same product."""
        wanted = tuple(self.symbols.simplify(d) for d in shape)
        if len(wanted) == x.rank and all(self.symbols.same(a, b) for a, b in zip(wanted, x.shape, strict=True)):
            return x
        above, below = self.symbols.product(x.shape), self.symbols.product(wanted)
        difference = self.symbols.simplify(above - below)
        if isinstance(difference, int) and difference != 0:
            raise ConversionError(f"cannot reshape {x} to [{', '.join(str(d) for d in wanted)}]")
        if isinstance(above, int) and above == 0:
            return self.broadcast(self.like(0, x), wanted)  # Relax refuses empty reshapes
        return self.emit("reshape", x, shape=wanted)

    def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """`x` with its dimensions in another order."""
        return x if list(axes) == list(range(x.rank)) else self.emit("permute_dims", x, axes=tuple(axes))

    def broadcast(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """`x` repeated to `shape`."""
        if len(shape) == x.rank and all(self.symbols.same(a, b) for a, b in zip(shape, x.shape, strict=True)):
            return x
        return self.emit("broadcast_to", x, shape=tuple(shape))

    def slice(self, x: Tensor, axis: int, begin: Dim, end: Dim, stride: int = 1) -> Tensor:
        """A range along one axis; `begin` and `end` within the extent."""
        if stride == 1 and self.symbols.same(begin, 0) and self.symbols.same(end, x.shape[axis]):
            return x
        return self.emit("strided_slice", x, axes=(axis,), begin=(begin,), end=(end,), strides=(stride,))

    def flip(self, x: Tensor, axis: int) -> Tensor:
        """`x` in reverse along one axis."""
        return self.emit("strided_slice", x, axes=(axis,), begin=(x.shape[axis] - 1,), end=(-1,), strides=(-1,))

    def reduce(self, mode: str, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
        """sum, mean, max, min or prod over axes; of no elements, the operation's neutral element."""
        if not axes:
            return x
        if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
            kept = [1 if i in axes else d for i, d in enumerate(x.shape)]
            shape = kept if keepdims else [d for i, d in enumerate(kept) if i not in axes]
            return self.broadcast(self.like(_neutral(mode, x), x), shape)
        return self.emit(mode, x, axes=tuple(axes), keepdims=int(keepdims))


def check_size(tensor: Tensor) -> None:
    """Raise ConversionError for extents below 0, and for a tensor that no machine holds (strides beyond 64 bits)."""
    known = [d for d in tensor.shape if isinstance(d, int)]
    if any(d < 0 for d in known):
        raise ConversionError(f"{tensor} has a negative extent")
    if prod(max(d, 1) for d in known) > _MOST_ELEMENTS:
        raise ConversionError(f"{tensor} is too large")


def _neutral(mode: str, x: Tensor) -> Any:
    if x.is_float:
        lowest, highest = -np.inf, np.inf
    else:
        info = np.iinfo(x.dtype) if x.dtype != "bool" else None
        lowest, highest = (info.min, info.max) if info else (False, True)
    return {"sum": 0, "prod": 1, "max": lowest, "min": highest, "mean": np.nan}[mode]


def _symbolic(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_symbolic(v) for v in value)
    return not isinstance(value, int | float | str | np.generic)
