"""Histories of different lengths in one batch: the newest item is at the last position, 0 is padding on the left.

A batch is as long as its length bucket says.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHORTEST_BUCKET = 16


def left_padded(rows: Sequence[NDArray[np.integer] | Sequence[int]], length: int) -> NDArray[np.int64]:
    """The newest ``length`` values of each row, (rows, length)."""
    padded = np.zeros((len(rows), length), np.int64)
    for row, values in enumerate(rows):
        newest = values[-length:]
        if len(newest):
            padded[row, length - len(newest) :] = newest
    return padded


def length_buckets(max_history: int, *, cached: bool = False) -> tuple[int, ...]:
    """Upper ends of the length buckets: 16, 32, 64, ... and the longest history itself.

    ``cached``: with a bucket 0 for histories of which next to nothing has to be computed.
    """
    ends = [0] if cached else []
    end = SHORTEST_BUCKET
    while end < max_history:
        ends.append(end)
        end *= 2
    return (*ends, max_history)
