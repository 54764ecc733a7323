"""The retriever returns exactly what sorting all allowed items would."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime import retriever
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.retriever import FlatRetriever, _changes

KINDS = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


def brute_force(scores: np.ndarray, k: int, keep: ItemFilter) -> list[int]:
    allowed = range(len(scores)) if keep.allow is None else set(keep.allow.tolist())
    left = [i for i in allowed if i not in set(keep.exclude.tolist()) and (keep.mask is None or keep.mask[i])]
    return sorted(left, key=lambda i: (-scores[i], i))[:k]


@st.composite
def searches(draw: st.DrawFn):
    """Small whole numbers make every product exact and ties frequent."""
    n, width, rows = draw(st.integers(1, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items = st.lists(st.integers(0, n - 1), max_size=n + 3).map(lambda x: np.array(x, np.int64))
    filters = st.builds(
        ItemFilter,
        exclude=items,
        allow=st.none() | items,
        mask=st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
    )
    return (
        rng.integers(-2, 3, (n, width)).astype(np.float32),
        rng.integers(-2, 3, (rows, width)).astype(np.float32),
        draw(st.lists(st.integers(1, n + 5), min_size=rows, max_size=rows)),
        draw(st.lists(filters, min_size=rows, max_size=rows)),
        draw(st.sampled_from([1, 7, 50])),
    )


@st.composite
def bonuses(draw: st.DrawFn, n: int):
    items = np.array(sorted(draw(st.sets(st.integers(0, n - 1)))), np.int64)
    quarters = draw(st.lists(st.integers(-4, 12), min_size=len(items), max_size=len(items)))
    return items, np.array(quarters, np.float32) / 4


@given(searches(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_bonus_counts_before_anything_is_compared_and_never_brings_back_what_is_hidden(search, data) -> None:
    rows, users, ks, filters, block_items = search
    rows[:, 0] += (rows == 0).all(axis=1)  # a row of zeros has no direction in int8
    precision = data.draw(st.sampled_from(["fp32", "fp16", "int8"]))
    vectors = ItemVectors(rows.astype(KINDS[precision]))
    given = data.draw(st.lists(st.none() | bonuses(len(rows)), min_size=len(users), max_size=len(users)))
    with patch.object(retriever, "DENSE_ITEMS", data.draw(st.sampled_from([0, 40]))):
        flat = FlatRetriever(vectors, block_items=block_items, threads=data.draw(st.integers(1, 2)))
    for row, (indices, scores) in enumerate(flat.search(users, ks, filters, given)):
        exact = rows @ users[row]
        if vectors.scales is not None:
            exact *= vectors.scales
        if (bonus := given[row]) is not None:
            exact[bonus[0]] += bonus[1]
        assert indices.tolist() == brute_force(exact, ks[row], filters[row])
        np.testing.assert_array_equal(scores, exact[indices])


@given(searches())
@settings(max_examples=300, deadline=None)
def test_top_k_is_exact_for_all_filters_ties_and_block_sizes(search) -> None:
    vectors, users, ks, filters, block_items = search
    found = FlatRetriever(ItemVectors(vectors), block_items=block_items).search(users, ks, filters)
    for row, (indices, scores) in enumerate(found):
        exact = vectors @ users[row]
        assert indices.tolist() == brute_force(exact, ks[row], filters[row])
        np.testing.assert_array_equal(scores, exact[indices])
        assert indices.dtype == np.int64
        assert scores.dtype == np.float32


def test_filters_of_one_request_leave_its_neighbours_alone() -> None:
    flat = FlatRetriever(ItemVectors(np.eye(4, dtype=np.float32)))
    users = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    found = flat.search(users, [2, 2], [ItemFilter(exclude=np.array([0])), ItemFilter()])
    assert [indices.tolist() for indices, _ in found] == [[1, 2], [0, 1]]


def test_nothing_left_gives_nothing() -> None:
    flat = FlatRetriever(ItemVectors(np.eye(3, dtype=np.float32)))
    users = np.ones((1, 3), np.float32)
    for keep in (ItemFilter(exclude=np.arange(3)), ItemFilter(allow=np.empty(0, np.int64))):
        ((indices, scores),) = flat.search(users, [5], [keep])
        assert indices.size == scores.size == 0


@pytest.mark.parametrize("dense_items", [0, 5_000])
@pytest.mark.parametrize("block_items", [1_000, 1_700, 5_000])
def test_a_large_catalogue_in_blocks_gives_the_same_answer(
    block_items: int, dense_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "DENSE_ITEMS", dense_items)
    rng = np.random.default_rng(0)
    vectors = rng.integers(-9, 10, (5_000, 16)).astype(np.float32)
    users = rng.integers(-9, 10, (3, 16)).astype(np.float32)
    keep = [ItemFilter(exclude=rng.integers(0, 5_000, 50)), ItemFilter(mask=rng.random(5_000) < 0.1), ItemFilter()]
    items = np.sort(rng.choice(5_000, 900, replace=False))
    bonus = items, rng.integers(0, 99, 900).astype(np.float32)
    flat = FlatRetriever(ItemVectors(vectors), block_items=block_items, threads=2)
    for added in (None, [bonus, None, bonus]):
        exact = users @ vectors.T
        if added:
            exact[np.ix_([0, 2], items)] += bonus[1]
        for row, (indices, _) in enumerate(flat.search(users, [10, 20, 1_000], keep, added)):
            assert indices.tolist() == brute_force(exact[row], (10, 20, 1_000)[row], keep[row])


def test_threads_may_add_in_any_order_because_nothing_else_is_added_where_an_item_is_hidden() -> None:
    bonus = np.array([0, 3, 5, 9]), np.ones(4, np.float32)
    places, added = _changes([np.array([9, 5, 5, 7]), np.array([2])], [bonus, bonus])
    at: dict[tuple[int, int], set[float]] = {}
    for (row, item), value in zip(places.tolist(), added.tolist(), strict=True):
        at.setdefault((row, item), set()).add(value)
    hidden = {(0, 9), (0, 5), (0, 7), (1, 2)}
    given = {(0, 0), (0, 3), *((1, item) for item in (0, 3, 5, 9))}
    assert at == {place: {-np.inf} for place in hidden} | {place: {1.0} for place in given}
