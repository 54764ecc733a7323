"""One lane of the queue: who goes next in it, by share, then urgency."""

from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from fathom.runtime.shares import ANYBODY, Client, Share

Payload = TypeVar("Payload")

#: What a lane keeps of clients and entries that are gone before that is worth clearing away.
FEW = 64


@dataclass(slots=True, eq=False)
class Entry(Generic[Payload]):
    """One waiting request; ``length`` in items, times in seconds of one clock. Belongs to the Lanes it is pushed to.

    ``runs``: as how many requests it counts, by its cost. ``work_s``: the engine's time that its client pays for it.
    ``sure``: it is dropped where it may be late, since there is another answer for it.
    """

    depth: int
    length: int
    arrival_s: float
    deadline_s: float | None
    payload: Payload
    client: Client = ANYBODY
    runs: int = 1
    work_s: float = 0.0
    sure: bool = False
    share: Share | None = None
    waiting: bool = False


class _Heap(Generic[Payload]):
    """What waits in one lane of one share: a client's entries by urgency, or the shares below by turn, then urgency.

    Of a share below, only the item that is its ``place`` counts. It may be too early (the share has been served, or its
    first entry is gone); that shows when it surfaces. Cancelled entries stay until they surface, or are cleared away.
    """

    __slots__ = ("above", "entries", "place", "places", "share")

    def __init__(self, share: Share, above: "_Heap[Payload] | None") -> None:
        self.share = share
        self.above = above
        self.entries: list[Ranked[Payload]] = []
        self.places: list[_Place[Payload]] = []
        self.place: _Place[Payload] | None = None

    def first(self) -> "Ranked[Payload] | None":
        """Who goes next, if anybody waits; afterwards it is at the top all the way down."""
        places = self.places
        while places:
            place = places[0]
            below = place[3]
            if below.place is not place:
                heappop(places)
                continue
            found = below.first()
            if found is None:
                below.place = None
                heappop(places)
                continue
            if len(places) == 1:
                return found
            turn = below.share.turn(found[2].work_s)
            if found[1] == place[2] and turn == place[0]:
                return found
            below.place = (turn, found[0], found[1], below)
            heapreplace(places, below.place)
        entries = self.entries
        while entries and not entries[0][2].waiting:
            heappop(entries)
        return entries[0] if entries else None

    def __lt__(self, _: object) -> bool:
        # Of two places that are alike only one counts.
        return False


# Urgency, order of arrival (unlike for any two), entry.
Ranked = tuple[float, int, Entry[Payload]]
# Turn, urgency and order of arrival of a share's first entry.
_Place = tuple[float, float, int, _Heap[Payload]]


class Lane(Generic[Payload]):
    """The entries of one lane: ``live`` of them, which count as ``runs``."""

    __slots__ = ("_all", "_heaps", "_stale", "live", "runs")

    def __init__(self, everybody: Share) -> None:
        self._all: _Heap[Payload] = _Heap(everybody, None)
        self._heaps = {everybody: self._all}
        self._stale = 0
        self.live = 0
        self.runs = 0

    def push(self, share: Share, ranked: Ranked[Payload]) -> None:
        """Add an entry of this share."""
        if self._stale > 4 * self.live + FEW:
            self._tidy()
        self.live += 1
        self.runs += ranked[2].runs
        self._place(share, ranked)

    def _place(self, share: Share, ranked: Ranked[Payload]) -> None:
        heap = self._heaps.get(share) or self._heap(share)
        heappush(heap.entries, ranked)
        urgency_s, order, entry = ranked
        while (above := heap.above) is not None:
            place = (heap.share.turn(entry.work_s), urgency_s, order, heap)
            if heap.place is not None and heap.place < place:
                return
            heap.place = place
            heappush(above.places, place)
            heap = above

    def _heap(self, share: Share) -> _Heap[Payload]:
        assert share.parent is not None
        above = self._heaps.get(share.parent) or self._heap(share.parent)
        heap = self._heaps[share] = _Heap(share, above)
        self._stale += 1
        return heap

    def first(self) -> Ranked[Payload]:
        """Who goes next, of a lane in which anybody waits."""
        found = self._all.first()
        assert found is not None
        return found

    def in_turn(self) -> _Heap[Payload]:
        """Where who goes next is first; after ``first``. A client's own, if nobody else has anything in this lane."""
        heap = self._all
        while len(heap.places) == 1:
            heap = heap.places[0][3]
        return self._all if heap.places else heap

    def remove(self, entry: Entry[Payload]) -> None:
        """It does not wait any more."""
        entry.waiting = False
        self.live -= 1
        self.runs -= entry.runs
        self._stale += 1

    def ranked(self) -> list[Ranked[Payload]]:
        """All that wait."""
        return [each for heap in self._heaps.values() for each in heap.entries if each[2].waiting]

    def _tidy(self) -> None:
        left, everybody = self.ranked(), self._all.share
        self._all = _Heap(everybody, None)
        self._heaps = {everybody: self._all}
        for each in left:
            assert each[2].share is not None
            self._place(each[2].share, each)
        self._stale = 0
