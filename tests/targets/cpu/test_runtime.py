"""The runtime's own parts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from dlc.targets.cpu.runtime import _address

_READ_ONLY = np.arange(4.0)
_READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "array",
    [
        np.ones(()),
        np.arange(24).reshape(2, 3, 4)[1:, :, 2:],
        np.empty((0, 3)),
        _READ_ONLY,
        np.ones(3, ml_dtypes.bfloat16),
        np.ones((2, 2)).view(np.matrix),
    ],
    ids=["scalar", "view", "empty", "read-only", "bfloat16", "subclass"],
)
def test_addresses_are_those_that_numpy_says(array: np.ndarray) -> None:
    assert _address(array) == array.ctypes.data
