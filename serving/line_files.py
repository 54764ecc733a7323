"""Lines in files of limited size, in a folder that several processes may write to; the oldest files go first."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fathom.errors import ConfigError


class LineFiles:
    """Appends to files ``KIND-TIME-PROCESS-NUMBER.jsonl`` that only this user may read.

    ``most_bytes``: of all files of the kind in the folder; ``writers``: as many write to it. After an error ``close``
    must be called: half a line may only be the last of a file.
    """

    def __init__(self, folder: Path, kind: str, most_bytes: int, writers: int = 1) -> None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; choose another")
        self.folder = folder
        self._kind = kind
        self._most_bytes = most_bytes
        self._writers = writers
        self._file_bytes = most_bytes // (4 * writers)
        self._file: int | None = None
        self._written = self._files = 0

    def write(self, lines: bytes) -> None:
        """Append whole lines; raises OSError."""
        # A file without a name was removed to make room.
        if self._file is not None and (self._written >= self._file_bytes or not os.fstat(self._file).st_nlink):
            self.close()
        if self._file is None:
            self._file = self._new_file()
        while lines:
            count = os.write(self._file, lines)
            self._written += count
            lines = lines[count:]

    def close(self) -> None:
        """End the file; the next line begins another."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _new_file(self) -> int:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room()
        self._written, self._files = 0, self._files + 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{self._kind}-{stamp}-{os.getpid()}-{self._files:06}.jsonl"
        return os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def _make_room(self) -> None:
        """Remove the oldest files, so that every writer can fill another one."""
        found: list[tuple[Path, int]] = []
        for path in line_files(self.folder, self._kind):
            with suppress(FileNotFoundError):  # another one has removed it
                found.append((path, path.stat().st_size))
        size = sum(each for _, each in found)
        for path, each in found:
            if size <= self._most_bytes - self._writers * self._file_bytes:
                return
            path.unlink(missing_ok=True)
            size -= each


def line_files(folder: Path, kind: str) -> Sequence[Path]:
    """The files of a kind in a folder, the oldest first."""
    return sorted(folder.glob(f"{kind}-*.jsonl"))
