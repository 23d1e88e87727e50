"""What the ALU's operations compute, in numpy, with the requantiser's registers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlc.targets.vta.config import BLOCK
from dlc.targets.vta.isa import AluOp

REGISTERS = 5  #: ACC entries that SETQ reads
DRAIN = 1  #: REQ's immediate: the accumulators that it read are left at zero


@dataclass(frozen=True)
class Registers:
    """The requantiser's parameters, 16 lanes each, int64.

    Attributes:
        bias: added to the first term, wrapping to int32.
        first, second: the multipliers, at least 0.
        shift: in [0, 62].
        second_zero: subtracted from the second term, int8.
        zero, lo, hi: the output's zero point and bounds, int8.
    """

    bias: np.ndarray
    first: np.ndarray
    second: np.ndarray
    shift: np.ndarray
    second_zero: np.ndarray
    zero: np.ndarray
    lo: np.ndarray
    hi: np.ndarray

    def pack(self) -> np.ndarray:
        """The five ACC entries, int32 (5, 16)."""
        low = [np.asarray(v, np.int64) & 0xFF for v in (self.shift, self.second_zero, self.zero, self.lo, self.hi)]
        words = [self.bias, self.first, self.second, low[0] | low[1] << 8, low[2] | low[3] << 8 | low[4] << 16]
        return np.stack([np.broadcast_to(np.asarray(w, np.int64), (BLOCK,)) for w in words]).astype(np.int32)

    @classmethod
    def unpack(cls, entries: np.ndarray) -> Registers:
        """From five ACC entries."""
        words = entries.astype(np.int64)

        def byte(word: int, position: int) -> np.ndarray:
            return np.asarray((words[word] >> (8 * position)).astype(np.int8).astype(np.int64))

        small = [byte(3, 0) & 63, byte(3, 1), byte(4, 0), byte(4, 1), byte(4, 2)]
        return cls(words[0], words[1] & 0x7FFFFFFF, words[2] & 0x7FFFFFFF, *small)


def wrap(x: np.ndarray) -> np.ndarray:
    """int64 to int32, modulo 2**32."""
    return x.astype(np.int32)


def shift_right(x: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Arithmetic shift of int32; negative amounts shift left and wrap; amounts beyond 31 are 31 (to the left: zero)."""
    right = np.clip(amount, 0, 31)
    left = np.clip(-amount, 0, 32)
    return wrap((x.astype(np.int64) >> right) << left)


def requantise(x: np.ndarray, second: np.ndarray | None, r: Registers) -> np.ndarray:
    """``clamp(((t0 * m0 [+ t1 * m1] + 2**(s-1)) >> s) + z, lo, hi)`` in 64 bit: `arithmetic.requantize_fixed`."""
    total = wrap(x.astype(np.int64) + r.bias).astype(np.int64) * r.first
    if second is not None:
        total += wrap(second.astype(np.int64) - r.second_zero).astype(np.int64) * r.second
    rounded = (total + ((np.int64(1) << r.shift) >> 1)) >> r.shift
    return np.asarray(np.clip(rounded + r.zero, r.lo, r.hi)).astype(np.int32)


def compute(
    operation: AluOp, x: np.ndarray, second: np.ndarray | None, imm: int, registers: Registers | None
) -> np.ndarray:
    """The result, int32, of ``op(x, second)``, or of ``op(x, imm)`` where there is no second operand."""
    if operation == AluOp.REQ:
        assert registers is not None
        return requantise(x, second, registers)
    y = np.asarray(imm if second is None else second, np.int64)
    if operation == AluOp.MIN:
        return wrap(np.minimum(x, y))
    if operation == AluOp.MAX:
        return wrap(np.maximum(x, y))
    if operation == AluOp.SHR:
        return shift_right(x, y)
    wide = x.astype(np.int64)
    return wrap(wide + y if operation == AluOp.ADD else wide * y)


def reads_own_results(dst: np.ndarray, src: np.ndarray) -> bool:
    """Whether a step reads what an earlier step of the same instruction wrote, or one entry is written twice."""
    if np.unique(dst).size != dst.size:
        return True
    first = np.full(int(max(dst.max(), src.max())) + 1, dst.size)
    first[dst] = np.arange(dst.size)
    return bool(np.any(first[src] < np.arange(dst.size)))
