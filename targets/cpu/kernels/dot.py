"""Multiply-adds as descriptions: what one step means in numpy, how its weights lie in memory, and how it is emitted.

A step multiplies a *group* of consecutive k of one activation row with the same k of a vector of output channels and
adds the products to the accumulators of those channels. Integer steps take u8 activations and s8 weights and are exact:
32-bit sums without saturation, so that every instruction set gives the same integers (as long as they fit 32 bits).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from dlc.errors import DlcError
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import Expr, splat, vector_type


@dataclass(frozen=True)
class Dot:
    """One kind of multiply-add.

    Attributes:
        name: as in `Isa.dot`, or ``float``.
        acc_dtype: ``float32`` or ``int32``.
        phases: the k of a group that each instruction takes; a packed vector holds phase after phase, channel-major.
        multiplies: instructions of the multipliers for a group and one accumulator vector.
        additions: instructions that any vector port takes, for the same.
        spread_cost: such instructions to spread a group of one row over a vector, besides the load.
        widen_cost: such instructions to make one packed vector of weights usable, besides the loads.
        spread: (words, lanes) -> one vector per phase; a word is as `load_group` makes it.
        widen: (loaded weights of one phase, lanes) -> vector that `step` takes.
        step: (accumulator, spread activation, widened weights, lanes) -> accumulator.
        split: packed vectors of weights lie in pairs, lane by lane; (the loaded words of a pair, lanes) -> both of
            them, usable. None where each vector lies alone; the last of an odd number always does.
        meaning: (a: group, w: (group, lanes)) -> (lanes,): the same in numpy.
    """

    name: str
    acc_dtype: str
    phases: tuple[tuple[int, ...], ...]
    multiplies: float
    additions: float
    spread_cost: float
    widen_cost: float
    spread: Callable[[Expr, int], list[Expr]]
    widen: Callable[[Expr, int], Expr]
    step: Callable[[Expr, Expr, Expr, int], Expr]
    meaning: Callable[[np.ndarray, np.ndarray], np.ndarray]
    split: Callable[[Expr, int], list[Expr]] | None = None

    @property
    def fused(self) -> bool:
        """Whether one instruction multiplies and adds: nothing lies between operands and accumulator."""
        return self.multiplies + self.additions == 1

    @property
    def group(self) -> int:
        """Consecutive k that one step consumes."""
        return sum(len(phase) for phase in self.phases)

    @property
    def rereads(self) -> bool:
        """Whether the last step of a run may read elements twice, or those beside it, and multiply them by zero.

        Not of floats: infinity times zero is no number.
        """
        return self.acc_dtype == "int32"

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Weights (..., group, lanes) in the order in which one packed vector holds them: (..., group * lanes)."""
        parts = [np.swapaxes(block[..., list(phase), :], -1, -2) for phase in self.phases]
        return np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], axis=-1)

    def pair(self, tile: np.ndarray) -> np.ndarray:
        """Packed vectors (..., vectors, elements) of one tile as they lie in memory: (..., vectors * elements)."""
        count = tile.shape[-2] // 2 * 2 if self.split is not None else 0
        pairs = tile[..., :count, :].reshape(*tile.shape[:-2], count // 2, 2, tile.shape[-1])
        parts = [np.swapaxes(pairs, -1, -2), tile[..., count:, :]]
        return np.concatenate([part.reshape(*tile.shape[:-2], -1) for part in parts], axis=-1)


def _exact_sum(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return a.astype(np.int32) @ w.astype(np.int32)


def _pair_sums(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    # s16 x s16 -> s32 is exact: |255 * -128 * 2| is far below 2^31, and no intermediate is 16 bits wide.
    total = np.zeros(w.shape[-1], np.int32)
    for pair in ([0, 2], [1, 3]):
        total += (a[pair].astype(np.int16)[:, None].astype(np.int32) * w[pair].astype(np.int16)).sum(0, dtype=np.int32)
    return total


def _spread_bytes(words: Expr, lanes: int) -> list[Expr]:
    return [T.reinterpret(vector_type("int8", 4 * lanes), words)]


def _vnni_step(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return T.call_llvm_pure_intrin(vector_type("int32", lanes), name, acc, a, w)


def _spread_pairs(words: Expr, lanes: int) -> list[Expr]:
    # The even bytes of a word become one s16 pair and the odd ones the other: a mask and a shift, no shuffle.
    wide = T.bind(T.reinterpret(vector_type("uint16", 2 * lanes), words))
    even = T.bitwise_and(wide, splat(T.uint16(255), 2 * lanes))
    odd = T.shift_right(wide, splat(T.uint16(8), 2 * lanes))
    return [T.reinterpret(vector_type("int16", 2 * lanes), half) for half in (even, odd)]


_PMADDWD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}


def _pmaddwd_step(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    return acc + T.call_llvm_pure_intrin(vector_type("int32", lanes), _PMADDWD[lanes], a, w)


def _same(value: Expr, _lanes: int) -> Expr:
    return value


def _alone(words: Expr, _lanes: int) -> list[Expr]:
    return [words]


def neon_dot(kind: str, acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    """AArch64's sums of four products of bytes; `kind` is ``sdot`` (s8, s8) or ``usdot`` (u8, s8)."""
    name = f"llvm.aarch64.neon.{kind}.v{lanes}i32.v{4 * lanes}i8"
    return T.call_llvm_pure_intrin(vector_type("int32", lanes), name, acc, a, w)


def _spread_signed(words: Expr, lanes: int) -> list[Expr]:
    # u8 - 128 as s8: the highest bit of every byte is flipped.
    return _spread_bytes(T.bitwise_xor(words, splat(T.int32(-0x7F7F7F80), lanes)), lanes)


def _sdot_step(acc: Expr, a: Expr, w: Expr, lanes: int) -> Expr:
    # a w = (a - 128) w + 2 (64 w). The last term is the same for all rows: LLVM computes it once for each vector of w.
    half = splat(T.int8(64), 4 * lanes)
    none = splat(T.int32(0), lanes)
    rest = neon_dot("sdot", neon_dot("sdot", none, half, w, lanes), half, w, lanes)
    return neon_dot("sdot", acc, a, w, lanes) + rest


VNNI = Dot("vnni", "int32", ((0, 1, 2, 3),), 1, 0, 0, 0, _spread_bytes, _same, _vnni_step, _exact_sum)
PMADDWD = Dot(
    "pmaddwd",
    "int32",
    ((0, 2), (1, 3)),
    2,
    2,
    2,
    2,
    _spread_pairs,
    lambda w, lanes: T.cast(w, vector_type("int16", 2 * lanes)),
    _pmaddwd_step,
    _pair_sums,
)
# FEAT_I8MM has the product of u8 and s8; FEAT_DotProd has only that of s8 and s8.
USDOT = Dot("usdot", "int32", ((0, 1, 2, 3),), 1, 0, 0, 0, _spread_bytes, _same, partial(neon_dot, "usdot"), _exact_sum)
SDOT = Dot("sdot", "int32", ((0, 1, 2, 3),), 1, 1, 1, 2, _spread_signed, _same, _sdot_step, _exact_sum)
# Both operands are s16 in memory: nothing to spread or widen. A caller sees to it that no sum leaves 32 bits.
PAIRS = Dot(
    "pairs",
    "int32",
    ((0, 1),),
    1,
    1,
    0,
    0,
    lambda words, lanes: [T.reinterpret(vector_type("int16", 2 * lanes), words)],
    _same,
    _pmaddwd_step,
    _exact_sum,
)
PAIRS_NARROW = replace(  # the weights are s8 in memory
    PAIRS, name="narrow pairs", widen_cost=1, widen=lambda w, lanes: T.cast(w, vector_type("int16", 2 * lanes))
)
PLAIN = Dot(
    "plain",
    "int32",
    ((0,),),
    2,
    1,  # without SSE4.1 a 32-bit product of narrow factors is two 16-bit ones and an interleave
    1,
    2,
    _alone,
    lambda w, lanes: T.cast(w, vector_type("int32", lanes)),
    lambda acc, a, w, lanes: acc + a * w,
    _exact_sum,
)
FLOAT_FMA = Dot(
    "float",
    "float32",
    ((0,),),
    1,
    0,
    0,
    0,
    _alone,
    _same,
    lambda acc, a, w, lanes: T.call_llvm_pure_intrin(vector_type("float32", lanes), "llvm.fma", a, w, acc),
    lambda a, w: a @ w,
)
FLOAT = Dot(
    "float",
    "float32",
    ((0,),),
    1,
    1,
    1,  # no broadcasting load before AVX
    0,
    _alone,
    _same,
    lambda acc, a, w, lanes: acc + a * w,
    lambda a, w: a @ w,
)


def _widen_bfloat16(w: Expr, lanes: int) -> Expr:
    words = T.cast(w, vector_type("uint32", lanes))
    return T.reinterpret(vector_type("float32", lanes), T.shift_left(words, splat(T.uint32(16), lanes)))


def _split_bfloat16(words: Expr, lanes: int) -> list[Expr]:
    # An instruction a vector, where widening one alone takes two: what is above the other is already in its place.
    halves = T.shift_left(words, splat(T.uint32(16), lanes)), T.bitwise_and(words, splat(T.uint32(0xFFFF0000), lanes))
    return [T.reinterpret(vector_type("float32", lanes), half) for half in halves]


def _with_bfloat16(dot: Dot) -> Dot:
    """`dot` of floats with weights that are bfloat16 in memory: the upper halves of float32."""
    return replace(dot, name="bfloat16", widen_cost=1, widen=_widen_bfloat16, split=_split_bfloat16)


DOT_BFLOAT16 = "dlc_dot_bfloat16"  # of the code that `codegen` gives to levels which multiply bfloat16


def _bfloat16_meaning(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.asarray(a.astype(np.float32) @ w.astype(np.float32))


# TVM has no LLVM type for bfloat16: vectors of words hold the pairs, and a function in LLVM IR casts them.
BFLOAT16 = Dot(
    "bfloat16 pairs",
    "float32",
    ((0, 1),),
    1,
    0,
    0,
    0,
    _alone,
    lambda w, lanes: T.reinterpret(vector_type("int32", lanes), w),
    lambda acc, a, w, lanes: T.call_extern(vector_type("float32", lanes), DOT_BFLOAT16, acc, a, w),
    _bfloat16_meaning,
)
# `amx` machines have VNNI too: whatever the tile emitter does not take runs with vectors.
_INTEGER: dict[str, Dot] = {"amx": VNNI, "vnni": VNNI, "usdot": USDOT, "sdot": SDOT, "pmaddwd": PMADDWD, "plain": PLAIN}


def dot_for(isa: Isa, a_dtype: str, w_dtype: str) -> Dot:
    """The multiply-add for these element types on `isa`; raises DlcError when there is none."""
    if (a_dtype, w_dtype) == ("float32", "float32"):
        return FLOAT_FMA if isa.has_fma else FLOAT
    if (a_dtype, w_dtype) == ("float32", "bfloat16"):
        return _with_bfloat16(FLOAT_FMA if isa.has_fma else FLOAT)
    if (a_dtype, w_dtype) == ("bfloat16", "bfloat16") and isa.bfloat16:
        return BFLOAT16
    if (a_dtype, w_dtype) == ("uint8", "int8"):
        return _INTEGER[isa.dot]
    if a_dtype == "int16" and w_dtype in ("int16", "int8") and isa.dot == "pmaddwd":
        return PAIRS if w_dtype == "int16" else PAIRS_NARROW
    raise DlcError(f"no multiply-add for {a_dtype} activations and {w_dtype} weights on {isa.name}")


def load_group(buffer: Any, dot: Dot, base: Expr, shift: int = 0) -> Expr:
    """The scalar word of one group of activations that starts at flat position `base`.

    With `shift` > 0 the word is moved down by so many bytes: a group that would end behind the buffer is read `shift`
    elements earlier, and its first bytes drop out.
    """
    if dot.group == 1:
        return T.cast(buffer[base], dot.acc_dtype)
    if dot.group == 2:
        assert not shift
        return T.reinterpret("int32", buffer[T.ramp(base, 1, 2)])
    word = T.reinterpret("uint32", buffer[T.ramp(base, 1, 4)])
    if shift:
        word = T.shift_right(word, T.uint32(8 * shift))
    return T.reinterpret("int32", word)


def load_first(buffer: Any, dot: Dot, base: Expr, count: int) -> Expr:
    """A word of which only the first `count` elements are read from memory; the others are zero."""
    bits = 32 // dot.group
    word: Expr = T.cast(buffer[base], "uint32")
    for position in range(1, count):
        element = T.cast(buffer[base + position], "uint32")
        word = T.bitwise_or(word, T.shift_left(element, T.uint32(bits * position)))
    return T.reinterpret("int32", word)
