"""Eleven numbers that say how hard a history is, in microseconds.

Measure the history that the engine will see (known items, oldest first, already cut to the model's longest), so that
the cost is bounded. Unknown values are NaN, which models take for the mean of the training data. "Training" is
the training part of the data that the bundle was made from, gaps are between consecutive events, never negative.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

UNKNOWN = math.nan
HEAD_SHARE = 0.8
SESSION_GAP_S = 1_800
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
    repeat_rate     share of events with the item of the event before, 0 to 1, of all events that have one before;
                    unknown with fewer than two events
    min_popularity  least log(1 + training count) of the items; unknown for an empty history
    tail_share      share of events with an item of the tail, 0 to 1. The tail is what the head leaves over: the head
                    is the most popular items that together have 80 % of the training events (of equally popular ones
                    those of lowest index). Unknown for an empty history
    last_gap        log(1 + gap in seconds) of the newest two events; unknown where recency is
    session_entropy entropy of the sessions' shares of events, in nats: 0 for one session, log(k) for k equally long
                    ones. A gap over 30 minutes starts a session. Unknown without timestamps or for an empty history
    transition_entropy  entropy of what followed the newest item in training, in nats: 0 when it was always the same
                    item; unknown for an empty history and for an item that nothing followed
    """

    length: float
    distinct_ratio: float
    popularity: float
    recency: float
    density: float
    repeat_rate: float
    min_popularity: float
    tail_share: float
    last_gap: float
    session_entropy: float
    transition_entropy: float


_EMPTY = Features(0.0, *[UNKNOWN] * 10)
_UNTIMED = (UNKNOWN, UNKNOWN, UNKNOWN)
#: What ``measure_brief`` finds; these fields come first.
BRIEF = ("length", "distinct_ratio", "popularity", "recency", "density")
_NOT_BRIEF = (UNKNOWN,) * (len(Features._fields) - len(BRIEF))


class VectorTable(Protocol):
    """Item vectors of unit length, looked up."""

    def take(self, items: NDArray[np.integer], /) -> NDArray[np.float32]:
        """Those of item indices (m,), (m, width)."""


@dataclass(frozen=True)
class SelectorTables:
    """What features are read from.

    ``log_popularity``, ``tail`` (1 for an item of the tail, else 0), ``transition_entropy`` (NaN where unknown):
    float32 (n,).
    """

    log_popularity: NDArray[np.float32]
    tail: NDArray[np.float32]
    vectors: VectorTable
    transition_entropy: NDArray[np.float32]

    @classmethod
    def build(
        cls, popularity: NDArray[np.int64], vectors: VectorTable, transition_entropy: NDArray[np.float32]
    ) -> "SelectorTables":
        """Tables from training counts (n,), item vectors and entropies (n,), in nats; what fits is not copied."""
        return cls(
            np.log1p(popularity, dtype=np.float32),
            _tail(popularity),
            vectors,
            np.ascontiguousarray(transition_entropy, dtype=np.float32),
        )


def measure(items: NDArray[np.integer], timestamps: NDArray[np.integer] | None, tables: SelectorTables) -> Features:
    """Features of one history: item indices (length,), oldest first, and their seconds (length,) or None.

    A newest timestamp of 0 means that none is known. Raises IndexError for an index outside the catalogue.
    """
    n = len(items)
    if n == 0:
        return _EMPTY
    # Most features do not depend on the order, so sort once: it counts the distinct and reads memory in order.
    # (Sorting a few hundred integers is vectorised: several times cheaper than a set or np.unique.)
    index = items.astype(np.intp)
    index.sort()
    # A dot product with ones is the cheapest sum there is, and argmin costs a third of min.
    ones = _ONES[:n] if n <= len(_ONES) else np.ones(n, dtype=np.float32)
    counts = tables.log_popularity.take(index)
    popularity = float(counts.dot(ones)) / n
    least = counts.item(counts.argmin())
    tail = float(tables.tail.take(index).dot(ones)) / n
    followed = tables.transition_entropy.item(items[-1])
    recency, last_gap, sessions = _UNTIMED if timestamps is None else _times(timestamps, ones)
    if n == 1:
        return Features(1.0, 1.0, popularity, UNKNOWN, UNKNOWN, UNKNOWN, least, tail, UNKNOWN, sessions, followed)
    distinct = 1 + int(np.count_nonzero(index[1:] != index[:-1]))
    repeats = int(np.count_nonzero(items[1:] == items[:-1]))
    density = _density(tables.vectors.take(index), ones)
    return Features(
        float(n),
        distinct / n,
        popularity,
        recency,
        density,
        repeats / (n - 1),
        least,
        tail,
        last_gap,
        sessions,
        followed,
    )


def measure_brief(
    items: NDArray[np.integer], timestamps: NDArray[np.integer] | None, tables: SelectorTables
) -> Features:
    """Only the features in BRIEF, in half the time; the others are unknown. Otherwise as ``measure``."""
    n = len(items)
    if n < 2:
        return measure(items, timestamps, tables)
    index = items.astype(np.intp)
    index.sort()
    ones = _ONES[:n] if n <= len(_ONES) else np.ones(n, dtype=np.float32)
    distinct = 1 + int(np.count_nonzero(index[1:] != index[:-1]))
    popularity = float(tables.log_popularity.take(index).dot(ones)) / n
    recency = UNKNOWN if timestamps is None or not timestamps[-1] else _recency(_gaps(timestamps), ones)[0]
    density = _density(tables.vectors.take(index), ones)
    return Features(float(n), distinct / n, popularity, recency, density, *_NOT_BRIEF)


def measure_all(
    histories: Iterable[tuple[NDArray[np.integer], NDArray[np.integer] | None]], tables: SelectorTables
) -> NDArray[np.float64]:
    """Features of many histories as rows, (histories, 11)."""
    rows = [measure(items, timestamps, tables) for items, timestamps in histories]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(Features._fields))


def _density(vectors: NDArray[np.float32], ones: NDArray[np.float32]) -> float:
    # |sum of unit vectors|^2 = n + sum of cosines over ordered pairs, so no pair is ever formed.
    n = len(ones)
    total = ones.dot(vectors)
    return (float(total.dot(total)) - n) / (n * (n - 1))


def _times(timestamps: NDArray[np.integer], ones: NDArray[np.float32]) -> tuple[float, float, float]:
    """``recency``, ``last_gap`` and ``session_entropy``."""
    n = len(timestamps)
    if not timestamps[-1]:
        return _UNTIMED
    if n == 1:
        return UNKNOWN, UNKNOWN, 0.0
    gaps = _gaps(timestamps)
    sessions = _session_entropy(gaps)
    return *_recency(gaps, ones), sessions


def _gaps(timestamps: NDArray[np.integer]) -> NDArray[np.float32]:
    gaps = (timestamps[1:] - timestamps[:-1]).astype(np.float32)
    return np.abs(gaps, out=gaps)


def _recency(gaps: NDArray[np.float32], ones: NDArray[np.float32]) -> tuple[float, float]:
    """``recency`` and ``last_gap``; overwrites ``gaps``."""
    # The mean of logarithms, not of gaps: one long pause must not hide a hundred short ones.
    np.log1p(gaps, out=gaps)
    return 1.0 / (1.0 + float(gaps.dot(ones[1 : len(gaps) + 1])) / len(gaps)), gaps.item(-1)


def _session_entropy(gaps: NDArray[np.float32]) -> float:
    n = len(gaps) + 1
    starts = np.empty(n + 1, dtype=np.bool_)
    starts[0] = starts[n] = True
    np.greater(gaps, SESSION_GAP_S, out=starts[1:n])
    edges = starts.nonzero()[0]
    if len(edges) == 2:
        return 0.0
    sizes = edges[1:] - edges[:-1]
    return math.log(n) - float(np.log(sizes).dot(sizes)) / n


def _tail(popularity: NDArray[np.int64]) -> NDArray[np.float32]:
    order = np.argsort(-popularity, kind="stable")
    events = popularity[order]
    before = events.cumsum() - events
    tail = np.empty(len(popularity), dtype=np.float32)
    tail[order] = before >= HEAD_SHARE * events.sum()
    return tail
