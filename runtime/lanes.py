"""Who goes next: the queue of waiting requests, without threads, event loop or clock.

One lane per (depth, length bucket), because one run of an engine has one depth and one padded length. Every entry has
a fixed urgency: its deadline, but never later than its arrival plus the patience. The lane that holds the most urgent
entry goes next, and within it the most urgent entries. Urgency never changes and what arrives later has a later one
in the end, so nothing starves, with or without a deadline, however long that deadline.

Clients share: a request goes before those of a client that has more waiting, as if each client were served in turn. So
one that floods waits behind itself, and the others hardly notice.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

Payload = TypeVar("Payload")

SHORTEST_BUCKET = 16

# (depth, upper end of the length bucket)
Cell = tuple[int, int]


class BatchCost(Protocol):
    """How large a batch may be: what ``cost.CostModel`` measures."""

    def largest(self, depth: int, length: int, time_s: float) -> int:
        """The most requests of this lane that one run surely (p99) ends within the time; 0 when not even one."""
        ...


@dataclass(slots=True, eq=False)
class Entry(Generic[Payload]):
    """One waiting request; ``length`` in items, times in seconds of one clock. Belongs to the Lanes it is pushed to.

    ``credit_s``: how much more urgent it is than its times say. ``runs``: as how many requests it counts, by its cost.
    """

    depth: int
    length: int
    arrival_s: float
    deadline_s: float | None
    payload: Payload
    client: str = ""
    credit_s: float = 0.0
    runs: int = 1
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Taken(Generic[Payload]):
    """The next batch (empty when nothing could make it), of entries with one depth and at most ``length`` items.

    ``late``: entries that are dropped, because even alone they would miss their deadline.
    """

    depth: int
    length: int
    batch: list[Entry[Payload]]
    late: list[Entry[Payload]]


@dataclass(slots=True, eq=False)
class _Lane(Generic[Payload]):
    """A heap of (urgency, order of arrival, entry); cancelled entries stay in it until they surface or outnumber."""

    heap: list[tuple[float, int, Entry[Payload]]]
    live: int = 0
    runs: int = 0

    def settle(self) -> None:
        """Remove cancelled entries from the top; afterwards the top, if any, is waiting."""
        while self.heap and not self.heap[0][2].waiting:
            heappop(self.heap)


def length_buckets(max_history: int, *, cached: bool = False) -> tuple[int, ...]:
    """Upper ends of the length buckets: 16, 32, 64, ... and the longest history itself.

    ``cached``: with a bucket 0 for histories of which next to nothing has to be computed.
    """
    ends = [0] if cached else []
    end = SHORTEST_BUCKET
    while end < max_history:
        ends.append(end)
        end *= 2
    return (*ends, max_history)


@dataclass(kw_only=True, eq=False)
class Lanes(Generic[Payload]):
    """The bounded queue. Not safe for use by several threads at once: its owner locks."""

    buckets: tuple[int, ...]
    max_queue: int
    max_batch: int
    max_batch_tokens: int
    patience_s: float

    def __post_init__(self) -> None:
        self._lanes: dict[Cell, _Lane[Payload]] = {}
        self._order = count()
        self._live = 0
        self._clients: dict[str, int] = {}

    def __len__(self) -> int:
        """Entries that wait."""
        return self._live

    def full(self, client: str = "") -> bool:
        """Whether no further entry of a client may wait: the queue is full, and the client has its part of it."""
        if self._live < self.max_queue:
            return False
        own = self._clients.get(client, 0)
        clients = len(self._clients) + (own == 0)
        return own >= self.max_queue // clients

    def lead(self, client: str) -> int:
        """How many more entries wait of the client that has most than of this one."""
        return max(self._clients.values(), default=0) - self._clients.get(client, 0)

    def share(self, client: str) -> float:
        """The part of what waits that goes before the next entry of a client, if each is served in turn."""
        turn = self._clients.get(client, 0) + 1
        if self.lead(client) <= 1:
            return 1.0
        return sum(min(waiting, turn) for waiting in self._clients.values()) / self._live

    def bucket(self, length: int) -> int:
        """The upper end of the bucket that a history of this length belongs to."""
        return self.buckets[bisect_left(self.buckets, length)]

    def batch_limit(self, length: int) -> int:
        """The most requests of one batch, padded to ``length``; at least one."""
        return max(1, min(self.max_batch, self.max_batch_tokens // max(1, length)))

    def urgency_s(self, arrival_s: float, deadline_s: float | None) -> float:
        """When an entry should be answered: what the order of service follows."""
        patient = arrival_s + self.patience_s
        return patient if deadline_s is None else min(deadline_s, patient)

    def push(self, entry: Entry[Payload]) -> None:
        """Add an entry to a queue that is not full."""
        assert not self.full(entry.client)
        key = (entry.depth, self.bucket(entry.length))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane([])
        entry.waiting = True
        urgency_s = self.urgency_s(entry.arrival_s, entry.deadline_s) - entry.credit_s
        heappush(lane.heap, (urgency_s, next(self._order), entry))
        lane.live += 1
        lane.runs += entry.runs
        self._live += 1
        self._clients[entry.client] = self._clients.get(entry.client, 0) + 1

    def cancel(self, entry: Entry[Payload]) -> bool:
        """Remove an entry; False when it no longer waits."""
        if not entry.waiting:
            return False
        entry.waiting = False
        key = (entry.depth, self.bucket(entry.length))
        lane = self._lanes[key]
        self._forget(lane, entry)
        if lane.live == 0:
            del self._lanes[key]
        elif len(lane.heap) > 2 * lane.live + 16:
            lane.heap = [item for item in lane.heap if item[2].waiting]
            heapify(lane.heap)
        return True

    def clear(self) -> list[Entry[Payload]]:
        """Remove and return everything that waits."""
        left = [item[2] for lane in self._lanes.values() for item in lane.heap if item[2].waiting]
        for entry in left:
            entry.waiting = False
        self._lanes.clear()
        self._clients.clear()
        self._live = 0
        return left

    def ahead(self, urgency_s: float) -> Iterator[tuple[int, int, int]]:
        """(depth, bucket, runs) of the lanes that go before a new entry of this urgency, counted whole."""
        for (depth, length), lane in self._lanes.items():
            lane.settle()
            if lane.heap[0][0] <= urgency_s:
                yield depth, length, lane.runs

    def take(self, now_s: float, cost: BatchCost) -> Taken[Payload] | None:
        """Remove and return what the engine should run now; None when nothing waits.

        Never empty-handed while anything that waits can still make its deadline. The batch is small enough for each
        of its entries to make its own.
        """
        late: list[Entry[Payload]] = []
        for key in list(self._lanes):
            self._drop_late(key, now_s, cost, late)
        if not self._lanes:
            return Taken(0, 0, [], late) if late else None
        depth, length = key = min(self._lanes, key=lambda key: self._lanes[key].heap[0][:2])
        return Taken(depth, length, self._fill(key, now_s, cost, late), late)

    def _drop_late(self, key: Cell, now_s: float, cost: BatchCost, late: list[Entry[Payload]]) -> None:
        """Remove from the top of a lane what can no longer make it: only a lane's first viable entry may rank it."""
        lane = self._lanes[key]
        while lane.live:
            lane.settle()
            entry = lane.heap[0][2]
            if entry.deadline_s is None or cost.largest(*key, entry.deadline_s - now_s) >= entry.runs:
                return
            late.append(self._pop(lane))
        del self._lanes[key]

    def _pop(self, lane: _Lane[Payload]) -> Entry[Payload]:
        """Remove the top of a settled lane."""
        entry = heappop(lane.heap)[2]
        entry.waiting = False
        self._forget(lane, entry)
        return entry

    def _forget(self, lane: _Lane[Payload], entry: Entry[Payload]) -> None:
        lane.live -= 1
        lane.runs -= entry.runs
        self._live -= 1
        self._clients[entry.client] -= 1
        if not self._clients[entry.client]:
            del self._clients[entry.client]

    def _fill(self, key: Cell, now_s: float, cost: BatchCost, late: list[Entry[Payload]]) -> list[Entry[Payload]]:
        """The batch of one lane; what can no longer make it goes to ``late``."""
        lane = self._lanes[key]
        limit = self.batch_limit(key[1])
        batch: list[Entry[Payload]] = []
        runs = 0
        while lane.live and runs < limit:
            lane.settle()
            entry = lane.heap[0][2]
            most = None if entry.deadline_s is None else cost.largest(*key, entry.deadline_s - now_s)
            if most is not None and most < entry.runs:
                late.append(self._pop(lane))
                continue
            allowed = limit if most is None else min(limit, most)
            if batch and runs + entry.runs > allowed:
                # It can make it, but not in company as large as this.
                break
            limit = allowed
            runs += entry.runs
            batch.append(self._pop(lane))
        if not lane.live:
            del self._lanes[key]
        return batch
