"""Whatever is upserted and removed, a catalogue says what a plain dictionary says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_items import SeededEncoder

from fathom.errors import NotFoundError, OverloadError
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import MOST_ATTRIBUTES, SPARE, Applied, ItemRecord, LiveCatalogue
from fathom.runtime.retriever import FlatRetriever

CATEGORIES = ("comedy", "drama", "space", "western", "brand new")
IDS = [*(f"item-{i}" for i in range(4)), *(f"new-{i}" for i in range(4))]

records = st.builds(
    ItemRecord,
    id=st.sampled_from(IDS),
    title=st.sampled_from(["", "One", "Two"]),
    categories=st.lists(st.sampled_from(CATEGORIES), max_size=2, unique=True).map(tuple),
    attributes=st.dictionaries(st.sampled_from(["price", "stock"]), st.sampled_from([0.0, 9.5]), max_size=2),
    unavailable=st.booleans(),
    boost=st.sampled_from([0.0, 0.5, -1.0]),
    expires=st.sampled_from([0, 3, 6]),
)
changes = st.tuples(
    st.lists(records, max_size=3, unique_by=lambda record: record.id),
    st.lists(st.sampled_from([*IDS, "nobody"]), max_size=2),
    st.integers(0, 3),
)


@pytest.fixture(scope="module")
def bundle(synthetic_bundle: Path) -> Bundle:
    return Bundle.open(synthetic_bundle)


class Model:
    """A catalogue as a dictionary of what was said last; None: taken out."""

    def __init__(self, bundle: Bundle) -> None:
        every = bundle.catalogue
        own = map(ItemRecord, every.ids, every.titles, every.categories)
        self.own = {record.id: record for record in own}
        self.said: dict[str, ItemRecord | None] = dict(self.own)

    def change(self, some: list[ItemRecord], removed: list[str]) -> Applied:
        added = sum(self.said.get(record.id) is None for record in some)
        for record in some:
            own = self.own.get(record.id, ItemRecord(record.id))
            self.said[record.id] = replace(
                record, title=record.title or own.title, categories=record.categories or own.categories
            )
        gone = {id for id in removed if self.said.get(id) is not None}
        self.said |= dict.fromkeys(gone)
        return Applied(added, len(some) - added, len(gone))

    def offered(self, now_s: float) -> dict[str, ItemRecord]:
        return {id: said for id, said in self.said.items() if said is not None and said.is_offered(now_s)}


@given(st.lists(changes, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_catalogue_says_what_was_said_last(bundle: Bundle, sequence) -> None:
    now_s = [0.0]
    catalogue = LiveCatalogue(bundle, encoder=SeededEncoder(), clock=lambda: now_s[0])
    retriever = FlatRetriever(catalogue.vectors)
    model = Model(bundle)
    seen: list[str] = []
    for version, (some, removed, seconds) in enumerate(sequence, 1):
        done = catalogue.apply(catalogue.prepare(some), removed, version=version)
        assert done == model.change(some, removed)
        now_s[0] += seconds
        check(catalogue, model.offered(now_s[0]), retriever)
        # An index never changes its item.
        assert [catalogue.id(item) for item in range(len(seen))] == seen
        seen = [catalogue.id(item) for item in range(len(catalogue))]
        assert catalogue.offer().version == version


def check(catalogue: LiveCatalogue, offered: dict[str, ItemRecord], retriever: FlatRetriever) -> None:
    offer = catalogue.offer()
    items = range(len(catalogue)) if offer.mask is None else np.flatnonzero(offer.mask).tolist()
    assert sorted(map(catalogue.id, items)) == sorted(offered)
    user = np.ones((1, catalogue.vectors.width), np.float32)
    ((found, _),) = retriever.search(user, [len(catalogue)], [ItemFilter()], None, offer.mask)
    assert sorted(found.tolist()) == list(items)
    boosts = dict(zip(*(each.tolist() for each in offer.boosts), strict=True))
    assert list(boosts) == sorted(boosts)
    for item in items:
        said = offered[catalogue.id(item)]
        assert catalogue.find(said.id) == item
        assert (catalogue.title(item), set(catalogue.categories(item))) == (said.title, set(said.categories))
        assert boosts.get(item, 0.0) == said.boost
    for name in ("price", "stock"):
        column = catalogue.attribute(name)
        values = np.full(len(catalogue), np.nan) if column is None else column
        assert len(values) == len(catalogue)
        wanted = [offered[catalogue.id(item)].attributes.get(name, np.nan) for item in items]
        np.testing.assert_array_equal(values[list(items)], wanted)
    for name in CATEGORIES:
        members = [item for item in items if name in offered[catalogue.id(item)].categories]
        if members or catalogue.has_category(name):
            mask = catalogue.category_mask([name])
            assert [item for item in items if mask[item]] == members
        else:
            with pytest.raises(NotFoundError, match=name):
                catalogue.category_mask([name])


def test_an_attribute_covers_items_that_come_long_after_it(bundle: Bundle) -> None:
    catalogue = LiveCatalogue(bundle, encoder=SeededEncoder())
    catalogue.apply(catalogue.prepare([ItemRecord("item-1", attributes={"price": 2.0})]), version=1)
    many = [ItemRecord(f"new-{i}", title="New") for i in range(2 * SPARE)]
    catalogue.apply(catalogue.prepare(many), version=2)
    price = catalogue.attribute("price")
    assert price is not None
    assert price.shape == (len(catalogue),)
    assert np.flatnonzero(~np.isnan(price)).tolist() == [1]


def test_attributes_by_ever_other_names_are_refused(bundle: Bundle) -> None:
    catalogue = LiveCatalogue(bundle)
    names = [f"attribute {i}" for i in range(MOST_ATTRIBUTES + 1)]
    record = ItemRecord("item-1", attributes=dict.fromkeys(names[:-1], 1.0))
    catalogue.apply(catalogue.prepare([record]), version=1)
    with pytest.raises(OverloadError, match="257 different attributes, at most 256"):
        catalogue.prepare([ItemRecord("item-2", attributes={names[-1]: 1.0})])


def test_what_expires_ever_later_leaves_nothing_behind(bundle: Bundle) -> None:
    catalogue = LiveCatalogue(bundle, clock=lambda: 0.0)
    for when in range(1, 5 * SPARE):
        catalogue.apply(catalogue.prepare([ItemRecord("item-1", expires=when)]), version=when)
    assert len(catalogue._expiring) <= SPARE + 2
