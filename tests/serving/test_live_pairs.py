"""Which pairs an append adds to what is counted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.serving.history.contract import StoredEvent
from fathom.serving.live_pairs import new_pairs


def history(*items: str) -> list[StoredEvent]:
    return [StoredEvent(f"e{place}", item, place) for place, item in enumerate(items)]


def pairs(items: str, *new: int, max_lag: int = 2) -> dict[str, float]:
    """Pairs as "earlier later"; capital letters are added items."""
    names = {f"e{place}" for place in new}
    return {"".join(pair): gain for pair, gain in new_pairs(history(*items), names, str.isupper, max_lag, {}).items()}


@given(st.text("abXYZ", max_size=12), st.data())
def test_events_count_the_same_however_they_are_sent(items: str, data: st.DataObject) -> None:
    ends = sorted({0, len(items), *data.draw(st.lists(st.integers(0, len(items))))})
    sums: dict[str, float] = {}
    for first, end in itertools.pairwise(ends):
        for pair, gain in pairs(items[:end], *range(first, end)).items():
            sums[pair] = sums.get(pair, 0) + gain
    assert sums == pytest.approx(pairs(items, *range(len(items))))


def test_a_new_item_follows_what_was_before_it() -> None:
    assert pairs("abcX", 3) == {"XX": 1, "cX": 1, "bX": 0.5}


def test_what_follows_a_new_item_is_counted_when_it_comes() -> None:
    assert pairs("aXb", 2) == {"Xb": 1}
    assert pairs("aXb", 1) == {"XX": 1, "aX": 1, "Xb": 1}


def test_items_that_are_all_known_count_nothing() -> None:
    assert pairs("abc", 0, 1, 2) == {}
    assert pairs("aXb") == {}


def test_of_two_new_items_the_pair_counts_once_and_an_item_is_no_neighbour_of_itself() -> None:
    assert pairs("XY", 0, 1) == {"XX": 1, "YY": 1, "XY": 1}
    assert pairs("XX", 1) == {"XX": 1}
    assert pairs("aXX", 0, 1, 2) == {"XX": 2, "aX": 1.5}


def test_a_pair_counts_what_its_later_event_weighs_and_what_weighs_nothing_was_never_there() -> None:
    bought, wished, viewed = (
        StoredEvent(f"e{i}", item, i, kind)
        for i, (item, kind) in enumerate((("a", "purchase"), ("b", "wish"), ("X", "view")))
    )
    weights = {"purchase": 1.0, "wish": 0.0, "view": 0.25}
    assert new_pairs([bought, wished, viewed], {"e2"}, str.isupper, 1, weights) == {("X", "X"): 0.25, ("a", "X"): 0.25}
    assert new_pairs([viewed, wished, bought], {"e0", "e1", "e2"}, str.isupper, 1, weights) == {
        ("X", "X"): 0.25,
        ("X", "a"): 1.0,
    }
