"""`dlc.random_bits`: uniform 32-bit words, each a function of its position and the seed alone.

No inputs. Attributes: shape (ints or symbolic expressions), seed (two ints of 32 bits). The generator is Philox4x32-10
(Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): the element at position i in row
major order is word i mod 4 of the block whose counter is i div 4 (low word first) and whose key is the seed. Integer
arithmetic, so every target gives the same words, in any order and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.ops.registry import OpSpec, register

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what a round adds to the key: the golden ratio and sqrt(3) - 1
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counters: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """Philox4x32-10: counters (n, 4) uint32 and a key of two 32-bit ints to words (n, 4) uint32."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = (int(k) & _WORD for k in key)
    low = np.uint64(_WORD)
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            second & low,
            (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _infer(types: Sequence[tuple[tuple[Any, ...], str]], attrs: Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    if types or len(attrs["seed"]) != 2:
        raise ValueError(f"random_bits takes no inputs and a seed of two words, got {len(types)} and {attrs['seed']}")
    return attrs["shape"], "uint32"


def _meaning(inputs: Sequence[np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    shape = tuple(attrs["shape"])
    count = int(np.prod(shape, dtype=np.int64))
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    counters = np.zeros((len(blocks), 4), np.uint32)
    counters[:, 0], counters[:, 1] = blocks & np.uint64(_WORD), blocks >> np.uint64(32)
    return philox(counters, attrs["seed"]).reshape(-1)[:count].reshape(shape)


RANDOM_BITS = register(OpSpec("dlc.random_bits", "opaque", _meaning, _infer))
