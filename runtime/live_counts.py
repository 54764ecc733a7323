"""What a running server counts: what follows items that the bundle was not trained with, and what they follow."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import Indices
from fathom.runtime.manifest import CountingInfo

#: Items that are remembered beside one, in either direction; when there are twice as many, the rarest are forgotten.
MOST_PARTNERS = 512
#: Pairs that wait for their items.
MOST_UNKNOWN = 10_000

Partners = dict[int, float]


class _Row(NamedTuple):
    """Neighbours of an item: the items, their weights but for the events of added ones, and where those are found."""

    items: NDArray[np.int32]
    weights: NDArray[np.float64]
    factors: Indices


class LiveCounts:
    """Transitions in which at least one item was added since training; all others are those of the bundle.

    They weigh what the same events would in training by counting alone, without EASE (``CountingSettings`` in
    ``training/counting.py``).
    ``events``: int64 (n,), training events of the bundle's items. May be used from several threads.
    """

    def __init__(self, events: NDArray[np.int64], info: CountingInfo) -> None:
        self._trained = events
        self._info = info
        self._forward: defaultdict[int, Partners] = defaultdict(dict)
        self._reverse: defaultdict[int, Partners] = defaultdict(dict)
        self._added: dict[int, float] = {}
        # Made when they are asked for: most change more often than that.
        self._rows: dict[int, _Row] = {}
        self._changing = threading.Lock()
        # (events of an added item) ^ -target_power; the first stands for items of the bundle.
        self._factors = np.ones(1)

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return bool(self._forward)

    def put(self, pairs: Iterable[tuple[int, int, float]]) -> None:
        """State pairs of item indices: how often the second has followed the first so far, weight/lag each time.

        A pair of an item with itself states the weight of its events. Pairs of two trained items are left out.
        """
        trained = len(self._trained)
        with self._changing:
            for source, target, count in pairs:
                if max(source, target) < trained or not count > 0:
                    continue
                if source == target:
                    self._put_events(source, count)
                else:
                    _remember(self._forward[source], target, count)
                    _remember(self._reverse[target], source, count)
                    self._rows.pop(target, None)
                self._rows.pop(source, None)

    def move(self, old: int, new: int) -> None:
        """Let an added item have another index."""
        with self._changing:
            for partners, others in ((self._forward, self._reverse), (self._reverse, self._forward)):
                partners[new] = partners.pop(old, {})
                for item in partners[new]:
                    self._rows.pop(item, None)
                    if old in others[item]:
                        others[item][new] = others[item].pop(old)
            self._rows.pop(old, None)
            if old in self._added:
                self._put_events(new, self._added.pop(old))

    def neighbours(
        self, newest: NDArray[np.integer], ages: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], Indices] | None:
        """Neighbours here of some items, each weighed by its age: items (m,), repeats among them, and gains (m,).

        ``newest`` (c,): item indices, ``ages`` (at least c,). Third, whose neighbour each is, (m,), as a place in
        ``newest``. None where there are none.
        """
        found = [
            (place, row) for place, item in enumerate(newest.tolist()) if (row := self._known_row(item)) is not None
        ]
        if not found:
            return None
        places, rows = zip(*found, strict=True)
        items, weights, factors = map(np.concatenate, zip(*rows, strict=True))
        of = np.array(places, np.int64).repeat([len(row.items) for row in rows])
        return items, weights * self._factors.take(factors) * ages.take(of), of

    def _known_row(self, item: int) -> _Row | None:
        row = self._rows.get(item)
        if row is None and (item in self._forward or item in self._reverse):
            with self._changing:
                row = self._rows[item] = self._row(item)
        return row

    def _put_events(self, item: int, count: float) -> None:
        place = item - len(self._trained) + 1
        self._make_room(place)
        self._added[item] = count
        self._factors[place] = count**-self._info.target_power

    def _make_room(self, place: int) -> None:
        if place >= len(self._factors):
            # Another thread may be reading what is there.
            self._factors = np.concatenate((self._factors, np.ones(max(place, 64))))

    def _row(self, source: int) -> _Row:
        counts = dict(self._forward.get(source, {}))
        for item, count in self._reverse.get(source, {}).items() if self._info.backward else ():
            counts[item] = counts.get(item, 0.0) + self._info.backward * count
        items = np.fromiter(sorted(counts), np.int64, len(counts))
        trained = items < len(self._trained)
        weights = np.fromiter(map(counts.__getitem__, items.tolist()), np.float64, len(items))
        own = self._trained[source] if source < len(self._trained) else self._added.get(source, 1.0)
        weights *= (own or 1.0) ** -self._info.source_power
        events = self._trained[items[trained]]
        weights[trained] *= np.where(events > 0, events, 1.0) ** -self._info.target_power
        factors = np.where(trained, 0, items - len(self._trained) + 1)
        self._make_room(int(factors.max(initial=0)))
        if len(items) > self._info.neighbours:
            largest = np.argsort(-weights * self._factors[factors], kind="stable")[: self._info.neighbours]
            kept = np.sort(largest)
            items, weights, factors = items[kept], weights[kept], factors[kept]
        return _Row(items.astype(np.int32), weights, factors)


class LivePairs:
    """The same by the ids of items, in a catalogue that grows; ``find``: the index of an id, None while it has none."""

    def __init__(self, find: Callable[[str], int | None], counts: LiveCounts) -> None:
        self._find = find
        self._counts = counts
        self._places: dict[str, int] = {}
        self._unknown: dict[tuple[str, str], float] = {}

    def put(self, pairs: Iterable[tuple[str, str, float]]) -> None:
        """State pairs, as ``LiveCounts.put``; one whose items are not known yet waits for them."""
        known = []
        for source, target, count in pairs:
            one, other = self._place(source), self._place(target)
            if one is not None and other is not None:
                known.append((one, other, count))
            elif len(self._unknown) < MOST_UNKNOWN:
                self._unknown[source, target] = count
        self._counts.put(known)

    def refresh(self) -> None:
        """Follow the catalogue: items may have come, or have another index."""
        for item, place in self._places.items():
            if (now := self._find(item)) is not None and now != place:
                self._places[item] = now
                self._counts.move(place, now)
        waiting, self._unknown = self._unknown, {}
        self.put((*pair, count) for pair, count in waiting.items())

    def _place(self, item: str) -> int | None:
        place = self._places.get(item)
        if place is None and (place := self._find(item)) is not None:
            self._places[item] = place
        return place


def _remember(partners: Partners, item: int, count: float) -> None:
    partners[item] = count
    if len(partners) > 2 * MOST_PARTNERS:
        rarest = sorted(partners, key=partners.__getitem__)[:MOST_PARTNERS]
        for each in rarest:
            del partners[each]
