"""Items in one SQLite file."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from fathom.serving.items.contract import ItemChange, ItemFaults, ItemStore
from fathom.serving.sqlite_file import SqliteFile, columns_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    bundle TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    record BLOB,
    PRIMARY KEY (bundle, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS changes ON items (bundle, version);
"""
_COLUMNS = {"bundle", "id", "version", "record"}
_PUT = """
INSERT INTO items VALUES (?, ?, ?, ?)
ON CONFLICT (bundle, id) DO UPDATE SET version = excluded.version, record = excluded.record
"""
_NEWEST = "SELECT coalesce(max(version), 0) FROM items WHERE bundle = ?"
_CHANGES = "SELECT id, version, record FROM items WHERE bundle = ? AND version > ? ORDER BY version, id"
_PAGE = "SELECT id, version, record FROM items WHERE bundle = ? AND id > ? ORDER BY id LIMIT ?"


class SqliteItems(SqliteFile, ItemStore):
    """Items in one SQLite file, shared by the workers of a server."""

    def __init__(self, path: Path) -> None:
        self._faults = ItemFaults()
        super().__init__(path, "items", self._faults)

    async def write(self, bundle: str, changes: Mapping[str, bytes | None], after: int = 0) -> int:
        def put() -> int:
            with self._transaction():
                (newest,) = self._write.execute(_NEWEST, (bundle,)).fetchone()
                version = max(int(newest), after) + 1
                rows = [(bundle, id, version, record) for id, record in changes.items()]
                self._write.executemany(_PUT, rows)
            return version

        return await self._run(self._writer, put)

    async def changes(self, bundle: str, since: int) -> Sequence[ItemChange]:
        return await self._select(_CHANGES, (bundle, since))

    async def page(self, bundle: str, after: str, size: int) -> Sequence[ItemChange]:
        return await self._select(_PAGE, (bundle, after, size))

    async def _select(self, statement: str, values: Sequence[str | int]) -> Sequence[ItemChange]:
        found = await self._run(self._reader, lambda: [ItemChange(*row) for row in self._rows(statement, values)])
        ours = [each for each in found if [*map(type, each)] in ([str, int, bytes], [str, int, type(None)])]
        if len(ours) < len(found):
            self._faults.foreign(self._path)
        return ours

    def _prepare(self) -> None:
        self._write.executescript(_SCHEMA)

    def _is_foreign(self, connection: sqlite3.Connection) -> bool:
        return columns_of(connection, "items") != _COLUMNS
