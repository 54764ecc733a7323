"""The counting exit against a count by hand."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.runtime import counting as counting_module
from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import ItemFilter

NEIGHBOURS = {0: {1: 1.0, 2: 0.5}, 1: {2: 2.0}, 2: {}, 3: {0: 0.25}}


def counting(window: int = 2, decay: float = 0.5) -> Counting:
    sizes = [len(NEIGHBOURS[item]) for item in range(4)]
    return Counting(
        np.cumsum([0, *sizes]),
        np.array([b for a in range(4) for b in NEIGHBOURS[a]], np.int32),
        np.array([w for a in range(4) for w in NEIGHBOURS[a].values()], np.float32),
        np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        window,
        decay,
    )


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(1, 4), st.sampled_from([0.5, 1.0]))
@settings(deadline=None)
def test_a_share_is_the_weighted_count_of_what_followed_the_newest_items(
    history: list[int], window: int, decay: float
) -> None:
    counts: dict[int, float] = {}
    for age, item in enumerate(reversed(history[-window:])):
        for other, weight in NEIGHBOURS[item].items():
            counts[other] = counts.get(other, 0.0) + decay**age * weight
    items, shares = counting(window, decay).shares(np.array(history, np.int64))
    assert items.tolist() == sorted(counts)
    assert np.allclose(shares, [counts[item] / max(counts.values()) for item in sorted(counts)])


def test_the_most_popular_follow_what_was_counted() -> None:
    found, scores = counting().best(np.array([3, 0]), 4, ItemFilter(exclude=np.array([0])))
    assert found.tolist() == [1, 2, 3]
    assert np.allclose(scores, [1.0, 0.5, -0.6])


def test_a_history_that_nothing_followed_gets_the_most_popular_that_the_filter_leaves() -> None:
    keep = ItemFilter(exclude=np.array([2]), mask=np.array([True, True, True, False]))
    found, scores = counting().best(np.array([2]), 10, keep)
    assert found.tolist() == [1, 0]
    assert np.allclose(scores, [-0.8, -0.9])


def test_equal_shares_come_in_the_order_of_their_items() -> None:
    tied = Counting(
        np.array([0, 3, 3, 3, 3]),
        np.array([3, 1, 2], np.int32),
        np.ones(3, np.float32),
        np.zeros(4, np.float32),
        1,
        1.0,
    )
    assert tied.best(np.array([0]), 2, ItemFilter())[0].tolist() == [1, 2]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[dict[int, float]], Counting]:
    """Neighbours of up to 30 items; halves make every sum exact and ties frequent."""
    n = draw(st.integers(1, 30))
    halves = st.integers(1, 6).map(lambda number: number / 2)
    weights = draw(st.lists(st.dictionaries(st.integers(0, n - 1), halves, max_size=6), min_size=n, max_size=n))
    popularity = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    made = Counting(
        np.cumsum([0, *map(len, weights)]),
        np.array([item for each in weights for item in each], np.int32),
        np.array([weight for each in weights for weight in each.values()], np.float32),
        np.array(popularity, np.float32) / 4,
        window=draw(st.integers(1, 8)),
        decay=draw(st.sampled_from([0.5, 1.0])),
    )
    return weights, made


@st.composite
def filters(draw: st.DrawFn, n: int) -> ItemFilter:
    items = st.lists(st.integers(0, n - 1), max_size=n + 3).map(lambda x: np.array(x, np.int64))
    mask = st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)
    return ItemFilter(draw(items), draw(st.none() | items), draw(st.none() | mask))


@pytest.mark.parametrize("largest_dense", [0, counting_module.LARGEST_DENSE])
@given(tables(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_and_large_catalogues_give_what_a_plain_count_gives(
    monkeypatch: pytest.MonkeyPatch, largest_dense: int, made, data
) -> None:
    monkeypatch.setattr(counting_module, "LARGEST_DENSE", largest_dense)
    weights, counting = made
    n = len(weights)
    history = data.draw(st.lists(st.integers(0, n - 1), max_size=12))
    keep, k = data.draw(filters(n)), data.draw(st.integers(1, n + 3))
    counts: dict[int, float] = {}
    for age, item in enumerate(reversed(history[-counting.window :])):
        for other, weight in weights[item].items():
            counts[other] = counts.get(other, 0.0) + counting.decay**age * weight
    scores = {item: np.float32(count / max(counts.values())) for item, count in counts.items()}
    items, shares = counting.shares(np.array(history, np.int64))
    assert (items.tolist(), shares.tolist()) == (sorted(scores), [scores[item] for item in sorted(scores)])
    assert (items.dtype, shares.dtype) == (np.int64, np.float32)
    left = set(range(n)) if keep.allow is None else set(keep.allow.tolist())
    left -= set(keep.exclude.tolist())
    left = {item for item in left if keep.mask is None or keep.mask[item]}
    popular = {item: counting.popularity[item] - np.float32(1) for item in left}
    best = sorted(left, key=lambda item: (item not in scores, -scores.get(item, popular[item]), item))[:k]
    found, given_scores = counting.best(np.array(history, np.int64), k, keep)
    assert found.tolist() == best
    assert given_scores.tolist() == [scores.get(item, popular[item]) for item in best]
    assert (found.dtype, given_scores.dtype) == (np.int64, np.float32)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.floats(-2, 2, width=32), max_size=4))
@settings(deadline=None)
def test_an_item_has_the_score_that_it_has_among_the_best(history: list[int], amounts: list[float]) -> None:
    bonus = np.arange(len(amounts)), np.array(amounts, np.float32)
    items, scores = counting().best(np.array(history, np.int64), 4, ItemFilter(), bonus=bonus)
    assert len(items) == 4
    assert np.allclose(counting().scores(np.array(history, np.int64), items, bonus=bonus), scores, atol=1e-6)
