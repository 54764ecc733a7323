"""Intervals, ranks, Kendall's tau, the consensus, tiers and stability, checked against known values."""

import time
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from fathom.importance.statistics import (
    bootstrap_interval,
    borda,
    disagreements,
    kemeny,
    kendall_tau,
    order_by,
    ranks_of,
    resampled_borda,
    resampled_means,
    stability,
    tier_of,
    tier_probabilities,
)

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


def test_methods_with_equally_many_rows_are_drawn_alike() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 30, 4))
    both = resampled_means(one, seed=3) + resampled_means(other, seed=3)
    np.testing.assert_allclose(resampled_means(one + other, seed=3), both)
    users = np.arange(30.0)[:, None]
    drawn = resampled_means(users, seed=3)
    assert drawn.shape == (2000, 1)
    assert len(np.unique(drawn)) > 100
    folds = resampled_means(users[:10], seed=3)
    assert np.corrcoef(drawn[:, 0], folds[:, 0])[0, 1] < 0.1


def test_many_users_are_drawn_in_parts() -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 2))
    means = resampled_means(rows, seed=0, resamples=1000)
    assert means.shape == (1000, 2)
    np.testing.assert_allclose(means.std(0), rows.std(0) / np.sqrt(5000), rtol=0.1)


def counted(order: tuple[int, ...], rankings: list[list[int]]) -> int:
    return sum(ranks[first] > ranks[second] for ranks in rankings for first, second in combinations(order, 2))


@pytest.mark.parametrize("seed", range(12))
def test_kemeny_is_the_first_of_the_best_among_all_orders(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers, methods = 5 + seed % 2, 1 + seed % 5
    rankings = [(random.permutation(layers) + 1).tolist() for _ in range(methods)]
    best = min(permutations(range(layers)), key=lambda order: (counted(order, rankings), order))
    assert kemeny(rankings) == list(best)
    assert disagreements(best, rankings) == counted(best, rankings)


def test_kemeny_follows_the_majority_where_borda_does_not() -> None:
    rankings = [[1, 2, 3]] * 3 + [[3, 1, 2]] * 2
    assert kemeny(rankings) == [0, 1, 2]
    assert order_by(borda(rankings)) == [1, 0, 2]


def test_kemeny_is_quick_for_16_layers_and_none_beyond_20() -> None:
    random = np.random.default_rng(0)
    rankings = [(random.permutation(16) + 1).tolist() for _ in range(20)]
    started = time.perf_counter()
    order = kemeny(rankings)
    assert time.perf_counter() - started < 2
    assert order is not None
    assert disagreements(order, rankings) <= disagreements(order_by(borda(rankings)), rankings)
    assert kemeny([list(range(1, 22))]) is None


def test_tiers_are_quarters_of_the_places() -> None:
    tiers = [tier_of(place, 16) for place in range(1, 17)]
    assert tiers == ["critical"] * 4 + ["middle"] * 8 + ["redundant"] * 4
    assert [tier_of(place, 2) for place in (1, 2)] == ["critical", "redundant"]
    assert [tier_of(place, 5) for place in range(1, 6)] == ["critical", *["middle"] * 3, "redundant"]


def test_the_tier_is_sure_where_the_scores_are_and_even_between_equal_layers() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(400, 8))
    sure = tier_probabilities(resampled_borda([resampled_means(np.arange(8) + 0.1 * noise, seed=0)]))
    assert sure["critical"] == (0,) * 6 + (1, 1)
    assert sure["redundant"] == (1, 1) + (0,) * 6
    # Layers 5 and 6 differ by less than their noise: one of them is the second of the critical ones.
    rows = np.array([0, 1, 2, 3, 4, 5, 5, 6]) + noise
    rows[:, 6] -= rows[:, 6].mean() - rows[:, 5].mean()
    tiers = tier_probabilities(resampled_borda([resampled_means(rows, seed=0)]))
    assert tiers["critical"][7] == 1
    assert tiers["critical"][5] == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(sum(np.array(shares) for shares in tiers.values()), 1)


def test_the_consensus_of_a_resample_is_that_of_its_rankings() -> None:
    means = [resampled_means(rows, seed=0, resamples=5) for rows in np.random.default_rng(0).normal(size=(3, 20, 6))]
    expected = [borda([ranks_of(each[place]) for each in means]) for place in range(5)]
    np.testing.assert_allclose(resampled_borda(means), expected)


def test_stability_is_the_mean_tau_with_the_resamples() -> None:
    rows = np.arange(6) + np.random.default_rng(0).normal(0, 4, size=(20, 6))
    means = resampled_means(rows, seed=0, resamples=50)
    found = stability(means, rows.mean(0))
    assert found == pytest.approx(np.mean([kendall_tau(drawn, rows.mean(0)) for drawn in means]))
    assert 0.2 < found < 0.98
    assert stability(resampled_means(np.tile(np.arange(6.0), (9, 1)), seed=0), np.arange(6.0)) == 1
