"""Ranks agree with sorting, metrics with their definitions, intervals with what is known of means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fathom.training.metrics import (
    Interval,
    bootstrap_means,
    hr,
    interval,
    intervals,
    mrr,
    ndcg,
    paired_difference,
    per_user,
    ranks,
    top_items,
)

scores = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 15)),
    elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]),
)


@given(scores=scores, data=st.data())
def test_ranks_are_places_in_a_stable_sort(scores: np.ndarray, data: st.DataObject) -> None:
    targets = np.array([data.draw(st.integers(0, scores.shape[1] - 1)) for _ in range(len(scores))])
    for row, (found, target) in enumerate(zip(ranks(scores, targets), targets, strict=True)):
        if np.isneginf(scores[row, target]):
            assert found == np.inf
        else:
            order = np.argsort(-scores[row], kind="stable").tolist()  # ties: the lowest index first
            assert found == order.index(target) + 1


@given(scores=scores, k=st.integers(1, 20))
def test_top_items_are_the_best_that_were_not_left_out(scores: np.ndarray, k: int) -> None:
    for row, found in enumerate(top_items(scores, k)):
        chosen = found[found >= 0]
        usable = np.sort(scores[row][~np.isneginf(scores[row])])[::-1]
        assert np.sort(scores[row][chosen])[::-1].tolist() == usable[:k].tolist()


def test_metrics_follow_their_definitions() -> None:
    places = np.array([1.0, 3.0, 10.0, 11.0, np.inf])
    assert hr(places, 10).tolist() == [1, 1, 1, 0, 0]
    assert ndcg(places, 10) == pytest.approx([1, 0.5, 1 / np.log2(11), 0, 0])
    assert mrr(places) == pytest.approx([1, 1 / 3, 0.1, 1 / 11, 0])
    assert list(per_user(places, (5, 10))) == ["hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr"]


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2_000)
    found = interval(values, seed=1)
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert found.as_dict() == {"value": found.value, "low": found.low, "high": found.high}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(200):
        found = interval((rng.random(150) < 0.3).astype(float), resamples=400, seed=seed)
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_two_intervals_apart() -> None:
    rng = np.random.default_rng(0)
    easy = rng.normal(0.0, 1.0, 500)
    better = easy + 0.05 + rng.normal(0.0, 0.05, 500)
    found = paired_difference(better, easy)
    assert 0.04 < found.low < found.value < found.high < 0.06
    alone = interval(better)
    assert alone.high - alone.low > 5 * (found.high - found.low)


def test_columns_share_their_resampled_users_and_a_seed_repeats_them() -> None:
    values = np.random.default_rng(0).random((50, 2))
    found, means = intervals({"a": values[:, 0], "b": values[:, 1]}, resamples=250, seed=3)
    assert np.array_equal(means, bootstrap_means(values, resamples=250, seed=3))
    alone = interval(values[:, 1], resamples=250, seed=3)
    assert found["b"].as_dict() == pytest.approx(alone.as_dict())
    assert means.shape == (250, 2)
    same, _ = intervals({"a": values[:, 0], "b": values[:, 0]}, resamples=250, seed=3)
    assert same["a"] == same["b"]


def test_one_user_has_an_interval_without_width() -> None:
    assert interval(np.array([0.5])) == Interval(0.5, 0.5, 0.5)
