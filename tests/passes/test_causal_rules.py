"""What is known of the scores behind a step's own position."""

from __future__ import annotations

import numpy as np
import pytest

from dlc.passes.specialize.causal import (
    FALSE,
    LOW,
    LOWEST,
    OTHER,
    POSITIVE,
    TRUE,
    ZERO,
    ahead,
    computed,
    constant_state,
)

SAMPLES = {
    LOWEST: [-np.inf, -3e38], LOW: [-1e4], ZERO: [0.0], POSITIVE: [1e-20, 0.25, 1e20], OTHER: [-2.0, 0.0, 3.0],
    TRUE: [True], FALSE: [False],
}  # fmt: skip
BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
          "maximum": np.maximum, "minimum": np.minimum}  # fmt: skip


def fits(state: str, value: float) -> bool:
    """Whether a number is what a state says; a sum of a low number and scores of ordinary size is low."""
    if state in (LOWEST, LOW):
        return value <= (-9e3 if state == LOW else -1e29)
    return {ZERO: value == 0, POSITIVE: value > 0}.get(state, True)


@pytest.mark.parametrize("name", sorted(BINARY))
def test_rules_of_two_operands_hold_for_samples(name: str) -> None:
    for a in (LOWEST, LOW, ZERO, POSITIVE, OTHER):
        for b in (LOWEST, LOW, ZERO, POSITIVE, OTHER):
            state = computed(f"relax.{name}", [a, b])
            for x, y in ((x, y) for x in SAMPLES[a] for y in SAMPLES[b]):
                if name in ("add", "subtract") and 1e20 in (x, y):
                    continue  # no score of ordinary size
                with np.errstate(all="ignore"):
                    result = float(BINARY[name](x, y))
                assert fits(state, result) or np.isnan(result), (a, b, state)


def test_selections_and_functions() -> None:
    assert computed("relax.where", [TRUE, LOW, OTHER]) == LOW
    assert computed("relax.where", [FALSE, LOW, OTHER]) == OTHER
    assert computed("relax.where", [OTHER, ZERO, ZERO]) == ZERO
    assert computed("relax.where", [OTHER, ZERO, LOW]) == OTHER
    assert computed("relax.where", [OTHER, LOWEST, LOW]) == LOW
    assert computed("relax.exp", [LOW]) == ZERO and computed("relax.exp", [OTHER]) == OTHER
    assert computed("relax.tanh", [LOW]) == OTHER


def test_states_of_constants() -> None:
    for state in (LOWEST, LOW, ZERO, POSITIVE, TRUE, FALSE):
        assert constant_state(np.array(SAMPLES[state])) == state
    for array in (np.array([-1e4, 0.0]), np.array([True, False]), np.array([-1.0]), np.array([], np.float32)):
        assert constant_state(array) == OTHER


def test_the_elements_behind_are_those_above_the_diagonal() -> None:
    table = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    above = np.triu(np.ones((4, 4), bool), 1)
    np.testing.assert_array_equal(np.sort(ahead(table, 1, 2).ravel()), np.sort(table[:, above].ravel()))
    np.testing.assert_array_equal(
        np.sort(ahead(table.transpose(0, 2, 1), 2, 1).ravel()), np.sort(table[:, above].ravel())
    )
    line = np.arange(4).reshape(1, 1, 4)
    assert set(ahead(line, -1, 2).ravel()) == {1, 2, 3}  # the first position is behind none
