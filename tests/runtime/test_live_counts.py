"""What is counted live weighs what training would have made of the same events."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime import live_counts
from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_counts import LiveCounts, LivePairs
from fathom.runtime.manifest import CountingInfo
from fathom.serving.history.contract import StoredEvent
from fathom.serving.live_pairs import new_pairs
from fathom.training.counting import CountingSettings, count
from fathom.training.dataset import Sequences

TRAINED, ITEMS = 4, 7


def info_of(counted: CountingSettings) -> CountingInfo:
    fields = {name: getattr(counted, name) for name in CountingInfo.model_fields if hasattr(counted, name)}
    return CountingInfo(**fields, weights={}, quality={})


@st.composite
def counted(draw: st.DrawFn) -> CountingSettings:
    return CountingSettings(
        max_lag=draw(st.integers(1, 4)),
        backward=draw(st.sampled_from([0.0, 0.25, 1.0])),
        source_power=draw(st.sampled_from([0.0, 0.25, 0.5])),
        target_power=draw(st.sampled_from([0.0, 0.25, 0.5])),
        neighbours=100,
    )


WEIGHED = {"purchase": 1.0, "view": 0.25, "wish": 0.0}


def totals(users: list[list[tuple[int, str]]], max_lag: int, weights: dict[str, float]) -> list[tuple[int, int, float]]:
    """What is counted when events come one by one, each user's in a message of their own."""
    sums: defaultdict[tuple[int, int], float] = defaultdict(float)
    for events in users:
        history = [StoredEvent(f"e{place}", str(item), place, kind) for place, (item, kind) in enumerate(events)]
        for length in range(1, len(history) + 1):
            new = {history[length - 1].event_id}
            pairs = new_pairs(history[:length], new, lambda item: int(item) >= TRAINED, max_lag, weights)
            for (one, other), gain in pairs.items():
                sums[int(one), int(other)] += gain
    return [(*pair, gain) for pair, gain in sums.items()]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, ITEMS - 1), st.sampled_from(("", *WEIGHED))), max_size=10),
        min_size=1,
        max_size=5,
    ),
    counted(),
    st.booleans(),
)
@settings(deadline=None)
def test_live_pairs_weigh_what_training_counts(
    users: list[list[tuple[int, str]]], chosen: CountingSettings, weighed: bool
) -> None:
    weights = WEIGHED if weighed else {}
    left = [[(item, weights.get(kind, 1.0)) for item, kind in user if weights.get(kind, 1.0)] for user in users]
    events = np.array([each for user in left for each in user]).reshape(-1, 2)
    sequences = Sequences(
        events[:, 0].astype(np.int64), np.cumsum([0, *map(len, left)]), None, events[:, 1].astype(np.float32)
    )
    tables = count(sequences, ITEMS, chosen)
    trained = np.bincount(sequences.items, sequences.weights, minlength=ITEMS)[:TRAINED]
    live = LiveCounts(trained, info_of(chosen))
    live.put(totals(users, chosen.max_lag, weights))
    for item in range(ITEMS):
        found = live.neighbours(np.array([item]), np.ones(1))
        row = slice(tables.offsets[item], tables.offsets[item + 1])
        expected = dict(zip(tables.neighbours[row].tolist(), tables.weights[row].tolist(), strict=True))
        expected = {other: w for other, w in expected.items() if max(item, other) >= TRAINED}
        got = {} if found is None else dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
        assert got == pytest.approx(expected)


def test_the_new_item_comes_after_what_it_followed_and_stating_it_twice_changes_nothing() -> None:
    info = info_of(CountingSettings(backward=0.0, source_power=0.0, target_power=0.0))
    live = LiveCounts(np.ones(4, np.int64), info)
    tables = Counting(
        np.array([0, 1, 1, 1, 1]),
        np.array([1], np.int32),
        np.ones(1, np.float32),
        np.zeros(4, np.float32),
        2,
        0.5,
        live,
    )
    for _ in range(2):
        live.put([(0, 4, 3.0), (4, 4, 3.0)])
    items, shares = tables.shares(np.array([0]))
    assert (items.tolist(), shares.tolist()) == ([1, 4], [np.float32(1 / 3), 1.0])
    assert tables.shares(np.array([4]))[0].tolist() == []
    live.put([(4, 2, 1.0)])
    assert tables.shares(np.array([0, 4]))[0].tolist() == [1, 2, 4]
    assert tables.best(np.array([0]), 1, ItemFilter())[0].tolist() == [4]


def test_pairs_wait_for_their_items_and_follow_them_to_another_index() -> None:
    chosen = info_of(CountingSettings())
    pairs = [("a", "X", 2.0), ("X", "X", 3.0), ("Y", "a", 1.0), ("X", "Y", 0.5), ("Z", "a", 1.0)]

    def found(index: dict[str, int], counts: LiveCounts) -> dict[tuple[str, str], float]:
        names = {place: name for name, place in index.items()}
        rows = {item: counts.neighbours(np.array([place]), np.ones(1)) for item, place in index.items()}
        return {
            (item, names[other]): pytest.approx(weight)
            for item, row in rows.items()
            if row is not None
            for other, weight in zip(*(each.tolist() for each in row[:2]), strict=True)
        }

    moving, fixed = LiveCounts(np.array([5, 7]), chosen), LiveCounts(np.array([5, 7]), chosen)
    index = {"a": 0, "b": 1}
    live = LivePairs(index.get, moving)
    live.put(pairs)
    assert found(index, moving) == {}
    index["X"], index["Y"] = 2, 3
    live.refresh()
    index["X"] = 4
    live.refresh()
    live.put([("a", "X", 2.5)])
    LivePairs({"a": 0, "b": 1, "X": 2, "Y": 3}.get, fixed).put([("a", "X", 2.5), *pairs[1:]])
    assert found(index, moving) == found({"a": 0, "b": 1, "X": 2, "Y": 3}, fixed)
    assert moving.neighbours(np.array([2]), np.ones(1)) is None


def test_of_many_partners_the_most_frequent_are_remembered() -> None:
    live = LiveCounts(np.ones(1, np.int64), info_of(CountingSettings(neighbours=8)))
    most = live_counts.MOST_PARTNERS
    live.put((0, 1 + place, float(place)) for place in range(3 * most))
    assert len(live._forward[0]) <= 2 * most
    found = live.neighbours(np.array([0]), np.ones(1))
    assert found is not None
    assert sorted(found[0].tolist()) == list(range(3 * most - 7, 3 * most + 1))
