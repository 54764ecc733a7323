"""The catalogue of a bundle in service: items are added, changed and removed while requests are answered."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fathom.errors import InvalidRequestError, NotFoundError, OverloadError, brief
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import NO_BONUS, Bonus, Mask
from fathom.runtime.item_vectors import GrowingVectors
from fathom.selector.features import Features

Vectors = NDArray[np.float32]

#: Items that can be added to a bundle while it serves, unless said otherwise.
ROOM = 100_000
#: Names of attributes that all items together may have; each is a number for every item.
MOST_ATTRIBUTES = 256
#: Bundle items that new vectors are compared with at a time.
_COMPARED = 8_192
#: Places that a column has to spare.
SPARE = 1_024


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """An item as a shop knows it; ``CatalogueItem`` of the .proto says what each field does."""

    id: str
    title: str = ""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)
    unavailable: bool = False
    boost: float = 0.0
    expires: int = 0
    similar: tuple[str, ...] = ()

    def is_offered(self, now_s: float) -> bool:
        """Whether it may be returned at a moment, in seconds since 1970."""
        return not self.unavailable and not 0 < self.expires <= now_s


class Encoder(Protocol):
    """Makes item vectors of texts."""

    def encode(self, titles: Sequence[str], categories: Sequence[Sequence[str]], /) -> Vectors:
        """Float32 (n, width), unit rows; zeros where a text says nothing that is known."""


class Prepared(NamedTuple):
    """Records that can be applied: ``vectors`` float32 (n, width), and the nearest trained items, int64 (n,).

    A vector is all zero where the record needs none: its item was trained, or is placed by what it was before.
    """

    records: Sequence[ItemRecord]
    vectors: Vectors
    stand_ins: NDArray[np.int64]


class Applied(NamedTuple):
    """How many items a change has added, updated and removed."""

    added: int = 0
    updated: int = 0
    removed: int = 0


class Offer(NamedTuple):
    """What a search must know of the catalogue, of one moment.

    ``mask``: bool (n,), which items may be returned; None: all. ``boosts``: what is added to the scores of items.
    """

    version: int
    mask: Mask | None
    boosts: Bonus


class LiveCatalogue:
    """A bundle's items by index, and behind them those that were added; an index never changes its item.

    An item whose vector changes gets a new index and its old one is never returned again, so whatever was computed from
    an index stays right. Changed in one thread, the event loop's; ``offer`` and ``vectors`` may be read in any.
    ``encoder``: places items that are like none by their titles and categories; None takes the bundle's. ``room``:
    indices that can be added. ``clock``: seconds since 1970.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        encoder: Encoder | None = None,
        room: int = ROOM,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bundle = bundle
        self._encoder = bundle.text_encoder if encoder is None else encoder
        self._base = bundle.catalogue
        self._room = room
        self._clock = clock
        self.vectors = GrowingVectors(bundle.vectors)
        #: Items that the bundle was trained with; their indices come first.
        self.trained = len(bundle.catalogue)
        #: How often a title has changed: who remembers titles must forget them then.
        self.retitled = 0
        #: Items that something was said of, but that nothing places among the others.
        self.unplaced: set[str] = set()
        self._ids: list[str] = []
        self._stand_ins: list[int] = []
        self._index: dict[str, int] = {}
        self._records: dict[int, ItemRecord] = {}
        self._removed: set[int] = set()
        # Indices of items that had another one before.
        self._moved: set[int] = set()
        self._expiring: list[tuple[int, int]] = []
        self._columns: dict[str, NDArray[np.float64]] = {}
        # By category: items that were not in it, and those that no longer are.
        self._joined: defaultdict[str, set[int]] = defaultdict(set)
        self._left: defaultdict[str, set[int]] = defaultdict(set)
        # What they come to, of the categories that were asked for since they last changed.
        self._members: dict[str, NDArray[np.integer]] = {}
        self._offer = Offer(0, None, NO_BONUS)

    def __len__(self) -> int:
        """Indices that there are, those of removed items among them."""
        return self.trained + len(self._ids)

    @property
    def offered(self) -> int:
        """How many items may be returned now."""
        mask = self._offer.mask
        return len(self) if mask is None else int(np.count_nonzero(mask))

    @property
    def version(self) -> int:
        """The number that the last change was given; 0 before the first."""
        return self._offer.version

    def id(self, item: int) -> str:
        """The id of an index."""
        return self._base.ids[item] if item < self.trained else self._ids[item - self.trained]

    def title(self, item: int) -> str:
        """The title of an index; an unknown one is the empty string."""
        record = self._records.get(item)
        if record is not None and record.title:
            return record.title
        return self._base.titles[item] if item < self.trained else ""

    def categories(self, item: int) -> tuple[str, ...]:
        """The categories of an index."""
        record = self._records.get(item)
        if record is not None and record.categories:
            return record.categories
        return self._base.categories[item] if item < self.trained else ()

    def record(self, item: int) -> ItemRecord | None:
        """What was last said of an index's item; None where nothing was."""
        return self._records.get(item)

    def find(self, id: str) -> int | None:
        """The index of an id, None for one that is not known; that of a removed item is still known."""
        return self._index.get(id, self._base.index.get(id)) if self._index else self._base.index.get(id)

    def holds(self, id: str) -> bool:
        """Whether the catalogue has an item, offered now or not."""
        if id in self.unplaced:
            return True
        item = self.find(id)
        return item is not None and item not in self._removed

    @property
    def index(self) -> dict[str, int]:
        """Id -> index of the bundle's own items, for a quick first look; ``find`` knows all."""
        return self._base.index

    def category_mask(self, categories: Iterable[str]) -> Mask:
        """True, shape (n,), for the items of at least one of these categories; NotFoundError for an unknown one."""
        mask = np.zeros(len(self), dtype=np.bool_)
        for name in categories:
            if not self.has_category(name):
                raise NotFoundError(f"no item of this catalogue has the category {name!r}")
            mask[self.in_category(name)] = True
        return mask

    def in_category(self, name: str) -> NDArray[np.integer]:
        """The items of a category, in any order, each once; not to be changed."""
        members = self._members.get(name)
        if members is None:
            members = self._members[name] = self._looked_up(name)
        return members

    def _looked_up(self, name: str) -> NDArray[np.integer]:
        members = self._base.category_items.get(name, np.empty(0, np.int32))
        if left := self._left.get(name):
            members = np.setdiff1d(members, list(left))
        if joined := self._joined.get(name):
            members = np.concatenate((members, np.array(list(joined), np.int64)))
        return members

    def members(self, categories: Iterable[str]) -> Mask:
        """As ``category_mask``, for categories that there are; may be called in any thread."""
        mask = np.zeros(len(self), dtype=np.bool_)
        for name in categories:
            # What another thread is about to change is not remembered here.
            found = self._looked_up(name)
            mask[found[found < len(mask)]] = True
        return mask

    def has_category(self, name: str) -> bool:
        """Whether an item has, or a trained one once had, this category."""
        return name in self._base.category_items or bool(self._joined.get(name))

    def attribute(self, name: str) -> NDArray[np.float64] | None:
        """A numeric attribute of all items, float64 (n,), NaN where it is not known; None where no item ever had it."""
        return self._column(name, len(self) - 1)[: len(self)] if name in self._columns else None

    def offer(self) -> Offer:
        """Which items may be returned now, and their boosts; one look at the clock where nothing has expired."""
        if self._expiring and self._expiring[0][0] <= self._clock():
            due = []
            while self._expiring and self._expiring[0][0] <= self._clock():
                due.append(heappop(self._expiring)[1])
            self._publish(self.version, due)
        return self._offer

    def left(self, items: NDArray[np.int64], n: int) -> Mask | None:
        """Which of the items found for a request may be in its answer; None: all.

        Not what is hidden by now, nor what has moved since the request was read, when there were ``n`` items: it names
        items by where they were, as those that it excludes.
        """
        mask = self.offer().mask
        if n == len(self):
            return None if mask is None else mask.take(items)
        left = np.array([item < n or item not in self._moved for item in items.tolist()], np.bool_)
        return left if mask is None else left & mask.take(items)

    @property
    def latest(self) -> Offer:
        """As ``offer`` saw it last; for other threads than the one that changes the catalogue."""
        return self._offer

    def inspect(
        self, items: NDArray[np.integer], timestamps: NDArray[np.int64] | None, *, brief: bool = False
    ) -> tuple[Features, float]:
        """As ``Bundle.inspect``; in the place of an added item, the nearest one that the bundle was trained with."""
        if self._ids and (items >= self.trained).any():
            items = np.array([i if i < self.trained else self._stand_ins[i - self.trained] for i in items.tolist()])
        return self._bundle.inspect(items, timestamps, brief=brief)

    def prepare(self, records: Sequence[ItemRecord]) -> Prepared:
        """What applying records takes; may run in another thread, but not beside ``apply``.

        Raises InvalidRequestError for an item that nothing places among the others, OverloadError without room.
        """
        new = [row for row, record in enumerate(records) if self._needs_vector(record)]
        if len(self._ids) + len(new) > self._room:
            raise OverloadError(
                f"the catalogue has room for {self._room:,} added items; reload the bundle to make room"
            )
        names = self._columns.keys() | {name for record in records for name in record.attributes}
        if len(names) > MOST_ATTRIBUTES:
            raise OverloadError(
                f"items would have {len(names)} different attributes, at most {MOST_ATTRIBUTES}; leave some out"
            )
        vectors = np.zeros((len(records), self.vectors.width), np.float32)
        stand_ins = np.zeros(len(records), np.int64)
        if new:
            vectors[new] = self._placed([records[row] for row in new])
            stand_ins[new] = self._nearest(vectors[new])
        return Prepared(records, vectors, stand_ins)

    def apply(self, prepared: Prepared, removed: Sequence[str] = (), *, version: int) -> Applied:
        """Put records in their places and take items out, all at once: the next answer is from what is then."""
        counts = [0, 0]
        touched: list[int] = []
        placed: Mask = np.any(prepared.vectors, axis=1)
        if placed.any():
            self.vectors.append(prepared.vectors[placed])
        rows = zip(prepared.records, prepared.stand_ins.tolist(), placed.tolist(), strict=True)
        for record, stand_in, new in rows:
            item = self.find(record.id)
            counts[item is not None and item not in self._removed] += 1
            touched += self._put(record, item, stand_in if new else None)
        out = {item for id in removed if (item := self.find(id)) is not None and item not in self._removed}
        for item in out:
            self._describe(item, None)
        self._removed |= out
        self.unplaced.difference_update(removed, [record.id for record in prepared.records])
        self._publish(version, [*touched, *out])
        return Applied(counts[0], counts[1], len(out))

    def _needs_vector(self, record: ItemRecord) -> bool:
        item = self.find(record.id)
        if item is None or item < self.trained:
            return item is None
        before = self._records.get(item)
        return before is None or (before.title, before.categories, before.similar) != (
            record.title,
            record.categories,
            record.similar,
        )

    def _placed(self, records: Sequence[ItemRecord]) -> Vectors:
        """Vectors of records, float32 (n, width), unit rows: from similar items, else from title and categories."""
        vectors = np.zeros((len(records), self.vectors.width), np.float32)
        encoder = self._encoder
        if encoder is not None:
            vectors = encoder.encode([each.title for each in records], [each.categories for each in records])
        for row, record in enumerate(records):
            like = [item for id in record.similar if (item := self.find(id)) is not None]
            if like:
                mean = self.vectors.take(np.array(like)).mean(axis=0)
                vectors[row] = mean / max(np.linalg.norm(mean), np.finfo(np.float32).tiny)
            if not vectors[row].any():
                why = "the bundle has no text encoder" if encoder is None else "its title and categories say nothing"
                raise InvalidRequestError(f"nothing places item {brief(record.id)!r}: {why}; name similar items")
        return vectors

    def _nearest(self, vectors: Vectors) -> NDArray[np.int64]:
        """The trained item that is most like each vector (n, width), int64 (n,)."""
        best, found = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
        for low in range(0, self.trained, _COMPARED):
            items = np.arange(low, min(low + _COMPARED, self.trained))
            cosines = vectors @ self.vectors.take(items).T
            nearest = cosines.argmax(axis=1)
            values = cosines[np.arange(len(vectors)), nearest]
            better = values > best
            best[better], found[better] = values[better], items[nearest[better]]
        return found

    def _put(self, record: ItemRecord, item: int | None, stand_in: int | None) -> Iterator[int]:
        """Note a record, at a new index where it comes with a stand-in; yields the indices that it touches."""
        if stand_in is not None:
            if item is not None:
                self._describe(item, None)
                self._removed.add(item)
                yield item
                self._moved.add(len(self))
            item = len(self)
            self._ids.append(record.id)
            self._stand_ins.append(stand_in)
            self._index[record.id] = item
        assert item is not None, "an item that is not known was prepared with a vector"
        self._describe(item, record)
        self._removed.discard(item)
        yield item

    def _describe(self, item: int, record: ItemRecord | None) -> None:
        """Let a record take the place of what was said of an index before; None: nothing is said of it."""
        # The titles of other items than these were in no answer yet, or will be in none again.
        shown = item < self.trained or (record is not None and item in self._records)
        title, categories = self.title(item) if shown else "", self.categories(item)
        before = self._records.pop(item, None)
        if record is not None:
            self._records[item] = record
        if shown:
            self.retitled += self.title(item) != title
        if (now := self.categories(item)) != categories:
            self._recategorise(item, set(categories), set(now))
        for name in before.attributes if before else ():
            self._columns[name][item] = np.nan
        for name, value in record.attributes.items() if record else ():
            self._column(name, item)[item] = value
        if record is not None and record.expires:
            self._expire(record.expires, item)

    def _recategorise(self, item: int, before: set[str], now: set[str]) -> None:
        trained = self._base.categories[item] if item < self.trained else ()
        for name in before ^ now:
            self._members.pop(name, None)
        for name in before - now:
            self._joined[name].discard(item)
            if name in trained:
                self._left[name].add(item)
        for name in now - before:
            self._left[name].discard(item)
            if name not in trained:
                self._joined[name].add(item)

    def _expire(self, when: int, item: int) -> None:
        """Look at an item again at a moment; what an item said before stays until there is too much of it."""
        heappush(self._expiring, (when, item))
        if len(self._expiring) > 2 * len(self._records) + SPARE:
            # Those that are due too: nobody may have looked since, and so they are not hidden yet.
            self._expiring = [(each.expires, i) for i, each in self._records.items() if each.expires]
            heapify(self._expiring)

    def _column(self, name: str, item: int) -> NDArray[np.float64]:
        """An attribute of the items up to this one, at least."""
        column = self._columns.get(name)
        if column is None or item >= len(column):
            more = np.full(len(self) + SPARE, np.nan)
            if column is not None:
                more[: len(column)] = column
            column = self._columns[name] = more
        return column

    def _publish(self, version: int, touched: Collection[int]) -> None:
        """Let searches see the catalogue as it is now."""
        now_s, before = self._clock(), self._offer.mask
        mask = np.ones(len(self), dtype=np.bool_)
        if before is not None:
            mask[: len(before)] = before
        for item in touched:
            record = self._records.get(item)
            mask[item] = item not in self._removed and (record is None or record.is_offered(now_s))
        self._offer = Offer(version, None if mask.all() else mask, self._boosts(touched))

    def _boosts(self, touched: Collection[int]) -> Bonus:
        """Those of the last offer, where these items' may have changed."""
        records = [(item, record) for item in sorted(set(touched)) if (record := self._records.get(item)) is not None]
        boosted = [(item, record.boost) for item, record in records if record.boost]
        items, amounts = self._offer.boosts
        if not boosted and not len(items):
            return NO_BONUS
        others = ~np.isin(items, np.fromiter(touched, np.int64, len(touched)))
        items = np.concatenate((items[others], np.array([item for item, _ in boosted], np.int64)))
        amounts = np.concatenate((amounts[others], np.array([amount for _, amount in boosted], np.float32)))
        order = items.argsort()
        return items[order], amounts[order]
