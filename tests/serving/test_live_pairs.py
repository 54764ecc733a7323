"""Which pairs an append adds to what is counted."""

from fathom.serving.history.contract import StoredEvent
from fathom.serving.live_pairs import new_pairs


def history(*items: str) -> list[StoredEvent]:
    return [StoredEvent(f"e{place}", item, place) for place, item in enumerate(items)]


def pairs(items: str, *new: int, max_lag: int = 2) -> dict[str, float]:
    """Pairs as "earlier later"; capital letters are added items."""
    names = {f"e{place}" for place in new}
    return {"".join(pair): gain for pair, gain in new_pairs(history(*items), names, str.isupper, max_lag).items()}


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
