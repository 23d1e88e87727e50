"""What the ALU does to a finished sum: the bias, the requantisation, the residual; and the parameters that it reads.

``vta:q31`` has REQ: exact, one micro-op a vector. ``vta:original`` has shifts: every constant (bias, rounding, zero
points) is added at once before the shift, which is exact while the total stays inside int32; that is proved here from
the weights, or the layer is declined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlc.ir import arithmetic
from dlc.targets.vta import alu
from dlc.targets.vta.config import BLOCK, Config
from dlc.targets.vta.isa import AluOp
from dlc.targets.vta.layers import Layer, Requantise, blocks, folded_bias
from dlc.targets.vta.match import DeclinedError

_CODE = 128  # what makes an int8 code of a uint8 one


@dataclass(frozen=True)
class AluStep:
    """One operation on every vector of a tile.

    Attributes:
        imm: the immediate, where there is no second operand.
        param: the parameter entry of the block that is the second operand.
        residual: whether the residual is the second operand.
        on_residual: whether the residual is the destination.
    """

    operation: AluOp
    imm: int = 0
    param: int | None = None
    residual: bool = False
    on_residual: bool = False

    @property
    def use_imm(self) -> bool:
        """Whether there is no second operand."""
        return self.param is None and not self.residual


@dataclass(frozen=True, eq=False)
class Epilogue:
    """The steps, and their parameters: int32 (output blocks, entries, 16).

    `planes`: how many bytes of the result are stored, one after the other: 1 for codes, 4 for int32.
    """

    steps: tuple[AluStep, ...]
    params: np.ndarray
    planes: int = 1


def _entries(vectors: list[np.ndarray], channels: int) -> np.ndarray:
    """Vectors of the channels as parameter entries; channels that pad the last block get zeros."""
    packed = np.zeros((len(vectors), blocks(channels) * BLOCK), np.int64)
    for row, vector in zip(packed, vectors, strict=True):
        row[:channels] = vector
    return np.ascontiguousarray(packed.astype(np.int32).reshape(len(vectors), -1, BLOCK).transpose(1, 0, 2))


def epilogue(layer: Layer, config: Config) -> Epilogue:
    """The epilogue of a convolution; raises `DeclinedError` where this configuration cannot compute it exactly."""
    channels = layer.shape[0]
    if layer.requantise is None:
        steps = (AluStep(AluOp.ADD, param=0), *(AluStep(AluOp.SHR, imm=8) for _ in range(3)))
        return Epilogue(steps, _entries([folded_bias(layer)], channels), planes=4)
    if config.requantise:
        return _exact(layer, layer.requantise)
    return _shifts(layer, layer.requantise)


def _exact(layer: Layer, q: Requantise) -> Epilogue:
    second = q.multipliers[1] if len(q.multipliers) > 1 else np.zeros_like(q.shift)
    parts = []
    total = blocks(layer.shape[0]) * BLOCK
    bias, first, second, shift = (
        np.concatenate([v, np.zeros(total - v.size, v.dtype)])
        for v in (folded_bias(layer), q.multipliers[0], second, q.shift)
    )
    for begin in range(0, total, BLOCK):
        lanes = slice(begin, begin + BLOCK)
        small = [np.asarray(v - _CODE) for v in (q.residual_zero, q.zero, q.lo, q.hi)]
        parts.append(alu.Registers(bias[lanes], first[lanes], second[lanes], shift[lanes], *small).pack())
    request = AluStep(AluOp.REQ, imm=alu.DRAIN, residual=bool(layer.residual))
    return Epilogue((AluStep(AluOp.SETQ, param=0), request), np.stack(parts))


def _power(m: np.ndarray) -> np.ndarray:
    """Exponents; `DeclinedError` where a multiplier is no power of two."""
    if np.any(m < 1) or np.any(m & (m - 1)):
        bad = m[(m < 1) | (m & (m - 1) != 0)][0]
        raise DeclinedError(
            f"the multiplier {bad} is no power of two, and vta:original only shifts: use --arithmetic shift"
        )
    return np.asarray(np.rint(np.log2(m.astype(np.float64))), np.int64)


def _shifts(layer: Layer, q: Requantise) -> Epilogue:
    exponents, shift = [_power(m) for m in q.multipliers], q.shift.astype(np.int64)
    if shift.max() > 30:
        raise DeclinedError(f"it shifts by {shift.max()}; vta:original shifts 32-bit sums by 30 at most")
    half, zero = (np.int64(1) << shift) >> 1, np.int64(q.zero - _CODE)
    first = np.int64(1) << exponents[0]
    constant = folded_bias(layer) * first + half + (zero << shift)
    bound = arithmetic.accumulator_bound(layer.weight, 0, 0, 255, layer.x_zero, layer.bias) * first + half
    bound = bound + (abs(zero) << shift)
    if layer.residual:
        second = np.int64(1) << exponents[1]
        constant = constant - (q.residual_zero - _CODE) * second
        bound = bound + 255 * second
    if bound.max() > 2**31 - 1:
        raise DeclinedError(f"its sums can reach {bound.max()} before the shift, beyond 32 bits")
    vectors, steps = [constant], []

    def shifts(amounts: np.ndarray, on_residual: bool) -> None:
        if not amounts.any():
            return
        if (amounts == amounts[0]).all():
            steps.append(AluStep(AluOp.SHR, imm=int(amounts[0]), on_residual=on_residual))
            return
        vectors.append(amounts)
        steps.append(AluStep(AluOp.SHR, param=len(vectors) - 1, on_residual=on_residual))

    shifts(-exponents[0], on_residual=False)
    if layer.residual:
        shifts(-exponents[1], on_residual=True)
        steps.append(AluStep(AluOp.ADD, residual=True))
    steps.append(AluStep(AluOp.ADD, param=0))
    shifts(shift, on_residual=False)
    steps += [AluStep(AluOp.MAX, imm=q.lo - _CODE), AluStep(AluOp.MIN, imm=q.hi - _CODE)]
    return Epilogue(tuple(steps), _entries(vectors, layer.shape[0]))
