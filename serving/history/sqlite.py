"""Histories in one SQLite file."""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fathom.serving.history.contract import (
    PAIRS_AT_ONCE,
    SWEEP_AT_ONCE,
    Appended,
    HistoryFaults,
    HistoryStore,
    Pair,
    Retention,
    StoredEvent,
    digest_of,
)
from fathom.serving.sqlite_file import SqliteFile, columns_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL,
    event TEXT NOT NULL,
    item TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    type TEXT NOT NULL DEFAULT '',
    UNIQUE (user, event)
);
CREATE INDEX IF NOT EXISTS newest ON events (user, timestamp, arrival);
CREATE TABLE IF NOT EXISTS tombstones (user TEXT PRIMARY KEY, at INTEGER NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due ON tombstones (at);
CREATE TABLE IF NOT EXISTS pairs (
    change INTEGER PRIMARY KEY,
    bundle TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    count REAL NOT NULL,
    UNIQUE (bundle, source, target)
);
"""
_COLUMNS = {"arrival", "user", "event", "item", "timestamp", "type"}
# What a file of an older version lacks.
_ADD_TYPE = "ALTER TABLE events ADD COLUMN type TEXT NOT NULL DEFAULT ''"
# Only a sweep needs it.
_BY_AGE = "CREATE INDEX IF NOT EXISTS age ON events (timestamp)"
_READ = """
SELECT event, item, timestamp, type FROM events WHERE user = ? AND timestamp BETWEEN ? AND ?
ORDER BY timestamp DESC, arrival DESC LIMIT ?
"""
_INSERT = "INSERT OR IGNORE INTO events (user, event, item, timestamp, type) VALUES (?, ?, ?, ?, ?)"
# Events that are dated too far ahead, stored when the clock or the limit was another, go first.
_TRIM = """
DELETE FROM events WHERE user = ?1 AND arrival NOT IN
    (SELECT arrival FROM events WHERE user = ?1 ORDER BY timestamp > ?2, timestamp DESC, arrival DESC LIMIT ?3)
"""
_BURY = """
INSERT INTO tombstones VALUES (?, ?, ?)
ON CONFLICT (user) DO UPDATE SET at = excluded.at, last = max(last, excluded.last)
"""
_COUNT = """
INSERT INTO pairs VALUES (?, ?, ?, ?, ?)
ON CONFLICT (bundle, source, target) DO UPDATE SET count = count + excluded.count, change = excluded.change
"""
_COUNTED = """
SELECT source, target, count, change FROM pairs
WHERE bundle = ? AND change > ? AND typeof(count) = 'real' ORDER BY change LIMIT ?
"""
_SWEEP_PAIRS = "DELETE FROM pairs WHERE change IN (SELECT change FROM pairs WHERE change < ? LIMIT ?)"
_SWEEP_EVENTS = "DELETE FROM events WHERE arrival IN (SELECT arrival FROM events WHERE timestamp < ? LIMIT ?)"
_SWEEP_TOMBSTONES = "DELETE FROM tombstones WHERE user IN (SELECT user FROM tombstones WHERE at <= ? LIMIT ?)"


class _Append(NamedTuple):
    user_id: str
    events: Sequence[StoredEvent]
    done: "asyncio.Future[Appended]"


class SqliteHistory(SqliteFile, HistoryStore):
    """Histories in one SQLite file, shared by the workers of a server.

    A write is on the disk when it returns. Appends that come while one is being written are written together, by one
    thread; another thread reads beside it.
    """

    def __init__(self, path: Path, retention: Retention) -> None:
        self._retention = retention
        self._waiting: list[_Append] = []
        self._writing: asyncio.Task[None] | None = None
        self._faults = HistoryFaults()
        super().__init__(path, "histories", self._faults)

    def _prepare(self) -> None:
        self._write.executescript(_SCHEMA)
        with self._transaction():
            if "type" not in columns_of(self._write, "events"):
                self._write.execute(_ADD_TYPE)
        if self._retention.max_age_days is not None:
            self._write.execute(_BY_AGE)

    def _is_foreign(self, connection: sqlite3.Connection) -> bool:
        return columns_of(connection, "events") | {"type"} != _COLUMNS

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        self._retention.check(events)
        append = _Append(user_id, events, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return await append.done

    async def read(self, user_id: str) -> list[StoredEvent]:
        def newest() -> list[StoredEvent]:
            retention = self._retention
            window = user_id, retention.oldest, retention.latest, retention.max_events
            found = [StoredEvent(*row) for row in self._rows(_READ, window)]
            # SQLite would also store something else in these columns.
            events = [each for each in found if [*map(type, each)] == [str, str, int, str]]
            if len(events) < len(found):
                self._faults.foreign(self._path)
            return events[::-1]

        return await self._run(self._reader, newest)

    async def delete(self, user_id: str) -> int:
        def forget() -> int:
            now, latest = self._retention.now, self._retention.latest
            newest = "SELECT max(timestamp) FROM events WHERE user = ? AND timestamp <= ?"
            with self._transaction():
                (last,) = self._write.execute(newest, (user_id, latest)).fetchone()
                count = self._write.execute("DELETE FROM events WHERE user = ?", (user_id,)).rowcount
                self._write.execute(_BURY, (digest_of(user_id), now, max(now, last or 0)))
            if not self._empty_log():
                raise sqlite3.OperationalError("another process is reading what was deleted")
            return count

        return await self._run(self._writer, forget)

    async def count(self, bundle: str, pairs: Mapping[tuple[str, str], float]) -> None:
        def add() -> None:
            with self._transaction():
                (change,) = self._write.execute("SELECT coalesce(max(change), 0) FROM pairs").fetchone()
                for (source, target), count in pairs.items():
                    change = self._retention.next_change(change)
                    self._write.execute(_COUNT, (change, bundle, source, target, count))

        await self._run(self._writer, add)

    async def counted(self, bundle: str, since: int) -> list[Pair]:
        def changed() -> list[Pair]:
            return [Pair(*row) for row in self._rows(_COUNTED, (bundle, since, PAIRS_AT_ONCE))]

        return await self._run(self._reader, changed)

    async def sweep(self) -> int:
        retention = self._retention
        oldest, due = retention.oldest, retention.now - retention.tombstone_s
        events = 0
        if retention.max_age_days is not None:
            events = await self._sweep(_SWEEP_EVENTS, oldest)
            await self._sweep(_SWEEP_PAIRS, oldest * 1_000)
        if await self._sweep(_SWEEP_TOMBSTONES, due) or events:
            await self._run(self._writer, self._empty_log)
        return events

    async def _write_all(self) -> None:
        """Until none waits: all that wait, in one transaction."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                counts = await self._run(self._writer, lambda batch=batch: self._commit(batch))  # type: ignore[misc]
            except Exception as error:
                # Whatever it is: else these and all later appends would wait for ever.
                for append in batch:
                    if not append.done.done():
                        append.done.set_exception(error)
                continue
            for append, count in zip(batch, counts, strict=True):
                if not append.done.done():
                    append.done.set_result(count)
        self._writing = None

    def _commit(self, batch: Sequence[_Append]) -> list[Appended]:
        with self._transaction():
            return [self._add(user_id, events) for user_id, events, _ in batch]

    def _add(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        retention = self._retention
        oldest, latest = retention.oldest, retention.latest
        last = self._deleted_until(user_id)
        later = [each for each in events if each.timestamp > last]
        rows = [(user_id, *each) for each in later if each.timestamp >= oldest]
        if retention.max_age_days is not None:
            self._write.execute("DELETE FROM events WHERE user = ? AND timestamp < ?", (user_id, oldest))
        ahead = "SELECT 1 FROM events WHERE user = ? AND timestamp > ? LIMIT 1"
        if self._write.execute(ahead, (user_id, latest)).fetchone():
            # An id that only such an event has is free for a real one.
            free = "DELETE FROM events WHERE user = ? AND event = ? AND timestamp > ?"
            self._write.executemany(free, [(user_id, event, latest) for _, event, *_ in rows])
        (arrival,) = self._write.execute("SELECT coalesce(max(arrival), 0) FROM events").fetchone()
        new = added = self._write.executemany(_INSERT, rows).rowcount if rows else 0
        (held,) = self._write.execute("SELECT count(*) FROM events WHERE user = ?", (user_id,)).fetchone()
        if held > retention.max_events:
            self._write.execute(_TRIM, (user_id, latest, retention.max_events))
            kept = "SELECT count(*) FROM events WHERE user = ? AND arrival > ?"
            (added,) = self._write.execute(kept, (user_id, arrival)).fetchone()
        return Appended(
            added,
            known=len(rows) - new,
            too_old=len(later) - len(rows) + new - added,
            before_deletion=len(events) - len(later),
        )

    def _deleted_until(self, user_id: str) -> int:
        """Events up to this time are from before the user was deleted; -1 where that is unknown, or long ago."""
        alive = digest_of(user_id), self._retention.now - self._retention.tombstone_s
        row = self._write.execute("SELECT last FROM tombstones WHERE user = ? AND at > ?", alive).fetchone()
        return row[0] if row else -1

    async def _sweep(self, statement: str, before: int) -> int:
        """Run a deletion in small parts, so that appends get their turn between them; returns the number of rows."""
        removed = 0
        while True:
            count = await self._run(
                self._writer, lambda: self._write.execute(statement, (before, SWEEP_AT_ONCE)).rowcount
            )
            removed += count
            if count < SWEEP_AT_ONCE:
                return removed

    def _empty_log(self) -> bool:
        """Empty the log that deleted rows came through; in the file itself they are overwritten (secure_delete).

        False where another process is just reading it.
        """
        busy, *_ = self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
