"""Symbolic extents: names, comparison, and arithmetic on tensors that hold extents.

A symbol stands for an extent from 1 to 10^9, so that `Equal(n, 0)` and `Equal(n, -1)`, which exporters write around
Reshape and Expand, are decided when compiling, and
so is a slice that ends at "infinity".
"""

from __future__ import annotations

import keyword
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer

from dlc.frontends.onnx.tensor import ConversionError, Dim
from dlc.ir.dims import symbols
from dlc.ir.graph import free_name, symbol_names
from dlc.ir.interpret import evaluate_dim
from dlc.ir.ops import OPS
from dlc.ir.serial import extent_text
from dlc.runtime.demands import Demands

_LARGEST_EXTENT = 1_000_000_000  # what exporters write for "to the end" is this or more
_RESERVED = {"int", "max", "min", "T"}  # names that extents printed as text already use


@dataclass(frozen=True)
class Fact:
    """What the model demands of the size of an input's symbol.

    Attributes:
        largest: the largest size; None where there is no limit.
        equals: the size itself, or another symbol's name.
        least: the least size.
    """

    largest: int | None = None
    equals: int | str | None = None
    least: int = 1

    def both(self, other: Fact) -> Fact:
        """This fact and another one of the same symbol."""
        largest = [each.largest for each in (self, other) if each.largest is not None]
        equals = self.equals if self.equals is not None else other.equals
        return Fact(min(largest, default=None), equals, max(self.least, other.least))


class FactFoundError(Exception):
    """The model fails for other sizes of a symbol than `fact` says: the import begins again with what is known now."""

    def __init__(self, name: str, fact: Fact) -> None:
        super().__init__(f"{name}: {fact}")
        self.name, self.fact = name, fact


class Symbols:
    """The symbolic extents of one import.

    Attributes:
        facts: what is known of sizes, by the symbols' names.
        cuts: by a symbol's name, the sizes from which on a comparison has another answer, of those that were not
            decided.
        assuming: whether the import is for certain sizes only, so that extents may be assumed to be equal.
    """

    def __init__(self, facts: Mapping[str, Fact] | None = None) -> None:
        self.facts = dict(facts or {})
        self._analyzer = Analyzer()
        self._by_name: dict[str, Any] = {}
        self._identifiers: set[str] = set()
        self._of_inputs: dict[str, Dim] = {}
        self.carriers: dict[str, Any] = {}  # by a symbol's name, a tensor that has it as an extent
        self._told: set[str] = set()  # by data, when running
        self._equal: dict[str, str] = {}
        self.cuts: dict[str, set[int]] = {}
        self.assuming = False
        self.noted: list[FactFoundError] = []  # in the block at hand

    @property
    def demands(self) -> Demands:
        """What has to hold of the sizes, beyond the shapes of the inputs."""
        bounded = {name: fact for name, fact in self.facts.items() if fact.equals is None}
        limits = {name: fact.largest for name, fact in bounded.items() if fact.largest is not None}
        return Demands(limits, {name: fact.least for name, fact in bounded.items() if fact.least > 1}, self._equal)

    def demand(self, a: Dim, b: Dim, wrong: str) -> bool:
        """Have a session hold `a` and `b` to be equal, and say `wrong` where not; False where it cannot know them."""
        known = {str(dim.name) for dim in self._of_inputs.values() if not isinstance(dim, int)}
        if not symbol_names([a, b]) <= known:
            return False
        self._equal[f"{extent_text(a)} == {extent_text(b)}"] = wrong
        return True

    def named(self, name: str) -> Any:
        """The symbol of a dimension name: the same for the same name."""
        if name not in self._by_name:
            self._by_name[name] = self._new(name)
        return self._by_name[name]

    def fresh(self, hint: str, least: int = 1) -> Any:
        """A symbol of its own, for a dimension without a name; `least` is 0 where the extent depends on data."""
        symbol = self._new(hint, least)
        if least == 0:
            self._told.add(str(symbol.name))
        return symbol

    def carry(self, tensor: Any, but: Collection[str] = ()) -> None:
        """Note which symbols, except those of `but`, are extents of `tensor`, so that it tells their sizes."""
        for dim in tensor.shape:
            if isinstance(dim, tirx.Var) and dim.name not in but:
                self.carriers[dim.name] = tensor

    def told(self, item: Any) -> set[str]:
        """The symbols in `item` (whatever holds extents) whose sizes data tell."""
        return symbol_names(item) & self._told

    def _new(self, hint: str, least: int = 1) -> Any:
        base = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in hint) or "n"
        if not base[0].isalpha() or keyword.iskeyword(base) or base in _RESERVED:
            base = f"n_{base}"
        name = free_name(base, self._identifiers)
        self._identifiers.add(name)
        fact = self.facts.get(name, Fact())
        if fact.equals is not None:
            dim = self._of_inputs[fact.equals] if isinstance(fact.equals, str) else fact.equals
        else:
            dim = tirx.Var(name, "int64")
            self._analyzer.bind(dim, _range(fact.least if least else 0, fact.largest or _LARGEST_EXTENT))
        if least > 0:
            self._of_inputs[name] = dim
        return dim

    def names(self) -> frozenset[str]:
        """The names of all symbols so far."""
        return frozenset(self._identifiers)

    def simplify(self, dim: Dim) -> Dim:
        """The extent in its simplest form; an int where it is a number."""
        if isinstance(dim, int | np.integer):
            return int(dim)
        result = self._analyzer.simplify(dim)
        if isinstance(result, tirx.IntImm):
            return int(result.value)
        bound = self._analyzer.const_int_bound(result)
        return int(bound.min_value) if bound.min_value == bound.max_value else result

    def same(self, a: Dim, b: Dim) -> bool:
        """Whether two extents are equal for every size of the symbols."""
        difference = self.simplify(a - b)
        return isinstance(difference, int) and difference == 0

    def decide(self, comparison: str, a: Dim, b: Dim) -> bool | None:
        """Whether ``a comparison b`` holds for every size of the symbols, for none (False), or depends (None)."""
        difference = self.simplify(a - b)
        if isinstance(difference, int):
            return _COMPARE[comparison](difference)
        if self._analyzer.can_prove(_PROVE[comparison](difference)):
            return True
        if self._analyzer.can_prove(_PROVE[_OPPOSITE[comparison]](difference)):
            return False
        return None

    def find_limit(self, a: Dim, b: Dim) -> None:
        """Two extents have to broadcast: say where that limits a symbol.

        A table of 512 rows, cut to n and added to n rows, has n and min(n, 512): the model is right up to n = 512.

        Raises:
            FactFoundError: the extents are equal up to a size of an input's symbol, and do not broadcast beyond.
        """
        dims = [tirx.IntImm("int64", d) if isinstance(d, int) else d for d in (a, b)]
        for var in symbols([a, b]):
            for bound in _bounds([a, b], var) if str(var.name) in self._of_inputs else ():
                below, beyond = Analyzer(), Analyzer()
                below.bind(var, _range(1, bound))
                beyond.bind(var, _range(bound + 1, _LARGEST_EXTENT))
                apart = beyond.can_prove(dims[0] > dims[1]) or beyond.can_prove(dims[0] < dims[1])
                if apart and all(beyond.can_prove(d > 1) for d in dims) and below.can_prove_equal(*dims):
                    raise FactFoundError(str(var.name), Fact(largest=bound))

    def find_size(self, a: Dim, b: Dim) -> None:
        """Two extents have to be equal: say where that makes a symbol another one, or a number.

        Raises:
            FactFoundError: one is an input's symbol, and the other one a number or such a symbol; or a range of the
                sizes of one symbol is all for which they are equal.
        """
        order = [str(dim) for dim in self._of_inputs.values()]
        for symbol, size in ((a, b), (b, a)):
            if str(symbol) not in order or isinstance(symbol, int):
                continue
            if isinstance(size, int) and size > 0:
                raise FactFoundError(str(symbol), Fact(equals=size))
            if str(size) in order[: order.index(str(symbol))]:
                raise FactFoundError(str(symbol), Fact(equals=str(size)))
        found = self.sizes_where_equal(a, b)
        if found is not None:
            name, least, largest = found
            raise FactFoundError(name, Fact(equals=least) if least == largest else Fact(largest, least=least))

    def sizes_where_equal(self, a: Dim, b: Dim) -> tuple[str, int, int] | None:
        """The one symbol in two extents, an input's, and the range of its sizes for which they are equal.

        None where there are more symbols, where no size makes them equal or all do, or where those
        that do are no range.
        """
        found = symbols([a, b])
        if len(found) != 1 or str(found[0].name) not in self._of_inputs:
            return None
        name = str(found[0].name)
        fact, difference = self.facts.get(name, Fact()), a - b
        sizes = range(fact.least, (fact.largest or _LARGEST_EXTENT) + 1)
        sign = 1 if evaluate_dim(difference, {name: sizes[-1]}) > evaluate_dim(difference, {name: sizes[0]}) else -1
        # Where the difference is steady these are the ends of the range; whether it is, the proofs below say.
        first, behind = (
            sizes[0] + find(sizes, 0, key=lambda size: sign * evaluate_dim(difference, {name: size}))
            for find in (bisect_left, bisect_right)
        )
        if first >= behind or (first, behind - 1) == (sizes[0], sizes[-1]):
            return None
        parts = ((sizes[0], first - 1, "not_equal"), (first, behind - 1, "equal"), (behind, sizes[-1], "not_equal"))
        for least, largest, comparison in parts:
            analyzer = Analyzer()
            if least <= largest:
                analyzer.bind(found[0], _range(least, largest))
                simple = analyzer.simplify(difference)
                if isinstance(simple, tirx.IntImm):  # of any width
                    proven = _COMPARE[comparison](int(simple.value))
                else:
                    proven = analyzer.can_prove(_PROVE[comparison](simple))
                if not proven:
                    return None
        return name, first, behind - 1

    def quotient(self, numerator: Sequence[Dim], denominator: Sequence[Dim]) -> Dim | None:
        """The product of `numerator` divided by that of `denominator`; None where it is not known to be whole."""
        up, down = (self.product(dims) for dims in self.cancelled(numerator, denominator))
        if isinstance(down, int) and down == 0:
            return None
        if isinstance(up, int) and isinstance(down, int):
            return up // down if up % down == 0 else None
        result = self.simplify(up // down)
        return result if self.same(result * down, up) else None

    def cancelled(self, above: Sequence[Dim], below: Sequence[Dim]) -> tuple[list[Dim], list[Dim]]:
        """The factors of two products without those that both have."""
        up, down = _factors(above), _factors(below)
        for dim in list(down):
            other = next((other for other in up if self.same(dim, other)), None)
            if other is not None:
                up.remove(other)
                down.remove(dim)
        return up, down

    def product(self, dims: Sequence[Dim]) -> Dim:
        """The product of extents; ConversionError for more than 64 bits."""
        number, rest = 1, None
        for dim in dims:
            if isinstance(dim, int):
                number *= dim
            else:
                rest = dim if rest is None else rest * dim
        if not -(2**63) <= number < 2**63:
            raise ConversionError(f"the extents [{', '.join(str(d) for d in dims)}] are too large")
        return number if rest is None else self.simplify(rest * number)

    def larger(self, a: Dim, b: Dim) -> Dim:
        """The maximum of two extents."""
        return self._extreme(True, a, b)

    def smaller(self, a: Dim, b: Dim) -> Dim:
        """The minimum of two extents."""
        return self._extreme(False, a, b)

    # --- tensors of extents ------------------------------------------------------------------------------------------

    def fold(self, op: str, operands: Sequence[np.ndarray], attrs: dict[str, Any]) -> np.ndarray | None:
        """The result of an operator on arrays of ints and extents (dtype object); None where it is not known."""
        name = op.removeprefix("relax.")
        if name in _MOVES:
            result = OPS[op].meaning(operands, attrs)
            return np.asarray(result, dtype=object)
        if name in _REDUCE:
            return np.asarray(_REDUCE[name](operands[0], axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"])))
        function = self._elementwise(name, attrs)
        if function is None:
            return None
        try:
            return np.asarray(np.frompyfunc(function, len(operands), 1)(*operands), dtype=object)
        except _UndecidedError:
            return None

    def _elementwise(self, name: str, attrs: dict[str, Any]) -> Callable[..., Any] | None:
        if name in _PROVE:
            return lambda a, b: self._decided(name.removesuffix("_"), a, b)
        if name in ("divide", "floor_divide", "floor_mod", "mod"):
            return lambda a, b: self._divide(name, a, b)
        if name in ("maximum", "minimum"):
            return lambda a, b: self._extreme(name == "maximum", a, b)
        if name == "astype":
            return self._cast(attrs["dtype"])
        if name == "where":
            return lambda condition, a, b: a if condition else b
        arithmetic: dict[str, Callable[..., Any]] = {
            "add": lambda a, b: self.simplify(a + b),
            "subtract": lambda a, b: self.simplify(a - b),
            "multiply": lambda a, b: self.simplify(a * b),
            "negative": lambda a: self.simplify(-a),
        }
        return arithmetic.get(name)

    def _decided(self, comparison: str, a: Dim, b: Dim) -> bool:
        answer = self.decide(comparison, a, b)
        if answer is None:
            found = self.sizes_where_equal(a, b)
            if found is not None:
                name, least, largest = found
                self.cuts.setdefault(name, set()).update((least, largest + 1))
            raise _UndecidedError
        return answer

    def _divide(self, name: str, a: Dim, b: Dim) -> Dim:
        # Where both are known not to be negative, C's division and the floor are one.
        if self.decide("greater_equal", a, 0) is not True or self.decide("greater", b, 0) is not True:
            raise _UndecidedError
        return self.simplify(a % b if name.endswith("mod") else a // b)

    def _extreme(self, largest: bool, a: Dim, b: Dim) -> Dim:
        above = self.decide("greater_equal", a, b)
        if above is not None:
            return a if above == largest else b
        if self.decide("less_equal", a, b):
            return b if largest else a
        wide = [tirx.IntImm("int64", d) if isinstance(d, int) else d for d in (a, b)]
        return self.simplify(tirx.max(*wide) if largest else tirx.min(*wide))

    def _cast(self, dtype: str) -> Callable[..., Any] | None:
        if dtype in ("int64", "int32", "uint64", "uint32"):
            return lambda a: a
        if dtype == "bool":
            return lambda a: self._decided("not_equal", a, 0)
        return None


def _factors(dims: Sequence[Dim]) -> list[Dim]:
    found: list[Dim] = []
    for dim in dims:
        if isinstance(dim, tirx.Mul):
            found += _factors([dim.a, dim.b])
        else:
            found.append(int(dim.value) if isinstance(dim, tirx.IntImm) else dim)
    return found


def _range(least: int, largest: int) -> Any:
    return tvm.ir.Range(least, tirx.IntImm("int64", largest + 1))


def _bounds(dims: Sequence[Dim], var: Any) -> list[int]:
    """The sizes of `var` up to which the minima in `dims` that have it and a number are the side that has it."""
    found: list[int] = []

    def visit(minimum: Any) -> None:
        for one, other in ((minimum.a, minimum.b), (minimum.b, minimum.a)):
            number = Analyzer().simplify(other - one + var)
            if isinstance(number, tirx.IntImm) and number.value > 0:
                found.append(int(number.value))

    for dim in dims:
        if not isinstance(dim, int):
            tvm_ffi.structural_walk(dim, (tirx.Min, visit))
    return found


class _UndecidedError(Exception):
    """A comparison of extents depends on the sizes."""


_COMPARE: dict[str, Callable[[int], bool]] = {
    "equal": lambda d: d == 0,
    "not_equal": lambda d: d != 0,
    "less": lambda d: d < 0,
    "less_equal": lambda d: d <= 0,
    "greater": lambda d: d > 0,
    "greater_equal": lambda d: d >= 0,
}
_OPPOSITE = {
    "equal": "not_equal",
    "not_equal": "equal",
    "less": "greater_equal",
    "greater_equal": "less",
    "greater": "less_equal",
    "less_equal": "greater",
}
_PROVE: dict[str, Callable[[Any], Any]] = {
    "equal": lambda d: tirx.EQ(d, tirx.IntImm("int64", 0)),
    "not_equal": lambda d: tirx.NE(d, tirx.IntImm("int64", 0)),
    "less": lambda d: d < 0,
    "less_equal": lambda d: d <= 0,
    "greater": lambda d: d > 0,
    "greater_equal": lambda d: d >= 0,
}
_MOVES = {"reshape", "permute_dims", "concat", "strided_slice", "take", "broadcast_to", "gather_elements"}
_REDUCE: dict[str, Callable[..., Any]] = {"sum": np.sum, "prod": np.prod}


def as_dims(array: np.ndarray) -> tuple[Dim, ...]:
    """A vector of extents as a tuple."""
    if array.ndim > 1:
        raise ConversionError(f"a list of extents must be a vector, got rank {array.ndim}")
    return tuple(int(d) if isinstance(d, int | np.integer) else d for d in array.reshape(-1))
