"""Histories of different lengths in one batch: the newest item is at the last position, 0 is padding on the left."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def left_padded(rows: Sequence[NDArray[np.integer] | Sequence[int]], length: int) -> NDArray[np.int64]:
    """The newest ``length`` values of each row, (rows, length)."""
    padded = np.zeros((len(rows), length), np.int64)
    for row, values in enumerate(rows):
        newest = values[-length:]
        if len(newest):
            padded[row, length - len(newest) :] = newest
    return padded
