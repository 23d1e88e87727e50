"""Positions and weights of a resampled axis, computed when the kernel runs: `dlc.ir.ops.resize` step by step.

Every step is rounded on its own (no fused multiply-add, nothing reassociated), so that the results are numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.ir.ops import resize
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, hold
from dlc.targets.cpu.kernels.contract_loops import whole_index


class _Real:
    """A float64 whose arithmetic stays as it is written."""

    def __init__(self, value: Expr | float) -> None:
        self.value = v.constant(value, "float64") if isinstance(value, int | float) else value

    def _apply(self, other: _Real | float, step: Any) -> _Real:
        right = other if isinstance(other, _Real) else _Real(other)
        return _Real(hold(step(v.fence(self.value), v.fence(right.value))))

    def __add__(self, other: _Real | float) -> _Real:
        return self._apply(other, lambda a, b: a + b)

    def __sub__(self, other: _Real | float) -> _Real:
        return self._apply(other, lambda a, b: a - b)

    def __mul__(self, other: _Real | float) -> _Real:
        return self._apply(other, lambda a, b: a * b)

    def __truediv__(self, other: _Real | float) -> _Real:
        return self._apply(other, lambda a, b: a / b)


def _real(extent: Expr) -> _Real:
    return _Real(extent) if isinstance(extent, int) else _Real(hold(T.cast(extent, "float64")))


class Weights:
    """One axis of `length` inputs and `size` outputs; see `dlc.ir.ops.resize` for the attributes."""

    def __init__(self, length: Expr, size: Expr, axis: int, attrs: Mapping[str, Any], isa: Isa) -> None:
        self.length, self.size, self.axis, self.attrs, self.isa = length, size, axis, attrs, isa

    def position(self, out: Expr) -> _Real:
        """Where output `out` lies among the inputs (`source_positions`)."""
        place, length, mode = _Real(hold(T.cast(whole_index(out), "float64"))), _real(self.length), ""
        scale, mode = float(self.attrs["scales"][self.axis]), self.attrs["coordinates"]
        exact = _Real(scale) * length
        if mode == "align_corners":
            return self._unless_single(place * (length - 1) / (exact - 1), _Real(0.0))
        if mode == "asymmetric":
            return place / scale
        if mode == "tf_crop_and_resize":
            rank = len(self.attrs["shape"])
            start, end = (float(self.attrs["roi"][i]) for i in (self.axis, rank + self.axis))
            spread = _Real(start) * (length - 1) + place * (end - start) * (length - 1) / (exact - 1)
            return self._unless_single(spread, _Real(0.5 * (start + end)) * (length - 1))
        found = (place + 0.5) / scale - 0.5
        if mode == "pytorch_half_pixel":
            return self._unless_single(found, _Real(0.0))
        if mode == "half_pixel_symmetric":
            found = found + length / 2 * (_Real(1.0) - _real(self.size) / exact)
        return found

    def _unless_single(self, several: _Real, single: _Real) -> _Real:
        if isinstance(self.size, int):
            return several if self.size > 1 else single
        return _Real(hold(T.Select(self.size > T.int64(1), several.value, single.value)))

    def is_outside(self, position: _Real) -> Expr:
        """Whether a position is beyond the input."""
        last = (_real(self.length) - 1).value
        return v.either(position.value < v.like(0, last), position.value > last)

    def taps(self, position: _Real) -> list[tuple[Expr, Expr]]:
        """(position among the inputs, int64 and valid; weight, float64) of all inputs of one output."""
        if self.attrs["mode"] == "nearest":
            return [(self._valid(self._nearest(position)), v.constant(1, "float64"))]
        far, scale = resize.reach(self.axis, self.attrs)
        first = _Real(hold(v.floor((position - far).value, self.isa))) + 1.0
        indices = [first + float(tap) for tap in range(resize.tap_count(self.axis, self.attrs))]
        weights = [self._weight(hold(v.absolute(((i - position) * scale).value))) for i in indices]
        if self.attrs["exclude_outside"]:
            last = (_real(self.length) - 1).value
            weights = [
                _Real(hold(v.select(v.both(i.value >= v.like(0, last), i.value <= last), w.value, v.like(0, last))))
                for i, w in zip(indices, weights, strict=True)
            ]
        total = _Real(0.0)
        for weight in weights:
            total = total + weight
        zero = v.like(0, total.value)
        empty = hold(v.equal(total.value, zero))
        divisor = _Real(hold(v.select(empty, v.like(1, zero), total.value)))
        shares = [hold(v.select(empty, zero, (weight / divisor).value)) for weight in weights]
        return [(self._valid(i.value), share) for i, share in zip(indices, shares, strict=True)]

    def _valid(self, index: Expr) -> Expr:
        """A whole float64 pulled into the input, as int64."""
        last = (_real(self.length) - 1).value
        inside = v.larger(hold(v.smaller(index, hold(last))), v.like(0, last))
        return hold(v.convert(hold(inside), "int64"))

    def _nearest(self, position: _Real) -> Expr:
        mode = self.attrs["nearest"]
        if mode == "round_prefer_floor":
            position = position - 0.5
        elif mode == "round_prefer_ceil":
            position = position + 0.5
        up = mode in ("ceil", "round_prefer_floor")
        return hold((v.ceil if up else v.floor)(position.value, self.isa))

    def _weight(self, distance: Expr) -> _Real:
        d, zero = _Real(distance), v.like(0, distance)
        if self.attrs["mode"] == "linear":
            return _Real(hold(v.larger((_Real(1.0) - d).value, zero)))
        a = float(self.attrs["cubic"])
        near = ((_Real(a + 2) * d - (a + 3)) * d * d + 1.0).value
        far = (((_Real(a) * d - 5 * a) * d + 8 * a) * d - 4 * a).value
        beyond = hold(v.select(distance < v.like(2, distance), far, zero))
        return _Real(hold(v.select(distance <= v.like(1, distance), near, beyond)))
