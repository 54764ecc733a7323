"""The time of a request: how user vectors move with the seconds since the newest event (``moves.py``)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fathom.training.dataset import Sequences
from fathom.training.metrics import Interval
from fathom.training.moves import move

#: Changes are learned at gaps of 2**i - 1 seconds, and interpolated between them; the last is 17 years.
BUCKETS = 30
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class RequestTime:
    """How user vectors move, at every depth alike.

    changes: float32 (BUCKETS, 2, width), for each gap what a vector is scaled by besides 1, and what is then added;
    gain: what that adds to NDCG@10 on validation items, the mean over depths.
    """

    changes: NDArray[np.float32]
    gain: Interval

    def moved(self, users: NDArray[np.float32], gaps: NDArray[np.int64]) -> NDArray[np.float32]:
        """User vectors (n, width) for requests so many seconds after their newest event, int64 (n,) or UNKNOWN."""
        return moved(users, gap_shares(gaps), self.changes)


def gaps_of(histories: Sequences) -> NDArray[np.int64]:
    """Seconds from each history's newest event to its request, int64 (n,); UNKNOWN where either time is."""
    if histories.timestamps is None or histories.asked is None:
        return np.full(len(histories), UNKNOWN, np.int64)
    newest = np.zeros(len(histories), np.int64)
    filled = histories.lengths > 0
    newest[filled] = histories.timestamps[histories.offsets[1:][filled] - 1]
    return np.where((newest > 0) & (histories.asked > 0), np.maximum(histories.asked - newest, 0), UNKNOWN)


def gap_shares(gaps: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each bucket's change counts for gaps (...,) of seconds: float32 (..., BUCKETS), 0 everywhere for UNKNOWN."""
    place = np.log2(np.maximum(gaps, 0) + 1.0)[..., None]
    near = np.maximum(0.0, 1 - np.abs(place - np.arange(BUCKETS)))
    return np.where((gaps == UNKNOWN)[..., None], 0.0, near).astype(np.float32)


def moved(users: NDArray[np.float32], shares: NDArray[np.float32], changes: NDArray[np.float32]) -> NDArray[np.float32]:
    """User vectors (n, width) moved by changes (BUCKETS, 2, width); ``shares``: see ``gap_shares``."""
    return move(users, shares @ changes.reshape(BUCKETS, -1))
