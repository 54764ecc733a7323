"""Five numbers that say how hard a history is, in microseconds.

Measure the history that the engine will see (known items, oldest first, already cut to the model's longest), so that
the cost is bounded. Unknown values are NaN; ComplexityModel gives them the middle of the training data.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN = math.nan
_ONES = np.ones(1_024, dtype=np.float32)


class Features(NamedTuple):
    """What ``measure`` found; a tuple, because building one must cost nothing. The fields' order is that of every row.

    length          items in the history
    distinct_ratio  distinct items / items, 0 to 1; unknown for an empty history
    popularity      mean log(1 + training count) of the items; unknown for an empty history
    recency         1 / (1 + mean log(1 + gap in seconds)), 0 to 1: 1 when all events came at once, low when they are
                    far apart; unknown without timestamps or with fewer than two events
    density         mean cosine similarity over pairs of events, -1 to 1: 1 when all items are alike, near 0 when they
                    have nothing in common; unknown with fewer than two events
    """

    length: float
    distinct_ratio: float
    popularity: float
    recency: float
    density: float


@dataclass(frozen=True)
class SelectorTables:
    """What features are read from: ``log_popularity`` float32 (n,), ``vectors`` float32 (n, width) of unit length."""

    log_popularity: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @classmethod
    def build(cls, popularity: NDArray[np.int64], vectors: NDArray[np.float32]) -> "SelectorTables":
        """Tables from training counts (n,) and item vectors (n, width); vectors are shared, not copied."""
        log_popularity = np.log1p(popularity, dtype=np.float32)
        return cls(log_popularity, np.ascontiguousarray(vectors, dtype=np.float32))


def measure(items: NDArray[np.integer], timestamps: NDArray[np.integer] | None, tables: SelectorTables) -> Features:
    """Features of one history: item indices (length,), oldest first, and their seconds (length,) or None.

    A newest timestamp of 0 means that none is known. Raises IndexError for an index outside the catalogue.
    """
    n = len(items)
    if n == 0:
        return Features(0.0, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    # No feature but recency depends on the order, so sort once: it counts the distinct and reads memory in order.
    # (Sorting a few hundred integers is vectorised: several times cheaper than a set or np.unique.)
    index = items.astype(np.intp)
    index.sort()
    # A dot product with ones is the cheapest sum there is.
    ones = _ONES[:n] if n <= len(_ONES) else np.ones(n, dtype=np.float32)
    popularity = float(tables.log_popularity.take(index).dot(ones)) / n
    if n == 1:
        return Features(1.0, 1.0, popularity, UNKNOWN, UNKNOWN)
    distinct = 1 + int(np.count_nonzero(index[1:] != index[:-1]))
    recency = UNKNOWN if timestamps is None else _recency(timestamps, ones[1:])
    density = _density(tables.vectors.take(index, axis=0), ones)
    return Features(float(n), distinct / n, popularity, recency, density)


def measure_all(
    histories: Iterable[tuple[NDArray[np.integer], NDArray[np.integer] | None]], tables: SelectorTables
) -> NDArray[np.float64]:
    """Features of many histories as rows, (histories, 5): what ``ComplexityModel.fit`` learns from."""
    rows = [measure(items, timestamps, tables) for items, timestamps in histories]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(Features._fields))


def _density(vectors: NDArray[np.float32], ones: NDArray[np.float32]) -> float:
    # |sum of unit vectors|^2 = n + sum of cosines over ordered pairs, so no pair is ever formed.
    n = len(ones)
    total = ones.dot(vectors)
    return (float(total.dot(total)) - n) / (n * (n - 1))


def _recency(timestamps: NDArray[np.integer], ones: NDArray[np.float32]) -> float:
    # The mean of logarithms, not of gaps: one long pause must not hide a hundred short ones.
    if not timestamps[-1]:
        return UNKNOWN
    gaps = (timestamps[1:] - timestamps[:-1]).astype(np.float32)
    np.abs(gaps, out=gaps)
    np.log1p(gaps, out=gaps)
    return 1.0 / (1.0 + float(gaps.dot(ones)) / len(ones))
