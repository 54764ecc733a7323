"""What was run before: every training, ranking, compression and evaluation of the command line, in one SQLite file.

The file is ``build/runs.sqlite`` below the current directory; ``FATHOM_RUNS`` names another, and empty keeps none.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fathom.distribution import fathom_commit, version
from fathom.errors import ArtefactError, ConfigError, FathomError

if TYPE_CHECKING:
    import sqlite3

VARIABLE, DEFAULT = "FATHOM_RUNS", Path("build/runs.sqlite")
#: "Fath", the mark of our SQLite files, and the version of the table.
APPLICATION_ID, SCHEMA_VERSION = 0x46617468, 1
BUSY_S = 10.0
_STARTED = time.monotonic()

_TABLE = """
create table if not exists runs (
    number integer primary key autoincrement, created text not null, command text not null, arguments text not null,
    task text not null, model text not null, data text not null, seconds real not null, version text not null,
    commit_sha text, config text not null, metrics text not null, outputs text not null
)"""
_COLUMNS = (
    *("number", "created", "command", "arguments", "task", "model", "data", "seconds", "version", "commit_sha"),
    *("config", "metrics", "outputs"),
)
_AS_JSON = ("arguments", "config", "metrics", "outputs")


@dataclass(frozen=True)
class RunRecord:
    """One command that ended well.

    ``created``: UTC. ``command``: its name; ``arguments``: as they were typed. ``task``, ``model``, ``data``: what
    about. ``seconds``: since the program began. ``metrics``: name -> value. ``outputs``: the paths that were written.
    """

    command: str
    task: str
    model: str
    data: str
    metrics: Mapping[str, float]
    config: Mapping[str, Any]
    outputs: Sequence[str]
    number: int = 0
    created: str = ""
    arguments: Sequence[str] = ()
    seconds: float = 0.0
    version: str = ""
    commit_sha: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in the order of the file's columns."""
        values = asdict(self)
        return {name: values[name] for name in _COLUMNS}


@dataclass(frozen=True)
class Runs:
    """The runs of one file."""

    path: Path

    @classmethod
    def here(cls) -> Self | None:
        """Those that the environment names; None where none are kept."""
        named = os.environ.get(VARIABLE)
        return None if named == "" else cls(Path(named) if named else DEFAULT)

    @classmethod
    def to_read(cls, path: Path | None) -> Self:
        """A file with runs; raises ArtefactError where there is none."""
        found = cls(path) if path is not None else cls.here()
        if found is None:
            raise ArtefactError(f"{VARIABLE} is empty, so no runs are kept; name a file in it, or with --file")
        if not found.path.exists():
            raise ArtefactError(
                f"{found.path}: no runs are kept here; a command that trains, ranks or evaluates adds one"
            )
        return found

    def add(self, run: RunRecord) -> int:
        """Write one more; returns its number."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {**run.as_dict(), **{name: json.dumps(getattr(run, name), allow_nan=False) for name in _AS_JSON}}
        del values["number"]
        with self._open(to_write=True) as file:
            names, places = ", ".join(values), ", ".join("?" * len(values))
            added = file.execute(f"insert into runs ({names}) values ({places})", list(values.values()))
            assert added.lastrowid is not None
            return added.lastrowid

    def all(self) -> list[RunRecord]:
        """Every run, the oldest first; raises ArtefactError for a file that holds none of ours."""
        with self._open(to_write=False) as file:
            rows = file.execute(f"select {', '.join(_COLUMNS)} from runs order by number").fetchall()
            named = (dict(zip(_COLUMNS, row, strict=True)) for row in rows)
            return [RunRecord(**{**row, **{name: json.loads(row[name]) for name in _AS_JSON}}) for row in named]

    def get(self, number: int) -> RunRecord:
        """One run; raises ConfigError for a number that none has."""
        found = next((run for run in self.all() if run.number == number), None)
        if found is None:
            raise ConfigError(f"{self.path}: no run has the number {number}; fathom runs list shows all")
        return found

    @contextmanager
    def _open(self, *, to_write: bool) -> "Iterator[sqlite3.Connection]":
        """The file in one transaction; where it is new it is made and marked as ours."""
        # Servers know this module's variable, and keep no runs.
        import sqlite3

        try:
            file = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        except sqlite3.Error as error:
            raise ArtefactError(f"{self.path}: cannot be opened: {error}") from None
        try:
            file.execute("begin immediate" if to_write else "begin")
            self._check(file, to_write=to_write)
            yield file
            file.execute("commit")
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise ArtefactError(f"{self.path}: cannot be read as runs: {error}") from None
        finally:
            # What was not committed is undone.
            file.close()

    def _check(self, file: "sqlite3.Connection", *, to_write: bool) -> None:
        """Make the table in an empty file; raise ArtefactError for one that is not ours or of another version."""
        questions = ("pragma application_id", "pragma user_version", "select count(*) from sqlite_master")
        mark, version, tables = (file.execute(question).fetchone()[0] for question in questions)
        if not tables and to_write:
            file.execute(_TABLE)
            file.execute(f"pragma application_id = {APPLICATION_ID}")
            file.execute(f"pragma user_version = {SCHEMA_VERSION}")
        elif mark != APPLICATION_ID:
            raise ArtefactError(f"{self.path}: is not a file of Fathom's runs; name another in {VARIABLE}")
        elif version != SCHEMA_VERSION:
            raise ArtefactError(f"{self.path}: was written by another version of Fathom; name another in {VARIABLE}")


def record(run: RunRecord) -> str | None:
    """Add a run to the file of the environment; returns why it could not be added, for which no command fails."""
    runs = Runs.here()
    if runs is None:
        return None
    if any(_lies_in(runs.path, Path(output)) for output in run.outputs):
        return f"this run is not kept: {runs.path} lies inside what the command wrote; name another in {VARIABLE}"
    try:
        told = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": sys.argv[1:],
            "seconds": round(time.monotonic() - _STARTED, 3),
            "version": version(),
            "commit_sha": fathom_commit(),
        }
        runs.add(replace(run, **told))  # type: ignore[arg-type]
    except (FathomError, OSError, ValueError, TypeError) as error:
        return f"this run is not kept: {error}"
    return None


def _lies_in(path: Path, output: Path) -> bool:
    return output.is_dir() and path.resolve().is_relative_to(output.resolve())
