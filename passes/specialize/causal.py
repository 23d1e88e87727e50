"""What the scores of an attention hold for the positions behind a step's own: whether a mask has hidden them.

A mask is a value of positions alone (see `positions`), so its elements are looked at, all of them. What is computed
from scores is known as far as these rules follow it: `LOW` weighs nothing in a softmax, because exp makes zero of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

LOW, ZERO, TRUE, FALSE, POSITIVE, OTHER = "low", "zero", "true", "false", "positive", "other"
_LOWEST = -1e4  # older models mask with this; exp of it is zero in float32 and float64

_UNARY: Mapping[str, Mapping[str, str]] = {
    "relax.exp": {LOW: ZERO},
    "relax.nn.relu": {LOW: ZERO, ZERO: ZERO, POSITIVE: POSITIVE},
    "relax.astype": {LOW: LOW, ZERO: ZERO},
    "dlc.quantize": {ZERO: ZERO},
    "dlc.dequantize": {ZERO: ZERO},
}


def constant_state(array: np.ndarray) -> str:
    """What elements of a constant have in common."""
    if array.dtype == np.bool_:
        return TRUE if array.all() else FALSE if not array.any() else OTHER
    if array.dtype.kind not in "fiu" or not array.size:
        return OTHER
    if (array <= _LOWEST).all():
        return LOW
    return ZERO if not array.any() else POSITIVE if (array > 0).all() else OTHER


def ahead(table: np.ndarray, query: int, keys: int) -> np.ndarray:
    """The elements of a value of positions where the position along `keys` is behind that along `query`.

    An axis that is not there is -1; one that is there but has one element is the same for all positions.
    """
    steps = max(table.shape[a] for a in (query, keys) if a >= 0)
    rows, columns = np.triu_indices(steps, 1)
    picks: dict[int, np.ndarray] = {}
    for axis, index in ((query, rows), (keys, columns)):
        if axis >= 0 and table.shape[axis] > 1:
            picks[axis] = index
    moved = np.moveaxis(table, list(picks), range(len(picks)))
    return moved[tuple(picks.values())]


def computed(op: str, operands: Sequence[str]) -> str:
    """What an elementwise operator makes of operands of which so much is known."""
    if op in _UNARY:
        return _UNARY[op].get(operands[0], OTHER)
    rule = _RULES.get(op)
    return OTHER if rule is None else rule(*operands)


def _add(a: str, b: str) -> str:
    return LOW if LOW in (a, b) else _equal(a, b)


def _subtract(a: str, b: str) -> str:
    return LOW if a == LOW and b != LOW else a if b == ZERO else OTHER


def _multiply(a: str, b: str) -> str:
    if ZERO in (a, b):
        return ZERO
    return LOW if {a, b} == {LOW, POSITIVE} else OTHER


def _divide(a: str, b: str) -> str:
    if a == ZERO and b != ZERO:
        return ZERO
    return LOW if (a, b) == (LOW, POSITIVE) else OTHER


def _where(condition: str, a: str, b: str) -> str:
    return a if condition == TRUE else b if condition == FALSE else _equal(a, b)


def _minimum(a: str, b: str) -> str:
    return LOW if LOW in (a, b) else _equal(a, b)


def _equal(a: str, b: str) -> str:
    return a if a == b else OTHER


_RULES: Mapping[str, Callable[..., str]] = {
    "relax.add": _add,
    "relax.subtract": _subtract,
    "relax.multiply": _multiply,
    "relax.divide": _divide,
    "relax.where": _where,
    "relax.maximum": _equal,
    "relax.minimum": _minimum,
}
