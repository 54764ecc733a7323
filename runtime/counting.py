"""Depth 0: what usually follows the newest items of a history, counted in the training data, with no layer at all."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import Indices, ItemFilter, Scores, passing

#: Above so many items, counts are added up by sorting and not in an array of one number per item.
LARGEST_DENSE = 65_536


@dataclass(frozen=True, eq=False)
class Counting:
    """Sparse transitions between n items, and popularity below them.

    ``offsets``: int64 (n + 1,): the neighbours of item i are those from ``offsets[i]`` to ``offsets[i + 1]``.
    ``neighbours``: int32 (m,), item indices. ``weights``: float32 (m,), above 0. ``popularity``: float32 (n,), 0 to 1,
    the share of (recent) training events. ``window``: items of a history that count, the newest. ``decay``: what an
    item weighs for each one that is newer.
    """

    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    weights: NDArray[np.float32]
    popularity: NDArray[np.float32]
    window: int
    decay: float
    _by_popularity: Indices = field(init=False, repr=False)
    _ages: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_popularity", np.argsort(-self.popularity, kind="stable"))
        object.__setattr__(self, "_ages", self.decay ** np.arange(self.window))

    def shares(self, history: NDArray[np.integer]) -> tuple[Indices, Scores]:
        """What follows a history (length,) of item indices, oldest first: items (c,), ascending, and their shares (c,).

        The count of an item is the sum over the newest ``window`` items of ``decay ** age * weight``; its share is that
        count in relation to the largest, so above 0 and at most 1. Seen items are counted too.
        """
        newest = history[: -self.window - 1 : -1]
        bounds = list(zip(self.offsets.take(newest).tolist(), self.offsets.take(newest + 1).tolist(), strict=True))
        if not bounds:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        items = np.concatenate([self.neighbours[low:high] for low, high in bounds])
        if not len(items):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        gains = np.concatenate([self.weights[low:high] for low, high in bounds]) * np.repeat(
            self._ages[: len(bounds)], [high - low for low, high in bounds]
        )
        if len(self.popularity) <= LARGEST_DENSE:
            counts = np.bincount(items, gains)
            found = np.flatnonzero(counts)
            counts = counts[found]
        else:
            found, place = np.unique(items, return_inverse=True)
            counts = np.bincount(place, gains)
        return found.astype(np.int64, copy=False), (counts / counts.max()).astype(np.float32)

    def best(self, history: NDArray[np.integer], k: int, keep: ItemFilter) -> tuple[Indices, Scores]:
        """The k best items for a history that ``keep`` lets through: (indices int64, scores float32), best first.

        First what is counted, by share; then the most popular, whose score is their popularity less 1. Equal scores:
        the lowest index first. Fewer than k when fewer are left.
        """
        shown = passing(keep, len(self.popularity))
        items, shares = self.shares(history)
        left = ~np.isin(items, keep.exclude)
        if shown is not None:
            left &= shown[items]
        items, shares = items[left], shares[left]
        order = np.argsort(-shares, kind="stable")[:k]
        items, shares = items[order], shares[order]
        if len(items) == k:
            return items, shares
        hidden = np.concatenate((keep.exclude, items))
        more = self._popular(k - len(items), hidden, shown)
        return np.concatenate((items, more)), np.concatenate((shares, self.popularity[more] - np.float32(1)))

    def _popular(self, k: int, hidden: Indices, shown: NDArray[np.bool_] | None) -> Indices:
        """The k most popular items that are shown and not hidden."""
        if shown is None:
            # Of the first k + h, at most h are hidden.
            candidates = self._by_popularity[: k + len(hidden)]
        else:
            candidates = self._by_popularity[shown[self._by_popularity]][: k + len(hidden)]
        return candidates[~np.isin(candidates, hidden)][:k]
