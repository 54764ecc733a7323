"""Histories that end with the process, in a bounded part of its memory."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from sys import getsizeof

from fathom.serving.history.contract import (
    PAIRS_AT_ONCE,
    SWEEP_AT_ONCE,
    Appended,
    HistoryStore,
    Pair,
    Retention,
    StoredEvent,
    digest_of,
)

#: Bytes of an event besides its texts: the tuple, the timestamp, its place in a dictionary.
EVENT_BYTES = 248
#: Bytes of a user besides the id and the events.
USER_BYTES = 500
TOMBSTONE_BYTES = 400
PAIR_BYTES = 500
#: Pairs of items; the next one takes the place of the one that has not changed for longest.
MOST_PAIRS = 100_000

log = logging.getLogger("fathom.serving")


@dataclass(slots=True)
class _User:
    events: dict[str, StoredEvent] = field(default_factory=dict)
    nbytes: int = USER_BYTES


class MemoryHistory(HistoryStore):
    """Histories in memory; beyond ``memory_mb`` the least recently used ones are dropped."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._users: OrderedDict[str, _User] = OrderedDict()
        # By digest: when the user was deleted, and until when events are from before.
        self._tombstones: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._users_nbytes = 0
        # (bundle, item, one that followed it), in the order of their changes.
        self._pairs: OrderedDict[tuple[str, str, str], Pair] = OrderedDict()
        #: Users who were dropped to make room.
        self.evicted = 0

    def __len__(self) -> int:
        """Users who are known."""
        return len(self._users)

    @property
    def nbytes(self) -> int:
        """Memory in use, roughly."""
        return self._users_nbytes + len(self._tombstones) * TOMBSTONE_BYTES + len(self._pairs) * PAIR_BYTES

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        self._retention.check(events)
        last, oldest = self._deleted_until(user_id), self._retention.oldest
        later = [each for each in events if each.timestamp > last]
        recent = [each for each in later if each.timestamp >= oldest]
        known = {each.event_id: each for each in await self.read(user_id)}
        new: dict[str, StoredEvent] = {}
        for event in recent:
            if event.event_id not in known:
                new.setdefault(event.event_id, event)
        added = self._put(user_id, new) if new else 0
        return Appended(
            added,
            known=len(recent) - len(new),
            too_old=len(later) - len(recent) + len(new) - added,
            before_deletion=len(events) - len(later),
        )

    async def read(self, user_id: str) -> list[StoredEvent]:
        user = self._users.get(user_id)
        if user is None:
            return []
        self._users.move_to_end(user_id)
        oldest, latest = self._retention.oldest, self._retention.latest
        return [each for each in user.events.values() if oldest <= each.timestamp <= latest]

    async def delete(self, user_id: str) -> int:
        now, digest = self._retention.now, digest_of(user_id)
        newest = max((each.timestamp for each in await self.read(user_id)), default=now)
        last = max(now, newest, self._deleted_until(user_id))
        events = self._users[user_id].events if user_id in self._users else {}
        self._drop(user_id)
        self._tombstones.pop(digest, None)
        self._tombstones[digest] = now, last
        self._make_room()
        return len(events)

    async def count(self, bundle: str, pairs: Mapping[tuple[str, str], float]) -> None:
        change = next(reversed(self._pairs.values())).change if self._pairs else 0
        for (source, target), count in pairs.items():
            change = self._retention.next_change(change)
            before = self._pairs.pop((bundle, source, target), None)
            self._pairs[bundle, source, target] = Pair(source, target, count + (before.total if before else 0), change)
        while len(self._pairs) > MOST_PAIRS:
            self._pairs.popitem(last=False)
        self._make_room()

    async def counted(self, bundle: str, since: int) -> list[Pair]:
        changed = takewhile(lambda each: each[1].change > since, reversed(self._pairs.items()))
        return [pair for (of, _, _), pair in changed if of == bundle][: -PAIRS_AT_ONCE - 1 : -1]

    async def sweep(self) -> int:
        due = self._retention.now - self._retention.tombstone_s
        # They are in the order of their age.
        while self._tombstones and next(iter(self._tombstones.values()))[0] <= due:
            self._tombstones.popitem(last=False)
        oldest, removed, users = self._retention.oldest, 0, iter(list(self._users))
        while self._pairs and next(iter(self._pairs.values())).change < oldest * 1_000:
            self._pairs.popitem(last=False)
        while some := list(islice(users, SWEEP_AT_ONCE)):
            for user_id in some:
                user = self._users.get(user_id)
                # Events are in the order of their times.
                if user is not None and next(iter(user.events.values())).timestamp < oldest:
                    before = len(user.events)
                    self._keep(user_id, user, user.events.values())
                    removed += before - len(user.events)
            await asyncio.sleep(0)
        return removed

    async def close(self) -> None:
        pass

    def _deleted_until(self, user_id: str) -> int:
        at, last = self._tombstones.get(digest_of(user_id), (0, -1))
        return last if self._retention.now < at + self._retention.tombstone_s else -1

    def _put(self, user_id: str, new: dict[str, StoredEvent]) -> int:
        """Add new events; returns how many of them are kept."""
        user = self._users.setdefault(user_id, _User())
        if user.nbytes == USER_BYTES:
            user.nbytes += getsizeof(user_id)
            self._users_nbytes += user.nbytes
        # A hidden event, too old or dated too far ahead, makes room for a new one of its id.
        held = [each for each in user.events.values() if each.event_id not in new]
        self._keep(user_id, user, [*held, *new.values()])
        self._make_room()
        return sum(each in user.events for each in new)

    def _keep(self, user_id: str, user: _User, events: Iterable[StoredEvent]) -> None:
        kept = {each.event_id: each for each in self._retention.trim(events)}
        if not kept:
            user.events = kept
            self._drop(user_id)
            return
        gone = sum(_size(each) for each in user.events.values() if kept.get(each.event_id) is not each)
        come = sum(_size(each) for each in kept.values() if user.events.get(each.event_id) is not each)
        user.nbytes += come - gone
        self._users_nbytes += come - gone
        user.events = kept

    def _drop(self, user_id: str) -> None:
        if (user := self._users.pop(user_id, None)) is not None:
            self._users_nbytes -= user.nbytes

    def _make_room(self) -> None:
        most = self._retention.memory_mb * 2**20
        # Never the last: it is the one that was just used.
        while self.nbytes > most and len(self._users) > 1:
            if not self.evicted:
                log.warning(
                    "histories take %d MB of memory, the most that history_memory_mb allows; from now on those of the"
                    " least recently seen users are dropped (sqlite:PATH keeps all)",
                    self._retention.memory_mb,
                )
            self.evicted += 1
            self._drop(next(iter(self._users)))
        while self.nbytes > most and self._tombstones:
            self._tombstones.popitem(last=False)
        while self.nbytes > most and self._pairs:
            self._pairs.popitem(last=False)


def _size(event: StoredEvent) -> int:
    kind = getsizeof(event.type) if event.type else 0  # All empty texts are one.
    return EVENT_BYTES + getsizeof(event.event_id) + getsizeof(event.item_id) + kind
