"""What the server remembers of users: their events, for requests that bring a ``user_id`` and no history.

A user's history is ordered by time, then by arrival. An event id that a user's history already holds is ignored, so an
append may be sent again. Only the newest ``max_events`` are kept, and none that is older than ``max_age_days``.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fathom.errors import ConfigError

SECONDS_A_DAY = 86_400


class Event(NamedTuple):
    """One thing that a user did; ``timestamp``: seconds since 1970."""

    event_id: str
    item_id: str
    timestamp: int


@dataclass(frozen=True)
class Retention:
    """How much is kept of a user; ``max_age_days`` None: however old."""

    max_events: int = 1_000
    max_age_days: int | None = None

    @property
    def oldest(self) -> int:
        """The least timestamp that is kept now."""
        return 0 if self.max_age_days is None else int(time.time()) - self.max_age_days * SECONDS_A_DAY


class HistoryStore(Protocol):
    """Histories of users; used from one event loop. All but ``close`` raise UnavailableError when it cannot be reached.

    What ``append`` and ``delete`` have returned is durable, as far as the store keeps anything at all.
    """

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """Add events; returns how many of them were new."""

    async def read(self, user_id: str) -> list[Event]:
        """What is kept of a user, oldest first; empty for one who is not known."""

    async def delete(self, user_id: str) -> int:
        """Forget everything of a user; returns how many events that were."""

    async def close(self) -> None:
        """Give back files and connections."""


def open_history(setting: str, retention: Retention) -> HistoryStore | None:
    """The store that ``off``, ``memory``, ``sqlite:PATH`` or a redis URL names.

    Raises ConfigError for anything else and where it cannot be opened, MissingExtraError without a client for Redis.
    """
    kind, _, rest = setting.partition(":")
    if setting == "off":
        return None
    if setting == "memory":
        return MemoryHistory(retention)
    if kind == "sqlite" and rest:
        from fathom.serving.history_sqlite import SqliteHistory

        return SqliteHistory(Path(rest), retention)
    if kind in ("redis", "rediss", "unix") and rest.startswith("//"):
        from fathom.serving.history_redis import RedisHistory

        return RedisHistory(setting, retention)
    # Not the setting itself: it may hold a password.
    raise ConfigError(f"history: {kind!r} is not possible; one of off, memory, sqlite:PATH, redis://HOST:PORT/DB")


class MemoryHistory:
    """Histories that end with the process."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._users: dict[str, dict[str, Event]] = {}

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """See HistoryStore."""
        known = self._users.setdefault(user_id, {})
        before = len(known)
        for event in events:
            known.setdefault(event.event_id, event)
        added = len(known) - before
        kept = self._kept(known)
        if kept:
            self._users[user_id] = {event.event_id: event for event in kept}
        else:
            del self._users[user_id]
        return added

    async def read(self, user_id: str) -> list[Event]:
        """See HistoryStore."""
        return self._kept(self._users.get(user_id, {}))

    async def delete(self, user_id: str) -> int:
        """See HistoryStore."""
        return len(self._users.pop(user_id, {}))

    async def close(self) -> None:
        """See HistoryStore."""

    def _kept(self, known: dict[str, Event]) -> list[Event]:
        # Sorting is stable, so equal times stay in the order of their arrival.
        oldest = self._retention.oldest
        recent = sorted((each for each in known.values() if each.timestamp >= oldest), key=lambda each: each.timestamp)
        return recent[-self._retention.max_events :]
