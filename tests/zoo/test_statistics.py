"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dlc.zoo.statistics import bootstrap, mean, paired_bootstrap, ratio


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    x = np.random.default_rng(0).normal(3, 2, 1000)
    interval = bootstrap(x)
    assert interval.value == pytest.approx(x.mean())
    margin = 1.96 * x.std() / np.sqrt(1000)
    assert interval.low == pytest.approx(x.mean() - margin, abs=0.03)
    assert interval.high == pytest.approx(x.mean() + margin, abs=0.03)


def test_ratio_is_of_sums_not_of_rows() -> None:
    assert bootstrap([[1, 1], [1, 9]], ratio, draws=10).value == pytest.approx(0.2)


def test_pairing_removes_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 300)
    first, second = hard + 0.5 + rng.normal(0, 0.1, 300), hard
    interval = paired_bootstrap(first, second, mean)
    assert 0.4 < interval.low < interval.value < interval.high < 0.6
    assert paired_bootstrap(first, second) == interval  # seeded


def test_equal_systems_do_not_differ() -> None:
    x = np.arange(20.0)
    assert str(paired_bootstrap(x, x, draws=50)) == "0 (0 to 0)"


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0, 2.0], [1.0])])
def test_rows_that_do_not_match_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="expected equally many rows, at least one, got"):
        paired_bootstrap(first, second)
