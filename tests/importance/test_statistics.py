"""Intervals, ranks, Kendall's tau and the consensus, checked against known values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from fathom.importance.statistics import bootstrap_interval, borda, kendall_tau, order_by, ranks_of

few_values = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


def test_the_bootstrap_interval_agrees_with_the_normal_one_for_many_users() -> None:
    rows = np.random.default_rng(0).normal([5.0, -1.0], [1.0, 3.0], size=(2000, 2))
    low, high = bootstrap_interval(rows, seed=1)
    error = 1.96 * rows.std(0) / np.sqrt(2000)
    np.testing.assert_allclose(high - rows.mean(0), error, rtol=0.1)
    np.testing.assert_allclose(rows.mean(0) - low, error, rtol=0.1)


def test_the_bootstrap_is_seeded_and_exact_for_constants() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_array_equal(bootstrap_interval(rows, seed=1), bootstrap_interval(rows, seed=1))
    assert not np.array_equal(bootstrap_interval(rows, seed=1), bootstrap_interval(rows, seed=2))
    low, high = bootstrap_interval(np.ones((20, 3)), seed=0)
    np.testing.assert_array_equal(low, high)


def test_equal_scores_are_ranked_by_the_lower_index() -> None:
    assert order_by([0.5, 2.0, 0.5, 2.0]) == [1, 3, 0, 2]
    assert ranks_of([0.5, 2.0, 0.5, 2.0]) == [3, 1, 4, 2]


@given(few_values, few_values)
def test_kendall_tau_is_scipy_s_tau_b(left: list[int], right: list[int]) -> None:
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert kendall_tau(left, right) == 0.0
    else:
        assert kendall_tau(left, right) == pytest.approx(kendalltau(left, right).statistic)


def test_borda_is_one_for_always_first_and_zero_for_always_last() -> None:
    assert borda([[1, 2, 3], [1, 3, 2], [1, 2, 3]]) == pytest.approx([1.0, 1 - (7 / 3 - 1) / 2, 1 - (8 / 3 - 1) / 2])
    assert order_by(borda([[1, 2, 3], [2, 1, 3]])) == [0, 1, 2]
