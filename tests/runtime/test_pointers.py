"""Addresses of arrays are what numpy says they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlc.runtime import pointers


@given(st.lists(st.tuples(st.sampled_from("fbqe?"), st.lists(st.integers(0, 4), max_size=4)), max_size=5))
def test_addresses(kinds: list[tuple[str, list[int]]]) -> None:
    arrays = [np.zeros([n + 1 for n in shape], kind) for kind, shape in kinds]
    arrays += [a[1:] for a in arrays if a.ndim] + [np.frombuffer(b"bytes that nobody may write", np.uint8)]
    assert pointers.addresses(arrays) == [a.ctypes.data for a in arrays] == pointers._ask(arrays)


def test_reading_is_what_is_used_here() -> None:
    assert pointers.addresses is pointers._read
