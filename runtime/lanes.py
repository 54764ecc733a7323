"""Who goes next: the queue of waiting requests, without threads, event loop or clock.

One lane per (depth, length bucket), because one run of an engine has one padded length, and one depth is cheapest.
Where the engine ``mixes`` depths, the room that a batch has left goes to other depths of the same length, since joining
costs less than a run of their own: to whoever would be next, and so that it no more than doubles the run.

Every entry has a fixed urgency: its deadline, but never later than its arrival plus the patience. Of one client the
lane that holds the most urgent entry goes next, and within it the most urgent entries. Urgency never changes and what
arrives later has a later one in the end, so nothing starves, with or without a deadline, however long that deadline.

Between clients the work decides that each has had (see ``shares``), and urgency where that is equal. So one that floods
waits behind itself, and the others hardly notice: they wait for the batch that runs, and not for the next.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, Protocol

from fathom.runtime.lane import Entry, Lane, Payload, Ranked
from fathom.runtime.shares import ANYBODY, Client, Shares

#: A batch is no larger than what takes so long, for nothing can interrupt it; a single request may take longer.
LONGEST_RUN_S = 0.03

# (depth, upper end of the length bucket)
Cell = tuple[int, int]
#: As how many requests of each depth a run counts.
ByDepth = Mapping[int, int]
NOBODY: ByDepth = {}


class BatchCost(Protocol):
    """How large a batch may be: what ``cost.CostModel`` measures."""

    def largest(self, depth: int, length: int, time_s: float, *, sure: bool = False, beside: ByDepth = NOBODY) -> int:
        """The most requests of this lane that one run surely (p99) ends within the time; 0 when not even one.

        One, if that is likely enough to be tried, unless it must be ``sure``. ``beside``: what the run has of other
        depths.
        """
        ...

    def each_s(self, depth: int, length: int) -> float:
        """Median seconds that one request more of this lane adds to a run, as the machine is now."""
        ...

    def p50_s(self, length: int, requests: ByDepth) -> float:
        """Median seconds of one run, as the machine is now."""
        ...


@dataclass(frozen=True, slots=True)
class Taken(Generic[Payload]):
    """The next batch (empty when nothing could make it), of entries with at most ``length`` items.

    ``late``: entries that are dropped, because even alone they would miss their deadline.
    """

    length: int
    batch: list[Entry[Payload]]
    late: list[Entry[Payload]]

    @property
    def by_depth(self) -> ByDepth:
        """As how many requests of each depth the batch counts."""
        return _by_depth(self.batch)


@dataclass(kw_only=True, eq=False)
class Lanes(Generic[Payload]):
    """The bounded queue. Not safe for use by several threads at once: its owner locks.

    ``mixes``: whether a batch may have several depths.
    """

    buckets: tuple[int, ...]
    max_queue: int
    max_batch: int
    max_batch_tokens: int
    patience_s: float
    mixes: bool = False

    def __post_init__(self) -> None:
        self._lanes: dict[Cell, Lane[Payload]] = {}
        # Those in which nothing waits now.
        self._empty: dict[Cell, Lane[Payload]] = {}
        self._order = count()
        self._shares = Shares()

    def __len__(self) -> int:
        """Entries that wait."""
        return self._shares.all.waiting

    @property
    def work_s(self) -> float:
        """Seconds of work that wait, as the entries say."""
        return self._shares.all.work_s

    def full(self, client: Client = ANYBODY) -> bool:
        """Whether no further entry of a client may wait: the queue is full, and the client has its part of it."""
        return len(self) >= self.max_queue and self._shares.has_its_part(client, self.max_queue)

    def share(self, client: Client = ANYBODY, work_s: float = 0.0) -> float:
        """The part of the work that waits which is done before the next entry of a client, of ``work_s``; about."""
        everything_s = self._shares.all.work_s
        return min(1.0, self._shares.before_s(client, work_s) / everything_s) if everything_s else 1.0

    def bucket(self, length: int) -> int:
        """The upper end of the bucket that a history of this length belongs to."""
        return self.buckets[bisect_left(self.buckets, length)]

    def batch_limit(self, length: int) -> int:
        """The most requests of one batch, padded to ``length``; at least one."""
        return max(1, min(self.max_batch, self.max_batch_tokens // max(1, length)))

    def run_limit(self, length: int, each_s: float) -> int:
        """The same, and no more than take LONGEST_RUN_S where one more takes ``each_s``; at least one."""
        return max(1, min(self.batch_limit(length), int(LONGEST_RUN_S / each_s)))

    def urgency_s(self, arrival_s: float, deadline_s: float | None) -> float:
        """When an entry should be answered: what the order of a client's entries follows."""
        patient = arrival_s + self.patience_s
        return patient if deadline_s is None else min(deadline_s, patient)

    def push(self, entry: Entry[Payload]) -> None:
        """Add an entry to a queue that is not full."""
        key = (entry.depth, self.bucket(entry.length))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._empty.pop(key) if key in self._empty else Lane(self._shares.all)
        entry.waiting = True
        entry.share = share = self._shares.of(entry.client)
        share.enter(entry.work_s)
        lane.push(share, (self.urgency_s(entry.arrival_s, entry.deadline_s), next(self._order), entry))

    def cancel(self, entry: Entry[Payload], now_s: float = -math.inf) -> bool:
        """Remove an entry; False when it no longer waits.

        Unless its deadline has passed, its client pays for it, up to the patience: else who asks and cancels could keep
        the server busy for nothing.
        """
        if not entry.waiting:
            return False
        assert entry.share is not None
        if entry.deadline_s is None or now_s < entry.deadline_s:
            entry.share.pay(entry.work_s, self.patience_s)
        key = (entry.depth, self.bucket(entry.length))
        self._remove(key, self._lanes[key], entry)
        return True

    def clear(self) -> list[Entry[Payload]]:
        """Remove and return everything that waits."""
        left = [ranked[2] for lane in self._lanes.values() for ranked in sorted(lane.ranked())]
        for entry in left:
            entry.waiting = False
        self._lanes.clear()
        self._empty.clear()
        self._shares = Shares()
        return left

    def ahead(self, urgency_s: float, client: Client = ANYBODY) -> Iterator[tuple[int, int, int]]:
        """(depth, bucket, runs), whole, of the lanes of which ``share`` goes before a new entry of this urgency.

        All but those in which the client itself has the next turn, and nothing as urgent.
        """
        own = self._shares.find(client)
        for (depth, length), lane in self._lanes.items():
            first = lane.first()
            if first[0] <= urgency_s or first[2].share is not own:
                yield depth, length, lane.runs

    def take(self, now_s: float, cost: BatchCost) -> Taken[Payload] | None:
        """Remove and return what the engine should run now; None when nothing waits.

        Never empty-handed while anything that waits can still make its deadline. The batch is small enough for each
        of its entries to make its own.
        """
        late: list[Entry[Payload]] = []
        tops: list[tuple[Ranked[Payload], Cell]] = []
        for key, lane in list(self._lanes.items()):
            first = self._first_in_time(key, lane, now_s, cost, late)
            if first is not None:
                tops.append((first, key))
        if not tops:
            return Taken(0, [], late) if late else None
        _, length = key = _next(tops)
        batch = self._fill(key, now_s, cost, late)
        if self.mixes and batch and length:
            within_s = min(LONGEST_RUN_S, 2 * cost.p50_s(length, _by_depth(batch)))
            while tops := [(self._lanes[other].first(), other) for _, other in tops if other != key]:
                key = _next(tops)
                if key[1] != length:
                    break
                batch += self._fill(key, now_s, cost, late, batch, within_s)
        return Taken(length, batch, late)

    def _first_in_time(
        self, key: Cell, lane: Lane[Payload], now_s: float, cost: BatchCost, late: list[Entry[Payload]]
    ) -> Ranked[Payload] | None:
        """Who goes next in a lane; whoever cannot make it any more is moved to ``late``."""
        while lane.live:
            first = lane.first()
            entry = first[2]
            if entry.deadline_s is None or cost.largest(*key, entry.deadline_s - now_s, sure=entry.sure) >= entry.runs:
                return first
            late.append(self._remove(key, lane, entry))
        return None

    def _remove(self, key: Cell, lane: Lane[Payload], entry: Entry[Payload]) -> Entry[Payload]:
        assert entry.share is not None
        entry.share.leave(entry.work_s)
        self._take_out(key, lane, entry)
        return entry

    def _take_out(self, key: Cell, lane: Lane[Payload], entry: Entry[Payload]) -> None:
        lane.remove(entry)
        if not lane.live:
            self._empty[key] = self._lanes.pop(key)

    def _fill(
        self,
        key: Cell,
        now_s: float,
        cost: BatchCost,
        late: list[Entry[Payload]],
        others: Sequence[Entry[Payload]] = (),
        within_s: float = math.inf,
    ) -> list[Entry[Payload]]:
        """The part of a batch that one lane gives; what can no longer make it goes to ``late``.

        ``others``: what is in the batch already, of other depths, which this lane joins so that all end ``within_s``.
        """
        lane, joins, beside = self._lanes[key], bool(others), _by_depth(others)
        # What an entry pays was estimated when it came; since then the machine may have become slower.
        limit = self._room(key, others, now_s, cost, within_s) if joins else self.run_limit(key[1], cost.each_s(*key))
        batch: list[Entry[Payload]] = []
        runs, work_s = 0, sum(entry.work_s for entry in others)
        heap = lane.in_turn()
        alone = not heap.places
        while runs < limit and (first := heap.first()) is not None:
            entry = first[2]
            if (batch or joins) and work_s + entry.work_s > LONGEST_RUN_S:
                break
            most = None
            if entry.deadline_s is not None:
                most = cost.largest(*key, entry.deadline_s - now_s, sure=entry.sure, beside=beside)
            if most is not None and most < entry.runs and not joins:
                late.append(self._remove(key, lane, entry))
                continue
            allowed = limit if most is None else min(limit, most)
            if (batch or joins) and runs + entry.runs > allowed:
                # It can make it, but not in company as large as this.
                break
            limit = allowed
            runs += entry.runs
            work_s += entry.work_s
            batch.append(entry)
            if not alone:
                _serve([entry])
            self._take_out(key, lane, entry)
        if alone and batch:
            _serve(batch)
        return batch

    def _room(self, key: Cell, others: Sequence[Entry[Payload]], now_s: float, cost: BatchCost, within_s: float) -> int:
        """How many of a lane may join the others of a batch, none of which may become late by it."""
        depth, length = key
        beside = _by_depth(others)
        left_s = within_s - cost.p50_s(length, {depth: 0, **beside})
        room = min(self.batch_limit(length) - sum(beside.values()), int(left_s / cost.each_s(depth, length)))
        by_s = min((entry.deadline_s for entry in others if entry.deadline_s is not None), default=None)
        if by_s is None:
            return room
        return min(room, cost.largest(depth, length, by_s - now_s, sure=True, beside=beside))


def _by_depth(entries: Iterable[Entry[Payload]]) -> ByDepth:
    counts: Counter[int] = Counter()
    for entry in entries:
        counts[entry.depth] += entry.runs
    return counts


def _serve(entries: list[Entry[Payload]]) -> None:
    """They are one client's, and it is their turn."""
    share = entries[0].share
    assert share is not None
    share.serve(sum(entry.work_s for entry in entries), len(entries))


def _next(tops: list[tuple[Ranked[Payload], Cell]]) -> Cell:
    """Of several lanes the one that goes next, by who goes next in each: level by level, as within a lane."""
    if len({entry.share for (*_, entry), _ in tops}) == 1:
        return min(tops)[1]
    paths = [(entry.share.path(), rank) for rank in tops if (entry := rank[0][2]).share]
    for level in range(len(Client._fields)):
        best, _ = min(paths, key=lambda each: (each[0][level].turn(each[1][0][2].work_s), each[1][0]))
        paths = [each for each in paths if each[0][level] is best[level]]
    return min(top for _, top in paths)[1]
