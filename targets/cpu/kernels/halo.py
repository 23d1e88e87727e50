"""Write what surrounds a tensor in its buffer: the producer of a padded tensor owns its halo."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels.builder import Expr, Operand
from dlc.targets.cpu.kernels.storage import compute_dtype, narrow
from dlc.targets.cpu.kernels.vector import constant, width
from dlc.targets.layout import simplify

_WIDEST = 64  # bytes of one store; LLVM splits it where registers are narrower


def fill_halo(operand: Operand, value: float) -> None:
    """Store `value` in every halo element of `operand` and nowhere else: 0 for floats, the zero point for integers.

    Axis by axis from the outside: the slabs before and after an axis span all inner dimensions with their halos, so
    they are contiguous; the inside of the axis is walked only as long as an inner axis has a halo.
    """
    layout = operand.layout
    halo = layout.halo
    if layout.is_dense:
        return
    lead = sum(before * stride for (before, _), stride in zip(halo, layout.strides, strict=True))
    start = simplify(layout.offset - lead)
    deepest = max(axis for axis, pair in enumerate(halo) if pair != (0, 0))
    _fill_axis(operand, value, 0, deepest, start)


def _fill_axis(operand: Operand, value: float, axis: int, deepest: int, start: Expr) -> None:
    layout = operand.layout
    (before, after), stride, extent = layout.halo[axis], layout.strides[axis], layout.shape[axis]
    inside = simplify(start + before * stride)
    if before:
        _fill_run(operand, value, start, simplify(before * stride))
    if after:
        _fill_run(operand, value, simplify(inside + extent * stride), simplify(after * stride))
    if axis < deepest:
        with T.serial(T.int64(0), _int64(extent)) as i:
            _fill_axis(operand, value, axis + 1, deepest, inside + i * _int64(stride))


def _int64(value: Expr) -> Expr:
    return T.int64(value) if isinstance(value, int) else value


def _fill_run(operand: Operand, value: float, start: Expr, count: Expr) -> None:
    """Store `count` consecutive elements."""
    kind = operand.storage

    def number(lanes: int) -> Expr:
        return narrow(constant(value, compute_dtype(operand.dtype), lanes), operand.dtype)

    sizes: Sequence[int] = [_WIDEST * 8 // width(kind) // 2**k for k in range(7)]
    if isinstance(count, int):
        done = 0
        for lanes in [s for s in sizes if s >= 1]:
            whole = (count - done) // lanes
            if whole > 4:
                with T.serial(T.int64(0), T.int64(whole)) as i:
                    _store(operand, start + done + i * lanes, number(lanes), lanes)
            else:
                for i in range(whole):
                    _store(operand, start + (done + i * lanes), number(lanes), lanes)
            done += whole * lanes
        return
    lanes = sizes[0]
    with T.serial(T.int64(0), T.floordiv(count, T.int64(lanes))) as i:
        _store(operand, start + i * lanes, number(lanes), lanes)
    with T.serial(T.floordiv(count, T.int64(lanes)) * T.int64(lanes), count) as i:
        _store(operand, start + i, number(1), 1)


def _store(operand: Operand, base: Expr, value: Expr, lanes: int) -> None:
    base = simplify(base)
    T.buffer_store(operand.buffer, value, [base if lanes == 1 else T.ramp(base, 1, lanes)])
