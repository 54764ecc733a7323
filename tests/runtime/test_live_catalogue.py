"""A catalogue that is changed while it is searched."""

from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest

from fathom.errors import InvalidRequestError, OverloadError
from fathom.runtime import retriever
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import GrowingVectors, ItemVectors
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.retriever import FlatRetriever


@pytest.fixture
def bundle(synthetic_bundle: Path) -> Bundle:
    return Bundle.open(synthetic_bundle)


def test_an_added_item_is_found_beside_the_items_it_is_like(bundle: Bundle) -> None:
    catalogue = LiveCatalogue(bundle)
    flat = FlatRetriever(catalogue.vectors)
    record = ItemRecord("new", title="New", categories=("western",), similar=("item-3",))
    done = catalogue.apply(catalogue.prepare([record]), version=1)
    assert (done.added, done.updated, done.removed, catalogue.version) == (1, 0, 0, 1)
    assert (catalogue.find("new"), catalogue.id(50), catalogue.title(50), len(catalogue)) == (50, "new", "New", 51)
    assert catalogue.category_mask(["western"])[50]
    items, scores = flat.search(bundle.vectors.take(np.array([3])), [2], [ItemFilter()])[0]
    assert items.tolist() == [3, 50]
    assert scores == pytest.approx([1, 1])


def test_what_is_removed_unavailable_or_expired_is_not_offered(bundle: Bundle) -> None:
    now = [1_000.0]
    catalogue = LiveCatalogue(bundle, clock=lambda: now[0])
    records = [ItemRecord("item-1", unavailable=True), ItemRecord("item-2", expires=1_010)]
    assert catalogue.offer().mask is None
    catalogue.apply(catalogue.prepare(records), ["item-3", "who?"], version=1)
    mask = catalogue.offer().mask
    assert mask is not None
    assert np.flatnonzero(~mask).tolist() == [1, 3]
    now[0] = 1_010.0
    mask = catalogue.offer().mask
    assert mask is not None
    assert np.flatnonzero(~mask).tolist() == [1, 2, 3]
    catalogue.apply(catalogue.prepare([ItemRecord("item-1"), ItemRecord("item-2"), ItemRecord("item-3")]), version=2)
    assert catalogue.offer().mask is None


def test_an_item_expires_however_much_was_said_since_anyone_looked(bundle: Bundle) -> None:
    now = [1_000.0]
    catalogue = LiveCatalogue(bundle, clock=lambda: now[0])
    catalogue.apply(catalogue.prepare([ItemRecord("item-1", expires=1_010)]), version=1)
    now[0] = 1_010.0
    for version in range(2, 1_100):
        catalogue.apply(catalogue.prepare([ItemRecord("item-2", expires=5_000)]), version=version)
    mask = catalogue.offer().mask
    assert mask is not None
    assert np.flatnonzero(~mask).tolist() == [1]


def test_an_item_that_nothing_places_or_that_there_is_no_room_for_is_refused(bundle: Bundle) -> None:
    catalogue = LiveCatalogue(bundle, room=1)
    with pytest.raises(InvalidRequestError, match="nothing places item 'new'"):
        catalogue.prepare([ItemRecord("new", similar=("who?",))])
    with pytest.raises(OverloadError, match="room for 1 added"):
        catalogue.prepare([ItemRecord(name, similar=("item-1",)) for name in "ab"])
    assert len(catalogue) == 50


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_search_over_added_items_is_that_over_all_of_them_at_once(
    bundle: Bundle, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "DENSE_ITEMS", 30)
    in_rows = Mock(wraps=retriever._dense)
    every = ItemVectors.store(np.asarray(bundle.vectors), precision)  # type: ignore[arg-type]
    growing = GrowingVectors(ItemVectors(every.rows[:1]))
    flat = FlatRetriever(growing, block_items=16)
    users = bundle.vectors.take(np.arange(5))
    filters = [ItemFilter(exclude=np.array([row])) for row in range(5)]
    mask = np.arange(50) % 7 != 0
    for part in (np.arange(1, 20), np.arange(20, 50)):
        growing.append(np.asarray(bundle.vectors)[part])
        n = part[-1] + 1
        bonus = np.arange(0, n, 3), np.linspace(0, 1, len(range(0, n, 3)), dtype=np.float32)
        asked = users, [9] * 5, filters, [bonus, None, bonus, None, bonus], mask
        whole = FlatRetriever(ItemVectors(every.rows[:n])).search(*asked)
        with patch.object(retriever, "_dense", in_rows):
            found = flat.search(*asked)
        if precision == "fp32":  # rows of more numbers would take too much memory
            assert (in_rows.call_args.args[0] is None) == (n > 30)
        for (items, scores), (wanted, values) in zip(found, whole, strict=True):
            assert items.tolist() == wanted.tolist()
            assert scores == pytest.approx(values, abs=1e-6)
    assert growing.take(np.array([0, 49])) == pytest.approx(every.take(np.array([0, 49])))
