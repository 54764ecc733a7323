"""The counting exit against a count by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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
