"""Whether files have changed since they were read."""

from contextlib import suppress
from pathlib import Path

#: What a file was when it was looked at: inode, size and time of its last change; None where there is none.
Stamp = tuple[int, int, int] | None


def stamp_of(path: Path) -> Stamp:
    """What a file is now; a link's is that of its target, as Kubernetes exchanges secrets."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None
