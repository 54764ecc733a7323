"""A search by an index never returns what a filter hides, nor too little; looking everywhere it is the flat search."""

import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import MissingExtraError
from fathom.exporter.bundle.index_build import build_index
from fathom.runtime import index_retriever
from fathom.runtime.index_retriever import IndexRetriever
from fathom.runtime.item_filter import Bonus, ItemFilter
from fathom.runtime.item_index import ItemIndex
from fathom.runtime.item_vectors import GrowingVectors, ItemVectors
from fathom.runtime.manifest import IndexKind, SearchLevel
from fathom.runtime.retriever import FlatRetriever

ITEMS, WIDTH, LISTS, MOST = 2_000, 8, 32, 100
KINDS: tuple[IndexKind, ...] = ("ivf", "hnsw", "pq")


def unit_rows(seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@cache
def indexed(kind: IndexKind) -> tuple[ItemVectors, object]:
    vectors = ItemVectors(unit_rows(0, ITEMS))
    return vectors, build_index(vectors, kind, lists=LISTS, threads=1)


def retriever(kind: IndexKind, effort: int, *, expansion: int = 10, vectors: ItemVectors | None = None):
    own, index = indexed(kind)
    vectors = own if vectors is None else vectors
    level = SearchLevel(wanted=MOST, effort=effort, candidates=MOST * expansion)
    return IndexRetriever(ItemIndex(index, kind, [level]), vectors, FlatRetriever(vectors))


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 40)
    monkeypatch.setattr(index_retriever, "MOST_DROPPED", 50)


@st.composite
def searches(draw: st.DrawFn):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(1, 4))

    def keep() -> ItemFilter:
        exclude = rng.integers(0, ITEMS, draw(st.sampled_from([0, 3, 40, 300])))
        share = draw(st.sampled_from([None, 0.5, 0.03, 0.001]))
        allow = rng.integers(0, ITEMS, 400) if draw(st.booleans()) and draw(st.booleans()) else None
        return ItemFilter(exclude, allow, None if share is None else rng.random(ITEMS) < share)

    def bonus() -> Bonus | None:
        if draw(st.booleans()):
            return None
        items = np.sort(rng.choice(ITEMS, draw(st.sampled_from([1, 30, 200])), replace=False))
        return items, rng.uniform(draw(st.sampled_from([-1.0, 0.0])), 1, len(items)).astype(np.float32)

    ks = draw(st.lists(st.sampled_from([1, 10, 60, 150]), min_size=rows, max_size=rows))
    offered = None if draw(st.booleans()) else rng.random(ITEMS) < draw(st.sampled_from([0.99, 0.4]))
    users = unit_rows(draw(st.integers(0, 99)), rows)
    return users, ks, [keep() for _ in ks], [bonus() for _ in ks], offered


@pytest.mark.parametrize("kind", ["ivf", "pq"])
@given(searches())
@settings(max_examples=60, deadline=None)
def test_looking_into_every_list_it_finds_what_the_flat_search_finds(kind: IndexKind, search) -> None:
    found = retriever(kind, LISTS, expansion=20).search(*search)
    flat = FlatRetriever(indexed(kind)[0]).search(*search)
    for (items, scores), (best, values) in zip(found, flat, strict=True):
        assert len(items) == len(best)
        np.testing.assert_allclose(scores, values, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(searches())
@settings(max_examples=60, deadline=None)
def test_whatever_it_misses_filters_scores_order_and_number_are_exact(kind: IndexKind, search) -> None:
    users, ks, filters, bonuses, offered = search
    vectors = indexed(kind)[0]
    flat = FlatRetriever(vectors).search(*search)
    for row, (items, scores) in enumerate(retriever(kind, 2, expansion=1).search(*search)):
        keep, exact = filters[row], np.asarray(vectors) @ users[row]
        if (bonus := bonuses[row]) is not None:
            exact[bonus[0]] += bonus[1]
        np.testing.assert_allclose(scores, exact[items], atol=1e-6)
        assert len(items) == len(set(items.tolist())) == len(flat[row][0]) <= ks[row]
        assert not np.isin(items, keep.exclude).any()
        assert keep.allow is None or np.isin(items, keep.allow).all()
        assert keep.mask is None or keep.mask[items].all()
        assert offered is None or offered[items].all()
        order = np.lexsort((items, -scores))
        assert order.tolist() == list(range(len(items)))
        assert items.dtype == np.int64
        assert scores.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_most_of_the_best_in_a_part_of_the_catalogue(kind: IndexKind) -> None:
    users = unit_rows(7, 50)
    asked = users, [10] * 50, [ItemFilter()] * 50
    found, flat = retriever(kind, 64 if kind == "hnsw" else 16).search(*asked), FlatRetriever(indexed(kind)[0])
    shares = [np.isin(best, items).mean() for (best, _), (items, _) in zip(flat.search(*asked), found, strict=True)]
    assert np.mean(shares) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_counting_puts_first_is_first_though_the_index_never_finds_it(kind: IndexKind) -> None:
    user = unit_rows(3, 1)
    last = int((np.asarray(indexed(kind)[0]) @ user[0]).argmin())
    bonus = np.array([last]), np.array([5], np.float32)
    ((items, _),) = retriever(kind, 1).search(user, [3], [ItemFilter()], [bonus])
    assert items[0] == last
    hidden = np.arange(ITEMS) != last
    ((items, _),) = retriever(kind, 1).search(user, [3], [ItemFilter()], [bonus], hidden)
    assert last not in items
    ((items, _),) = retriever(kind, 1).search(user, [3], [ItemFilter(exclude=np.array([last]))], [bonus])
    assert last not in items


def test_equal_scores_are_in_the_order_of_their_indices() -> None:
    user = unit_rows(3, 1)
    zero = np.zeros_like(user)
    ((items, _),) = retriever("ivf", LISTS).search(zero, [5], [ItemFilter(mask=np.arange(ITEMS) < 30)])
    assert items.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_items_that_were_added_are_found_at_once_and_left_out_when_they_are_hidden(kind: IndexKind) -> None:
    vectors = GrowingVectors(indexed(kind)[0])
    search = retriever(kind, 2, vectors=vectors)
    user = unit_rows(11, 1)
    before = search.search(user, [5], [ItemFilter()])[0][0]
    vectors.append(np.repeat(user, 2, axis=0))
    ((items, scores),) = search.search(user, [5], [ItemFilter()])
    assert items.tolist() == [ITEMS, ITEMS + 1, *before[:3].tolist()]
    assert scores[:2] == pytest.approx(1)
    offered = np.arange(ITEMS + 2) != ITEMS
    bonus = np.array([5, ITEMS + 1]), np.array([3, -9], np.float32)
    ((items, _),) = search.search(user, [5], [ItemFilter()], None, offered)
    assert items[0] == ITEMS + 1
    ((items, _),) = search.search(user, [5], [ItemFilter()], [bonus], offered)
    assert items[0] == 5
    assert not set(items.tolist()) & {ITEMS, ITEMS + 1}
    # What only the flat search can answer has them too, once.
    ((items, _),) = search.search(user, [ITEMS], [ItemFilter()])
    assert items[:2].tolist() == [ITEMS, ITEMS + 1]
    assert len(set(items.tolist())) == ITEMS


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_user_vector_leaves_its_neighbours_alone(kind: IndexKind) -> None:
    users = unit_rows(5, 3)
    whole = retriever(kind, 8).search(users, [5] * 3, [ItemFilter()] * 3)
    users[1] = np.nan
    found = retriever(kind, 8).search(users, [5] * 3, [ItemFilter()] * 3)
    for row in (0, 2):
        assert found[row][0].tolist() == whole[row][0].tolist()


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed("ivf")[1]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"faiss is not installed; run: pip install .*\[faiss\]"):
        ItemIndex(index, "ivf", [])
