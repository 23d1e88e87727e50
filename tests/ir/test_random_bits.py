"""The generator against the published test vectors of Philox4x32-10, and its place in a tensor."""

from __future__ import annotations

import numpy as np
import pytest

from dlc.ir.ops import OPS
from dlc.ir.ops.random_bits import philox

VECTORS = [  # counter, key, words: kat_vectors of the Random123 distribution
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    assert philox(np.array([words(counter)], np.uint32), words(key)).tolist() == [words(expected)]


def test_an_element_depends_on_its_position_alone() -> None:
    meaning = OPS["dlc.random_bits"].meaning
    whole = meaning([], {"shape": (5, 7), "seed": (3, 4)})
    assert np.array_equal(whole.reshape(-1)[:6], meaning([], {"shape": (6,), "seed": (3, 4)}))
    assert whole.reshape(-1)[5] == philox(np.array([[1, 0, 0, 0]], np.uint32), (3, 4))[0, 1]
    assert not np.array_equal(whole, meaning([], {"shape": (5, 7), "seed": (4, 4)}))
