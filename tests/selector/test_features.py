"""Features agree with their definitions, written out the slow way, for every history."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.item_vectors import ItemVectors
from fathom.selector.features import BRIEF, Features, SelectorTables, measure, measure_all, measure_brief

N_ITEMS = 30
RNG = np.random.default_rng(5)
VECTORS = RNG.standard_normal((N_ITEMS, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
COUNTS = RNG.integers(0, 1_000, N_ITEMS)
ENTROPY = np.where(np.arange(N_ITEMS) % 4, RNG.random(N_ITEMS), np.nan).astype(np.float32)
TABLES = SelectorTables.build(COUNTS, ItemVectors(VECTORS), ENTROPY)

TAIL = {
    item
    for item in range(N_ITEMS)
    if sum(COUNTS[[o for o in range(N_ITEMS) if COUNTS[o] > COUNTS[item]]]) >= 0.8 * COUNTS.sum()
}

histories = st.lists(st.integers(0, N_ITEMS - 1), min_size=2, max_size=40)
fast = settings(deadline=None, max_examples=200)


@fast
@given(histories)
def test_features_of_the_items_are_what_their_definition_says(history: list[int]) -> None:
    features = measure(np.array(history, dtype=np.int32), None, TABLES)
    pairs = [float(VECTORS[a] @ VECTORS[b]) for a, b in combinations(history, 2)]
    assert features.length == len(history)
    assert features.distinct_ratio == len(set(history)) / len(history)
    assert features.popularity == pytest.approx(np.log1p(COUNTS[history]).mean(), rel=1e-5)
    assert features.density == pytest.approx(np.mean(pairs), abs=1e-5)
    assert features.min_popularity == pytest.approx(min(math.log1p(COUNTS[item]) for item in history), rel=1e-6)
    assert features.tail_share == pytest.approx(sum(item in TAIL for item in history) / len(history), rel=1e-6)
    assert features.repeat_rate == sum(a == b for a, b in pairwise(history)) / (len(history) - 1)
    assert features.transition_entropy == pytest.approx(float(ENTROPY[history[-1]]), nan_ok=True)
    assert all(math.isnan(value) for value in (features.recency, features.last_gap, features.session_entropy))


@fast
@given(histories, st.randoms(use_true_random=False))
def test_the_order_of_the_items_matters_for_repeats_and_the_newest_only(history: list[int], random: object) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (measure(np.array(h, dtype=np.int32), None, TABLES) for h in (history, shuffled))
    ordered = {"repeat_rate", "transition_entropy"}
    for name in set(Features._fields) - ordered:
        assert getattr(one, name) == pytest.approx(getattr(other, name), nan_ok=True, rel=1e-12)


@fast
@given(st.lists(st.integers(1, 253_402_300_799), min_size=2, max_size=40))
def test_recency_follows_the_mean_logarithm_of_the_gaps(seconds: list[int]) -> None:
    items = np.zeros(len(seconds), dtype=np.int32)
    gaps = [abs(b - a) for a, b in pairwise(seconds)]
    expected = 1 / (1 + np.mean([math.log1p(gap) for gap in gaps]))
    features = measure(items, np.array(seconds, dtype=np.int64), TABLES)
    assert features.recency == pytest.approx(expected, rel=1e-4)
    assert 0 < features.recency <= 1
    assert features.last_gap == pytest.approx(math.log1p(gaps[-1]), rel=1e-4)


@fast
@given(st.lists(st.sampled_from([1, 60, 1_799, 1_801, 86_400]), min_size=1, max_size=40))
def test_session_entropy_is_that_of_the_sessions_sizes(gaps: list[int]) -> None:
    seconds = np.cumsum([1_700_000_000, *gaps])
    sizes = [1]
    for gap in gaps:
        if gap > 1_800:
            sizes.append(1)
        else:
            sizes[-1] += 1
    shares = [size / len(seconds) for size in sizes]
    found = measure(np.zeros(len(seconds), dtype=np.int32), seconds, TABLES).session_entropy
    assert found == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-9)


@fast
@given(st.lists(st.integers(0, N_ITEMS - 1), max_size=40), st.none() | st.integers(0, 10**6))
def test_what_is_measured_in_brief_is_what_is_measured_in_full(history: list[int], seed: int | None) -> None:
    items = np.array(history, dtype=np.int64)
    times = None if seed is None else np.random.default_rng(seed).integers(0, 10**9, len(history))
    full, brief = measure(items, times, TABLES), measure_brief(items, times, TABLES)
    assert np.array_equal(full[: len(BRIEF)], brief[: len(BRIEF)], equal_nan=True)
    assert Features._fields[: len(BRIEF)] == BRIEF


def test_the_tail_is_what_the_most_popular_items_with_80_percent_of_events_leave() -> None:
    counts = np.array([10, 50, 0, 30, 10], dtype=np.int64)
    tail = SelectorTables.build(counts, ItemVectors(np.eye(5, dtype=np.float32)), np.zeros(5, dtype=np.float32)).tail
    assert tail.tolist() == [1, 0, 1, 0, 1]


@fast
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=10))
def test_any_timestamps_give_a_number_or_unknown(seconds: list[int]) -> None:
    recency = measure(np.zeros(len(seconds), dtype=np.int32), np.array(seconds, dtype=np.int64), TABLES).recency
    assert math.isnan(recency) or 0 < recency <= 1


def test_events_at_once_are_more_recent_than_events_days_apart() -> None:
    items = np.arange(3, dtype=np.int32)
    at_once, apart = (measure(items, np.array(t, dtype=np.int64), TABLES) for t in ([9, 9, 9], [9, 90_009, 180_009]))
    assert at_once.recency == 1.0
    assert apart.recency < 0.1


def test_equal_items_are_dense_and_orthogonal_ones_are_not() -> None:
    tables = SelectorTables.build(
        np.ones(4, dtype=np.int64), ItemVectors(np.eye(4, dtype=np.float32)), np.ones(4, np.float32)
    )
    same, different = (measure(np.array(h, dtype=np.int32), None, tables) for h in ([2, 2, 2], [0, 1, 2, 3]))
    assert same.density == pytest.approx(1)
    assert different.density == pytest.approx(0)


def test_missing_timestamps_given_as_zeros_are_unknown() -> None:
    features = measure(np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.int64), TABLES)
    assert math.isnan(features.recency)


def test_an_empty_and_a_single_item_history_have_defined_answers() -> None:
    empty = measure(np.array([], dtype=np.int32), None, TABLES)
    assert empty.length == 0
    assert all(math.isnan(value) for value in empty[1:])
    single = measure(np.array([3], dtype=np.int32), np.array([77]), TABLES)
    assert single[:2] == (1, 1)
    assert single.popularity == pytest.approx(math.log1p(COUNTS[3]), rel=1e-6)
    assert single.min_popularity == pytest.approx(single.popularity)
    assert single.session_entropy == 0
    assert single.transition_entropy == pytest.approx(float(ENTROPY[3]))
    unknown = (single.recency, single.density, single.repeat_rate, single.last_gap)
    assert all(math.isnan(value) for value in unknown)


def test_ten_thousand_items_are_measured_like_ten() -> None:
    items = RNG.integers(0, N_ITEMS, 10_000)
    before = items.copy()
    features = measure(items, np.arange(1, 10_001), TABLES)
    assert features.length == 10_000
    assert features.popularity == pytest.approx(np.log1p(COUNTS[items]).mean(), rel=1e-4)
    assert features.recency == pytest.approx(1 / (1 + math.log(2)), rel=1e-4)
    assert -1e-3 <= features.density <= 1
    assert (items == before).all()  # the caller's array is not sorted under its feet


def test_an_item_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(IndexError):
        measure(np.array([0, N_ITEMS], dtype=np.int32), None, TABLES)


def test_many_histories_become_one_row_each() -> None:
    rows = measure_all([(np.arange(n, dtype=np.int32), None) for n in range(4)], TABLES)
    assert rows.shape == (4, len(Features._fields))
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    assert measure_all([], TABLES).shape == (0, len(Features._fields))
