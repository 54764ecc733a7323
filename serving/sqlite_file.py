"""What the stores in SQLite files have in common: connections, transactions, and what can go wrong with a file."""

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fathom.errors import ConfigError
from fathom.serving.faults import Faults

#: How long a statement waits for others of the file, and how long between two attempts where SQLite does not wait.
BUSY_MS, AGAIN_S = 5_000, 0.01
#: What SQLite says where the disk, a quota or a limit on the file's size lets it write no more.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

Result = TypeVar("Result")


class _Lost(Exception):
    """The file is not the one that was opened any more."""


class SqliteFile(ABC):
    """One SQLite file, shared by the workers of a server: a thread that writes, and another that reads beside it.

    A write is on the disk when it returns. ``purpose``: what it is used for, as an error says it. Raises ConfigError
    where the file cannot be used so.
    """

    def __init__(self, path: Path, purpose: str, faults: Faults) -> None:
        self._path = path
        self._file_faults = faults
        self._writer = ThreadPoolExecutor(1, f"fathom-{purpose}-writer")
        self._reader = ThreadPoolExecutor(1, f"fathom-{purpose}-reader")
        self._lost = False
        try:
            self._refuse_foreign(purpose)
            self._write = self._connect()
            self._prepare()
            self._read = self._connect()
            self._files = self._identities()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{path}: cannot be used for {purpose}: {error}") from None

    @abstractmethod
    def _prepare(self) -> None:
        """Make the tables that are not there yet."""

    @abstractmethod
    def _is_foreign(self, connection: sqlite3.Connection) -> bool:
        """Whether a file that has tables is a database of something else."""

    async def close(self) -> None:
        for pool, connection in ((self._writer, self._write), (self._reader, self._read)):
            pool.shutdown()
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        # A statement that is kept would keep the last id that it was asked for.
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=0
        )
        _write_ahead(connection)
        for pragma in (f"busy_timeout={BUSY_MS}", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _rows(self, statement: str, values: Sequence[str | int]) -> list[tuple[Any, ...]]:
        try:
            return self._read.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        # Something is called text and is none; what is looks the same, but takes longer to read.
        self._read.text_factory = _text
        try:
            return self._read.execute(statement, values).fetchall()
        finally:
            self._read.text_factory = str

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._write.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._write.execute("COMMIT")
        except BaseException:
            # A full disk may have ended it already; what matters is the first error.
            with suppress(sqlite3.Error):
                self._write.execute("ROLLBACK")
            raise

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        def guarded() -> Result:
            self._check_file()
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(pool, guarded)
        except sqlite3.Error as error:
            # Errors that SQLite itself did not raise have no code.
            if getattr(error, "sqlite_errorcode", None) in _FULL:
                raise self._file_faults.full(f"{self._path}: {error}") from None
            raise self._file_faults.unreachable(f"{self._path}: {error}") from None
        except OSError as error:
            raise self._file_faults.unreachable(error) from None
        except _Lost:
            raise self._file_faults.unreachable(
                f"{self._path} was deleted, replaced or emptied while it was open; stop the server, restore the file"
                " (or remove what is left of it, to begin anew), and start the server again"
            ) from None

    def _identities(self) -> list[tuple[int, int]]:
        """Tell the file and its write-ahead log, which holds the newest events, from others of their names."""
        found = [each.stat() for each in (self._path, self._path.with_name(f"{self._path.name}-wal"))]
        return [(each.st_dev, each.st_ino) for each in found]

    def _check_file(self) -> None:
        """Raise _Lost where others would no longer find in the file what is read and written here.

        Once lost, the file stays so: what has taken its place does not fit what SQLite remembers of it.
        """
        if not self._lost:
            try:
                self._lost = not self._path.stat().st_size or self._identities() != self._files
            except FileNotFoundError:
                self._lost = True
        if self._lost:
            raise _Lost

    def _refuse_foreign(self, purpose: str) -> None:
        """Raise ConfigError, and change nothing, where a database has tables but none of ours."""
        connection = sqlite3.connect(self._path, timeout=BUSY_MS / 1_000)
        try:
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' LIMIT 1").fetchone()
            foreign = tables and self._is_foreign(connection)
        finally:
            connection.close()
        if foreign:
            raise ConfigError(
                f"{self._path}: cannot be used for {purpose}: a database of something else; name another file"
            )


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; SQLite itself does not wait for everybody who is in the way of this."""
    end_s = time.monotonic() + BUSY_MS / 1_000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the rest says in what
            if not busy or time.monotonic() > end_s:
                raise
            time.sleep(AGAIN_S)
        else:
            return


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """The names of a table's columns; none where there is no such table."""
    return {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def _text(raw: bytes) -> str | bytes:
    """What SQLite calls text; bytes where it is none, which only others can have written."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
