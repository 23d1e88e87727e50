"""Reading an expression of dequantised values as integers: codes, integer terms, and sums of them under a clip.

A *leaf* is codes with a scale and a zero point, moved about at most. A *term* is an int32 value with a scale: the
accumulator of a contraction, a sum over a window, a product of codes, or codes themselves. A *linear form* is
``clip(sum of terms + bias)``. Nothing is written here before it is asked for with `Term.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlc.ir import arithmetic
from dlc.ir.graph import Node
from dlc.ir.ops.pool import counts
from dlc.ir.ops.quantization import along_axis
from dlc.ir.rewrite import Rewriter
from dlc.passes.quantize.plan import CONTRACTIONS, is_movement
from dlc.passes.simplify.match import same_shape, unnamed

INT32_MAX = 2**31 - 1
#: Half of int32: the other half is room for the bias, which `weights.quantize_weight` keeps below it.
LOOSE_BOUND = 2**30
#: More terms than this leave too few bits a multiplier in fixed arithmetic, and no kernel takes them.
MOST_TERMS = 4


@dataclass(frozen=True)
class Leaf:
    """uint8 codes: the old value `source`, then `moves` (the node that makes the leaf's value last)."""

    source: str
    scale: np.float32
    zero_point: int
    moves: tuple[Node, ...] = ()

    def same_parameters(self, scale: np.float32, zero_point: int) -> bool:
        """Whether equal codes mean equal reals."""
        return bool(self.scale == scale) and self.zero_point == zero_point


@dataclass(frozen=True)
class Term:
    """One integer term: real value = ``x_scale * w_scale / count * (integer - zero_point)``, negated where `negative`.

    Attributes:
        node: what it comes from, for names and reasons.
        bound: the greatest magnitude the integer can reach.
        w_scale: broadcasts against the value.
        build: writes the integer value; called once.
        codes: whether it is codes as they are (which cannot take a bias).
    """

    node: Node
    build: Callable[[], Any]
    x_scale: np.float32
    w_scale: np.ndarray
    bound: int
    count: int = 1
    zero_point: int = 0
    negative: bool = False
    codes: bool = False

    def unit(self) -> np.ndarray:
        """The real value of one step, in float64."""
        return np.asarray(np.float64(self.x_scale) * self.w_scale.astype(np.float64) / self.count)


@dataclass(frozen=True)
class Linear:
    """``min(max(sum of terms + bias, lo), hi)``."""

    terms: tuple[Term, ...]
    bias: np.ndarray | None = None
    lo: float = -np.inf
    hi: float = np.inf

    @property
    def clipped(self) -> bool:
        """Whether a clip has been applied: such a value is no term of a sum."""
        return self.lo > -np.inf or self.hi < np.inf

    def negated(self) -> Linear:
        """The form of the opposite value; only without a clip."""
        terms = tuple(replace(t, negative=not t.negative) for t in self.terms)
        return Linear(terms, None if self.bias is None else -self.bias)


@dataclass
class Reader:
    """Reads forms from the graph before the rewrite. `reasons` collects why a node has none, by value name."""

    state: Rewriter
    reasons: dict[str, str] = field(default_factory=dict)
    built: dict[tuple[str, str], Any] = field(default_factory=dict)

    def fail(self, node: Node, reason: str) -> None:
        """Note why a node has no integer form (the first reason is the deepest, and stays)."""
        self.reasons.setdefault(node.output.name, reason)

    def once(self, name: str, what: str, build: Callable[[], Any]) -> Any:
        """Write something at most once."""
        if (name, what) not in self.built:
            self.built[name, what] = build()
        return self.built[name, what]

    # --- constants and leaves ----------------------------------------------------------------------------------------

    def parameters(self, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and zero point of a quantize or dequantize node where both are constant."""
        scale, zero = (self.state.constant(name) for name in node.inputs[1:3])
        return None if scale is None or zero is None else (scale, zero)

    def scalar_parameters(self, node: Node) -> tuple[np.float32, int] | None:
        """The same where both are single numbers."""
        found = self.parameters(node)
        if found is None or found[0].size != 1 or found[1].size != 1 or not 0 < found[0].reshape(()) < np.inf:
            return None
        return np.float32(found[0].reshape(())), int(found[1].reshape(()))

    def constant(self, name: str) -> np.ndarray | None:
        """A constant, or a dequantised one, in float64."""
        array = self.state.constant(name)
        if array is not None:
            return array.astype(np.float64)
        node = self.state.producer(name, "dlc.dequantize")
        codes = self.state.constant(node.inputs[0]) if node is not None else None
        found = self.parameters(node) if node is not None else None
        if node is None or codes is None or found is None:
            return None
        scale, zero = (along_axis(p, codes.ndim, node.attrs["axis"]).astype(np.float64) for p in found)
        return (codes.astype(np.float64) - zero) * scale

    def leaf(self, name: str) -> Leaf | None:
        """The codes behind a value: a dequantised uint8, or one that was moved about since."""
        node = self.state.producer(name)
        if node is None:
            return None
        if is_movement(node):
            below = self.leaf(node.inputs[0])
            return replace(below, moves=(*below.moves, node)) if below is not None else None
        if node.op != "dlc.dequantize" or node.output.dtype != "float32":
            return None
        value, found = self.state.value(node.inputs[0]), self.scalar_parameters(node)
        if self.state.constant(node.inputs[0]) is not None:
            return None
        if value.dtype != "uint8":
            self.fail(node, f"{value.dtype} activations have no integer kernels")
            return None
        if found is None:
            self.fail(node, "the activation has more than one scale, or one that is not constant")
            return None
        return Leaf(node.inputs[0], *found)

    def move(self, node: Node, codes: Any, zero_point: int) -> Any:
        """A movement (or maximum) written on codes: padding with real 0 is padding with the zero point."""
        attrs = dict(node.attrs)
        if node.op == "relax.nn.pad":
            attrs["value"] = float(zero_point)
        if node.op == "dlc.pool":
            attrs["out_dtype"] = "uint8"
        return self.state.emit(node.op, [codes], attrs, node.origin)

    def codes(self, leaf: Leaf) -> Any:
        """The leaf's codes, written at most once."""
        if not leaf.moves:
            return self.state.new(leaf.source)
        last = leaf.moves[-1]
        below = replace(leaf, moves=leaf.moves[:-1])
        return self.once(last.output.name, "codes", lambda: self.move(last, self.codes(below), leaf.zero_point))

    def centred(self, leaf: Leaf, node: Node) -> Any:
        """The leaf as int32 with its zero point subtracted."""
        wide = self.state.emit("relax.astype", [self.codes(leaf)], {"dtype": "int32"}, unnamed(node.origin))
        if leaf.zero_point == 0:
            return wide
        zero = self.state.const(np.asarray(leaf.zero_point, np.int32))
        return self.state.emit("relax.subtract", [wide, zero], {}, unnamed(node.origin))

    # --- terms -------------------------------------------------------------------------------------------------------

    def term(self, name: str) -> Term | None:
        """The value as one integer term."""
        leaf, node = self.leaf(name), self.state.producer(name)
        if node is None:
            return None
        if leaf is not None:
            one, bound = np.ones((), np.float32), max(leaf.zero_point, 255 - leaf.zero_point)
            return Term(node, lambda: self.codes(leaf), leaf.scale, one, bound, zero_point=leaf.zero_point, codes=True)
        if node.op in CONTRACTIONS and node.output.dtype == "float32":
            return self.contraction(node)
        if node.op == "dlc.pool" and node.attrs["mode"] == "average":
            return self.average(node)
        if node.op == "relax.mean":
            return self.mean(node)
        if node.op == "relax.multiply":
            return self.product(node)
        return None

    def weight(self, node: Node) -> tuple[np.ndarray, np.ndarray] | None:
        """int8 codes and their scales (one, or one an output channel) of a contraction's weight."""
        made = self.state.producer(node.inputs[1], "dlc.dequantize")
        codes = self.state.constant(made.inputs[0]) if made is not None else None
        found = self.parameters(made) if made is not None else None
        if made is None or codes is None or found is None:
            self.fail(node, "its weight is not a constant of integers")
            return None
        scale, zero = found
        if codes.dtype == np.uint8 and np.all(zero == 128):
            codes, zero = (codes.astype(np.int16) - 128).astype(np.int8), np.zeros_like(zero)
        if codes.dtype != np.int8 or np.any(zero != 0):
            what = f"is {codes.dtype}" if codes.dtype != np.int8 else "has a zero point that is not 0"
            self.fail(node, f"its weight {what}: only int8 with zero point 0 has integer kernels")
            return None
        axis = 0 if node.op == "dlc.conv" else codes.ndim - 1
        if scale.size != 1 and (scale.ndim != 1 or made.attrs["axis"] % codes.ndim != axis):
            self.fail(node, "its weight's scales do not run along the output channels")
            return None
        return codes, scale.reshape(-1) if scale.size != 1 else scale.reshape(())

    def contraction(self, node: Node) -> Term | None:
        """An integer convolution or matrix product."""
        x, weight = self.leaf(node.inputs[0]), self.weight(node)
        if x is None:
            self.fail(node, "its input is not a dequantised uint8 with one scale")
            return None
        if weight is None:
            return None
        codes, scale = weight
        if node.op == "dlc.matmul" and codes.ndim != 2:
            self.fail(node, f"a matrix product with a weight of {codes.ndim} dimensions has no integer kernel")
            return None
        axis = 0 if node.op == "dlc.conv" else 1
        bound = codes.size // max(codes.shape[axis], 1) * 128 * max(x.zero_point, 255 - x.zero_point)
        if bound > LOOSE_BOUND:  # only then are the weights themselves worth adding up
            bound = int(arithmetic.accumulator_bound(codes, axis, 0, 255, x.zero_point).max())
        if bound > INT32_MAX:
            self.fail(node, f"its sums can reach {bound}, beyond int32 ({INT32_MAX})")
            return None
        spatial = codes.ndim - 2 if node.op == "dlc.conv" else 0
        shaped = scale.reshape(-1, *(1,) * spatial) if scale.ndim else scale
        zero = "x_zero_point" if node.op == "dlc.conv" else "a_zero_point"
        attrs = {**node.attrs, "out_dtype": "int32", zero: x.zero_point}
        if node.op == "dlc.matmul":
            attrs["b_zero_point"] = 0

        def build() -> Any:
            inputs = [self.codes(x), self.state.const(codes)]
            return self.once(
                node.output.name, "acc", lambda: self.state.emit(node.op, inputs, attrs, unnamed(node.origin))
            )

        return Term(node, build, x.scale, shaped.astype(np.float32), bound)

    def average(self, node: Node) -> Term | None:
        """An average pooling: the sum over each window, to be divided by the requantisation."""
        x = self.leaf(node.inputs[0])
        count = self._count(node)
        if x is None:
            return None
        if count is None:
            self.fail(node, "its windows hold different numbers of elements")
            return None
        attrs = {**node.attrs, "mode": "sum", "out_dtype": "int32", "x_zero_point": x.zero_point}

        def build() -> Any:
            codes = self.codes(x)
            return self.once(
                node.output.name, "acc", lambda: self.state.emit(node.op, [codes], attrs, unnamed(node.origin))
            )

        return self._sum_term(node, build, x, count)

    def _count(self, node: Node) -> int | None:
        """How many elements each window averages over, where all have the same number."""
        attrs = node.attrs
        extents = self.state.value(node.inputs[0]).shape
        extents = extents[2:] if attrs["layout"] == "channels_first" else extents[1:-1]
        plain = not any(attrs["pads"]) or attrs.get("count_include_pad")
        if plain and not attrs["ceil_mode"]:
            return int(np.prod(attrs["kernel"]))
        if not all(isinstance(d, int) for d in extents):
            return None
        found = np.unique(counts(extents, attrs))
        return int(found[0]) if found.size == 1 else None

    def mean(self, node: Node) -> Term | None:
        """A mean over axes of known extents: the sum, to be divided by the requantisation."""
        x = self.leaf(node.inputs[0])
        shape = self.state.value(node.inputs[0]).shape
        extents = [shape[axis] for axis in node.attrs["axes"]]
        if x is None:
            return None
        if not all(isinstance(d, int) for d in extents):
            self.fail(node, "it averages over a symbolic extent")
            return None

        def build() -> Any:
            wide = self.centred(x, node)
            return self.once(
                node.output.name,
                "acc",
                lambda: self.state.emit("relax.sum", [wide], node.attrs, unnamed(node.origin)),
            )

        return self._sum_term(node, build, x, int(np.prod(extents)))

    def _sum_term(self, node: Node, build: Callable[[], Any], x: Leaf, count: int) -> Term | None:
        bound = 255 * count
        if bound > INT32_MAX:
            self.fail(node, f"its sums can reach {bound}, beyond int32 ({INT32_MAX})")
            return None
        return Term(node, build, x.scale, np.ones((), np.float32), bound, count=count)

    def product(self, node: Node) -> Term | None:
        """A product of two codes."""
        a, b = (self.leaf(name) for name in node.inputs)
        if (a is None) != (b is None):
            return self.scaled(node, *((a, node.inputs[1]) if a is not None else (b, node.inputs[0])))
        if a is None or b is None:
            return None

        def build() -> Any:
            inputs = [self.centred(a, node), self.centred(b, node)]
            return self.once(
                node.output.name, "acc", lambda: self.state.emit(node.op, inputs, {}, unnamed(node.origin))
            )

        return Term(node, build, a.scale, np.asarray(b.scale), 255 * 255)

    def scaled(self, node: Node, x: Leaf | None, factor: str) -> Term | None:
        """Codes times dequantised int8 constants, one or one along an axis."""
        made = self.state.producer(factor, "dlc.dequantize")
        codes = self.state.constant(made.inputs[0]) if made is not None else None
        found = self.parameters(made) if made is not None else None
        if x is None or made is None or codes is None or found is None or codes.dtype != np.int8 or np.any(found[1]):
            self.fail(node, "one of its operands is not codes")
            return None
        if not same_shape(self.state.value(node.output.name).shape, self.shape(x)):
            self.fail(node, "its constant is larger than its codes")
            return None
        scale = along_axis(found[0], codes.ndim, made.attrs["axis"])

        def build() -> Any:
            inputs = [self.centred(x, node), self.state.const(codes.astype(np.int32))]
            return self.once(
                node.output.name, "acc", lambda: self.state.emit(node.op, inputs, {}, unnamed(node.origin))
            )

        return Term(node, build, x.scale, scale.astype(np.float32), 255 * 128)

    def shape(self, leaf: Leaf) -> Sequence[Any]:
        """The extents of a leaf's value."""
        return self.state.value(leaf.moves[-1].output.name if leaf.moves else leaf.source).shape

    # --- linear forms ------------------------------------------------------------------------------------------------

    def linear(self, name: str) -> Linear | None:
        """The value as a clipped sum of integer terms and a constant."""
        node = self.state.producer(name)
        if node is None:
            return None
        if node.op in ("relax.nn.relu", "relax.maximum", "relax.minimum"):
            return self._clip(node)
        if node.op in ("relax.add", "relax.subtract") and self.leaf(name) is None:
            return self._sum(node)
        term = self.term(name)
        return Linear((term,)) if term is not None else None

    def _clip(self, node: Node) -> Linear | None:
        if node.op == "relax.nn.relu":
            operand, bound = node.inputs[0], 0.0
        else:
            scalars = [self.state.scalar(name) for name in node.inputs]
            if sum(s is not None for s in scalars) != 1:
                return None
            operand = node.inputs[0] if scalars[0] is None else node.inputs[1]
            bound = float(scalars[0] if scalars[1] is None else scalars[1])
        below = self.linear(operand)
        if below is None or np.isnan(bound) or not same_shape(self.state.value(operand).shape, node.output.shape):
            return None
        limit = min if node.op == "relax.minimum" else max
        return replace(below, lo=limit(below.lo, bound), hi=limit(below.hi, bound))

    def _sum(self, node: Node) -> Linear | None:
        parts: list[Linear | np.ndarray] = []
        for name in node.inputs:
            constant = self.constant(name)
            part = constant if constant is not None else self.linear(name)
            if part is None:
                return None
            if isinstance(part, Linear) and part.clipped:
                self.fail(node, "an operand is clipped and not quantised before the sum")
                return None
            parts.append(part)
        if node.op == "relax.subtract":
            parts[1] = parts[1].negated() if isinstance(parts[1], Linear) else -parts[1]
        return self._join(node, parts)

    def _join(self, node: Node, parts: Sequence[Linear | np.ndarray]) -> Linear | None:
        terms = [t for part in parts if isinstance(part, Linear) for t in part.terms]
        biases = [p.bias if isinstance(p, Linear) else p for p in parts]
        present = [b for b in biases if b is not None]
        if not terms or len(terms) > MOST_TERMS:
            self.fail(node, f"it adds {len(terms)} values; at most {MOST_TERMS} are added in integers")
            return None
        shapes = [t.node.output.shape for t in terms]
        if not any(same_shape(shape, node.output.shape) for shape in shapes):
            self.fail(node, "an operand is broadcast to a shape that no term has")
            return None
        bias = None
        if present:
            bias = np.asarray(sum(present[1:], start=present[0]))
        # The accumulators first: the sum in float arithmetic goes from left to right.
        return Linear(tuple(sorted(terms, key=lambda t: t.codes)), bias)
