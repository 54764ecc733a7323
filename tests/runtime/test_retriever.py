"""The retriever returns exactly what sorting all allowed items would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.retriever import FlatRetriever


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
    retriever = FlatRetriever(ItemVectors(np.eye(4, dtype=np.float32)))
    users = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    found = retriever.search(users, [2, 2], [ItemFilter(exclude=np.array([0])), ItemFilter()])
    assert [indices.tolist() for indices, _ in found] == [[1, 2], [0, 1]]


def test_nothing_left_gives_nothing() -> None:
    retriever = FlatRetriever(ItemVectors(np.eye(3, dtype=np.float32)))
    users = np.ones((1, 3), np.float32)
    for keep in (ItemFilter(exclude=np.arange(3)), ItemFilter(allow=np.empty(0, np.int64))):
        ((indices, scores),) = retriever.search(users, [5], [keep])
        assert indices.size == scores.size == 0


@pytest.mark.parametrize("block_items", [1_000, 1_700, 5_000])
def test_a_large_catalogue_in_blocks_gives_the_same_answer(block_items: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-9, 10, (5_000, 16)).astype(np.float32)
    users = rng.integers(-9, 10, (3, 16)).astype(np.float32)
    keep = [ItemFilter(exclude=rng.integers(0, 5_000, 50)), ItemFilter(mask=rng.random(5_000) < 0.1), ItemFilter()]
    found = FlatRetriever(ItemVectors(vectors), block_items=block_items).search(users, [10, 20, 1_000], keep)
    for row, (indices, _) in enumerate(found):
        assert indices.tolist() == brute_force((users @ vectors.T)[row], (10, 20, 1_000)[row], keep[row])
