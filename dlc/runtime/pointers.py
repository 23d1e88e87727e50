"""Where arrays keep their data, without asking numpy: that costs a microsecond an array, as much as small kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

# The data pointer is the first field of an array object, behind what every object begins with. Extension modules have
# that place compiled in (numpy's PyArray_DATA), so it cannot change; other interpreters may have other objects.
_PLACE = object.__basicsize__
_word = ctypes.c_size_t.from_address


def _read(arrays: Sequence[np.ndarray]) -> list[int]:
    return [_word(id(array) + _PLACE).value for array in arrays]


def _ask(arrays: Sequence[np.ndarray]) -> list[int]:
    return [array.__array_interface__["data"][0] for array in arrays]


def _works() -> bool:
    import sys

    probe: list[np.ndarray] = [np.zeros(3), np.zeros((2, 5), np.int8)[1:, 2:]]
    return sys.implementation.name == "cpython" and _read(probe) == _ask(probe)


addresses = _read if _works() else _ask
