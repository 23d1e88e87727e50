"""Shape arithmetic on extents that are ints or symbolic expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def same(a: Any, b: Any) -> bool:
    """Whether two extents are known to be equal."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    from tvm.sym import Analyzer

    return bool(Analyzer().can_prove_equal(a, b))


def broadcast(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """numpy's broadcast shape; ValueError when two extents differ."""
    rank = max(len(a), len(b))
    left, right = [1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b)
    result = []
    for x, y in zip(left, right, strict=True):
        if same(x, 1):
            result.append(y)
        elif same(y, 1) or same(x, y) or not (isinstance(x, int) and isinstance(y, int)):
            result.append(x)
        else:
            raise ValueError(f"shapes {list(a)} and {list(b)} do not broadcast")
    return result
