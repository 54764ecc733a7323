"""The time of a request: how user vectors move with the seconds since the newest event (``moves.py``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fathom.errors import BundleError
from fathom.runtime.bundle_folder import REBUILD, as_array
from fathom.runtime.manifest import CHANGES_FILE, Manifest
from fathom.runtime.moves import LARGEST_CHANGE, move

#: Changes are known at gaps of 2**i - 1 seconds, and interpolated between them; the last is 17 years.
BUCKETS = 30
#: Of a gap, where the time of the request or of the newest event is not known.
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class RequestTime:
    """How user vectors move, at every depth alike.

    ``changes``: float32 (BUCKETS, 2, width), for each gap what a vector is scaled by besides 1, and what is then added.
    """

    changes: NDArray[np.float32]

    def moved(self, users: NDArray[np.float32], gaps: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """User vectors (n, width) for requests so many seconds after their newest events, (n,).

        Where that is UNKNOWN, or longer than what was learned from, a vector stays as it is.
        """
        since = np.asarray(gaps, np.int64)
        place = np.log2(np.maximum(since, 0) + 1.0)[:, None]
        near = np.maximum(0.0, 1 - np.abs(place - np.arange(BUCKETS))) * (since != UNKNOWN)[:, None]
        return move(users, near.astype(np.float32) @ self.changes.reshape(BUCKETS, -1))


def gap_of(asked_s: int | None, timestamps: NDArray[np.int64] | None) -> int:
    """Seconds from the newest of a history's events, at these seconds (n,), to a request; UNKNOWN where either is.

    0 where the request is dated before the event.
    """
    newest = 0 if timestamps is None or not len(timestamps) else int(timestamps[-1])
    return max(asked_s - newest, 0) if asked_s and newest else UNKNOWN


def read_request_time(path: Path, manifest: Manifest, read: Callable[[str], bytes]) -> RequestTime | None:
    """What a bundle folder has of it; ``read``: a file by its name. Raises BundleError for contents that cannot be."""
    if manifest.request_time is None:
        return None
    file, shape = path / CHANGES_FILE, (BUCKETS, 2, manifest.model.width)
    changes = as_array(file, read(CHANGES_FILE), np.dtype(np.float32), shape)
    if not (np.abs(changes) <= LARGEST_CHANGE).all():
        raise BundleError(f"{file}: a value that is no number, or too large; {REBUILD}")
    return RequestTime(changes)
