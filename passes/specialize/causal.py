"""What the scores of an attention hold for the positions behind a step's own: whether a mask has hidden them.

A mask is a value of positions alone (see `positions`), so its elements are looked at, all of them. What is computed
from scores is known as far as these rules follow it, for scores of ordinary size: what is low weighs nothing in a
softmax, because exp makes zero of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

LOWEST, LOW, ZERO, TRUE, FALSE, POSITIVE, OTHER = "lowest", "low", "zero", "true", "false", "positive", "other"
_LOW = -1e4  # older models mask with this; exp of it is zero in float32 and float64
_LOWEST = -1e30  # stays low under any scale of ordinary size
_ORDINARY = (1e-20, 1e20)

_UNARY: Mapping[str, Mapping[str, str]] = {
    "relax.exp": {LOWEST: ZERO, LOW: ZERO},
    "relax.nn.relu": {LOWEST: ZERO, LOW: ZERO, ZERO: ZERO, POSITIVE: POSITIVE},
    "relax.astype": {LOWEST: LOWEST, LOW: LOW, ZERO: ZERO},
    "dlc.quantize": {ZERO: ZERO},
    "dlc.dequantize": {ZERO: ZERO},
}


def is_low(state: str) -> bool:
    """Whether a softmax makes zero of it."""
    return state in (LOWEST, LOW)


def constant_state(array: np.ndarray) -> str:
    """What elements of a constant have in common."""
    if array.dtype == np.bool_:
        return TRUE if array.all() else FALSE if not array.any() else OTHER
    if array.dtype.kind not in "fiu" or not array.size:
        return OTHER
    if (array <= _LOW).all():
        return LOWEST if (array <= _LOWEST).all() else LOW
    if not array.any():
        return ZERO
    return POSITIVE if ((array >= _ORDINARY[0]) & (array <= _ORDINARY[1])).all() else OTHER


def planes(table: np.ndarray, query: int, keys: int) -> np.ndarray:
    """A value of positions as (others, steps, keys), with one element along an axis that is not there (-1)."""
    both = [axis for axis in (query, keys) if axis >= 0]
    moved = np.moveaxis(table, both, range(-len(both), 0))
    shape = moved.shape[moved.ndim - len(both) :]
    steps = shape[0] if query >= 0 else 1
    return moved.reshape(-1, steps, shape[-1] if keys >= 0 else 1)


def ahead(table: np.ndarray, query: int, keys: int) -> np.ndarray:
    """The elements of a value of positions where the position along `keys` is behind that along `query`.

    An axis that is not there, or has one element for all positions, is -1.
    """
    found = planes(table, query, keys)
    steps = max(found.shape[1:])
    return np.broadcast_to(found, (len(found), steps, steps))[:, ~np.tri(steps, dtype=np.bool_)]


def shown(op: str, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Which elements of scores (steps, keys) no mask has hidden, behind an elementwise operator.

    Args:
        operands: (others, steps, keys) each: of a condition what it is, of others whether they are not low.
    """
    if op == "relax.where":
        condition, a, b = operands
        found = (condition & a) | (~condition & b)
    else:
        found = np.ones((1, 1, 1), np.bool_)
        for each in operands:
            found = found & each
    return np.asarray(found.all(axis=0, keepdims=True))


def is_shown(array: np.ndarray) -> np.ndarray:
    """Elements of an operand as `shown` takes them."""
    return array if array.dtype == np.bool_ else np.asarray(array > _LOW)


def sees(table: np.ndarray, steps: int) -> bool:
    """Whether every step is shown a position up to its own: else a softmax gives all a share, later ones too."""
    whole = np.broadcast_to(table, (1, steps, steps))[0]
    return bool((whole & np.tri(steps, dtype=np.bool_)).any(axis=1).all())


def computed(op: str, operands: Sequence[str]) -> str:
    """What an elementwise operator makes of operands of which so much is known."""
    if op in _UNARY:
        return _UNARY[op].get(operands[0], OTHER)
    rule = _RULES.get(op)
    return OTHER if rule is None else rule(*operands)


def _add(a: str, b: str) -> str:
    return next((state for state in (LOWEST, LOW) if state in (a, b)), ZERO if a == b == ZERO else OTHER)


def _subtract(a: str, b: str) -> str:
    return a if b == ZERO or (is_low(a) and not is_low(b)) else OTHER


def _multiply(a: str, b: str) -> str:
    if ZERO in (a, b):
        return ZERO
    return LOW if {a, b} == {LOWEST, POSITIVE} else OTHER


def _divide(a: str, b: str) -> str:
    if a == ZERO and b != ZERO:
        return ZERO
    return LOW if (a, b) == (LOWEST, POSITIVE) else OTHER


def _where(condition: str, a: str, b: str) -> str:
    return a if condition == TRUE else b if condition == FALSE else _either(a, b)


def _minimum(a: str, b: str) -> str:
    return next((state for state in (LOWEST, LOW) if state in (a, b)), _either(a, b))


def _either(a: str, b: str) -> str:
    """What is known of a value that is one of two."""
    return a if a == b else LOW if is_low(a) and is_low(b) else OTHER


_RULES: Mapping[str, Callable[..., str]] = {
    "relax.add": _add,
    "relax.subtract": _subtract,
    "relax.multiply": _multiply,
    "relax.divide": _divide,
    "relax.where": _where,
    "relax.maximum": _either,
    "relax.minimum": _minimum,
}
