"""What the server remembers of users: their events, for requests that bring a ``user_id`` and no history.

Beside them it remembers sums of pairs of items, which say how often one followed the other, and of whom nothing.

A user's history is ordered by time, then by arrival. An event id that it already holds is ignored, so an append may be
sent again. Only the newest ``max_events`` are kept, and none that is older than ``max_age_days``. Times too far ahead
of the clock are refused: they would push real events out. Deleting a user leaves a tombstone, so that a late retry
does not bring the user back.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fathom.errors import InvalidRequestError, UnavailableError
from fathom.serving.faults import Faults
from fathom.serving.limits import echo

SECONDS_A_DAY = 86_400
#: Events, or users, that a sweep looks at before it lets others work.
SWEEP_AT_ONCE = 1_000
#: Pairs of items that one call returns at most.
PAIRS_AT_ONCE = 1_000


class StoredEvent(NamedTuple):
    """One thing that a user did; ``timestamp``: seconds since 1970. ``type``: what it was, as "view"; may be empty."""

    event_id: str
    item_id: str
    timestamp: int
    type: str = ""


class Pair(NamedTuple):
    """How often an item has followed another, weight/lag each time; of an item and itself: its events.

    ``change``: larger than that of every pair that was changed before.
    """

    source: str
    target: str
    total: float
    change: int


class Appended(NamedTuple):
    """What became of the events of an append; each is counted once.

    ``added``: new, and in the history now. ``known``: the history held that id. ``too_old``: older than the retention
    or than the newest ``max_events``. ``before_deletion``: the user was deleted later.
    """

    added: int = 0
    known: int = 0
    too_old: int = 0
    before_deletion: int = 0

    def __add__(self, other: object) -> "Appended":
        if not isinstance(other, Appended):
            return NotImplemented
        return Appended(*(one + another for one, another in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Retention:
    """How much is kept of a user, and for how long.

    ``max_age_days`` None: however old. ``max_ahead_s``: how far ahead of the clock an event may be dated.
    ``tombstone_days``: for how long a deleted user's late events are recognised. ``memory_mb``: bound of the store in
    memory. ``clock``: seconds since 1970.
    """

    max_events: int = 1_000
    max_age_days: int | None = None
    max_ahead_s: int = SECONDS_A_DAY
    tombstone_days: int = 7
    memory_mb: int = 256
    clock: Callable[[], float] = time.time

    @property
    def now(self) -> int:
        """Seconds since 1970."""
        return int(self.clock())

    @property
    def oldest(self) -> int:
        """The least timestamp that is kept now."""
        return 0 if self.max_age_days is None else self.now - self.max_age_days * SECONDS_A_DAY

    def next_change(self, last: int) -> int:
        """A number for a pair's change: above ``last``, and above those of pairs that have been swept since."""
        return max(last + 1, int(self.clock() * 1_000))

    @property
    def latest(self) -> int:
        """The greatest timestamp that is accepted now."""
        return self.now + self.max_ahead_s

    @property
    def tombstone_s(self) -> int:
        """Seconds for which a deletion is remembered."""
        return self.tombstone_days * SECONDS_A_DAY

    def check(self, events: Iterable[StoredEvent]) -> None:
        """Raise InvalidRequestError for the first event that is dated too far ahead."""
        latest = self.latest
        for event in events:
            if event.timestamp > latest:
                raise InvalidRequestError(
                    f"event {echo(event.event_id)} is dated {event.timestamp}, more than"
                    f" {self.max_ahead_s} s ahead of the server's clock; send the time at which it happened"
                )

    def trim(self, events: Iterable[StoredEvent]) -> list[StoredEvent]:
        """Those of a user's events (in the order of arrival) that are kept, in the order of the history.

        Events that are dated too far ahead, stored when the clock or the limit was another, are the first to go.
        """
        oldest, latest = self.oldest, self.latest
        # Sorting is stable, so equal times stay in the order of their arrival.
        recent = sorted((each for each in events if each.timestamp >= oldest), key=lambda each: each.timestamp)
        due = [each for each in recent if each.timestamp <= latest]
        ahead, due = recent[len(due) :], due[-self.max_events :]
        return due + ahead[len(ahead) - min(len(ahead), self.max_events - len(due)) :]


class HistoryStore(Protocol):
    """Histories of users; used from one event loop.

    All but ``close`` raise UnavailableError when the store cannot be reached, and OverloadError when it is full. What
    ``append`` and ``delete`` have returned is durable, as far as the store keeps anything at all.
    """

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        """Add events; raises InvalidRequestError for one that is dated too far ahead, and then adds none."""

    async def read(self, user_id: str) -> list[StoredEvent]:
        """What is kept of a user, oldest first; empty for one who is not known."""

    async def delete(self, user_id: str) -> int:
        """Forget everything of a user; returns how many events that were.

        For ``tombstone_days``, events that are dated no later than the deletion, or than the user's newest event, are
        ignored.
        """

    async def count(self, bundle: str, pairs: Mapping[tuple[str, str], float]) -> None:
        """Add to what is counted of pairs of items (one, and what followed it) for a bundle."""

    async def counted(self, bundle: str, since: int) -> list[Pair]:
        """Pairs that have changed after the change ``since``, with their sums, in the order of their changes.

        At most PAIRS_AT_ONCE; ask again since the last one's change.
        """

    async def sweep(self) -> int:
        """Remove events older than the retention and tombstones that are due; returns the number of events.

        Pairs that have not changed for as long go too.
        """

    async def close(self) -> None:
        """Give back files and connections."""


def digest_of(user_id: str) -> str:
    """Stands for a user where the id itself must not stay; 32 hexadecimal digits."""
    return hashlib.blake2b(user_id.encode(), digest_size=16, person=b"fathom-user").hexdigest()


class HistoryFaults(Faults):
    """Those of a store of histories."""

    def __init__(self) -> None:
        super().__init__("history store", "send item_ids, or try again")

    def foreign_history(self, where: str) -> UnavailableError:
        """Something that Fathom has not written lies in the place of a history."""
        self._log.warning("%s is not what Fathom writes; deleting the user (DeleteUser) removes it", where)
        return UnavailableError("what is stored for this user is not a history; delete the user, or send item_ids")
