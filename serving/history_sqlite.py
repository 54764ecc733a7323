"""Histories in one SQLite file."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from fathom.errors import ConfigError, UnavailableError
from fathom.serving.history import Event, Retention

BUSY_MS = 5_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL,
    event TEXT NOT NULL,
    item TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    UNIQUE (user, event)
);
CREATE INDEX IF NOT EXISTS newest ON events (user, timestamp, arrival);
"""
_TRIM = """
DELETE FROM events WHERE user = ?1 AND (timestamp < ?2 OR arrival NOT IN
    (SELECT arrival FROM events WHERE user = ?1 ORDER BY timestamp DESC, arrival DESC LIMIT ?3))
"""

Result = TypeVar("Result")


class _Append(NamedTuple):
    user_id: str
    events: Sequence[Event]
    done: "asyncio.Future[int]"


class SqliteHistory:
    """Histories in one SQLite file, shared by the workers of a server.

    A write is on the disk when it returns. Appends that come while one is being written are written together, by one
    thread; another thread reads beside it.
    """

    def __init__(self, path: Path, retention: Retention) -> None:
        self._path = path
        self._retention = retention
        self._writer = ThreadPoolExecutor(1, "fathom-history-writer")
        self._reader = ThreadPoolExecutor(1, "fathom-history-reader")
        self._waiting: list[_Append] = []
        self._writing: asyncio.Task[None] | None = None
        try:
            self._write = self._connect()
            self._write.executescript(_SCHEMA)
            self._read = self._connect()
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot be used for histories: {error}") from None

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """See HistoryStore."""
        append = _Append(user_id, events, asyncio.get_running_loop().create_future())
        self._waiting.append(append)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return await append.done

    async def read(self, user_id: str) -> list[Event]:
        """See HistoryStore."""

        def newest() -> list[Event]:
            found = self._read.execute(
                "SELECT event, item, timestamp FROM events WHERE user = ? AND timestamp >= ?"
                " ORDER BY timestamp DESC, arrival DESC LIMIT ?",
                (user_id, self._retention.oldest, self._retention.max_events),
            )
            return [Event(*row) for row in found][::-1]

        return await self._run(self._reader, newest)

    async def delete(self, user_id: str) -> int:
        """See HistoryStore."""

        def forget() -> int:
            count = self._write.execute("DELETE FROM events WHERE user = ?", (user_id,)).rowcount
            # Deleted rows are overwritten in the file (secure_delete); this empties the log that they came through.
            busy, *_ = self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("another process is reading what was deleted")
            return count

        return await self._run(self._writer, forget)

    async def close(self) -> None:
        """See HistoryStore."""
        for pool, connection in ((self._writer, self._write), (self._reader, self._read)):
            pool.shutdown()
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    async def _write_all(self) -> None:
        """Until none waits: all that wait, in one transaction."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                counts = await self._run(self._writer, lambda batch=batch: self._commit(batch))  # type: ignore[misc]
            except UnavailableError as error:
                for append in batch:
                    if not append.done.done():
                        append.done.set_exception(error)
                continue
            for append, count in zip(batch, counts, strict=True):
                if not append.done.done():
                    append.done.set_result(count)
        self._writing = None

    def _commit(self, batch: Sequence[_Append]) -> list[int]:
        oldest, most = self._retention.oldest, self._retention.max_events
        counts = []
        self._write.execute("BEGIN IMMEDIATE")
        try:
            for user_id, events, _ in batch:
                rows = [(user_id, *event) for event in events]
                insert = "INSERT OR IGNORE INTO events (user, event, item, timestamp) VALUES (?, ?, ?, ?)"
                counts.append(self._write.executemany(insert, rows).rowcount)
                self._write.execute(_TRIM, (user_id, oldest, most))
            self._write.execute("COMMIT")
        except BaseException:
            self._write.execute("ROLLBACK")
            raise
        return counts

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except sqlite3.Error as error:
            raise UnavailableError(f"histories cannot be reached ({error}); send item_ids, or try again") from None
