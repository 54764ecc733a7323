"""Depth 0: what usually follows the newest items of a history, counted in the training data, with no layer at all."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import (
    NO_BONUS,
    Bonus,
    Indices,
    ItemFilter,
    Mask,
    Scores,
    is_shown,
    largest,
    passing,
    places_of,
    sum_of,
    values_of,
)
from fathom.runtime.live_counts import LiveCounts

#: Above so many items, counts are added up by sorting and not in an array of one number per item.
LARGEST_DENSE = 16_384
_HIDDEN = np.float32(-np.inf)


@dataclass(frozen=True, eq=False)
class Counting:
    """Sparse transitions between n items, and popularity below them.

    ``offsets``: int64 (n + 1,): the neighbours of item i are those from ``offsets[i]`` to ``offsets[i + 1]``.
    ``neighbours``: int32 (m,), item indices. ``weights``: float32 (m,), above 0. ``popularity``: float32 (n,), 0 to 1,
    the share of (recent) training events. ``window``: items of a history that count, the newest. ``decay``: what an
    item weighs for each one that is newer. ``live``: what has been counted since then, of items n and above.
    """

    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    weights: NDArray[np.float32]
    popularity: NDArray[np.float32]
    window: int
    decay: float
    live: LiveCounts | None = None
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
        items, gains, _ = self._gains(history[: -self.window - 1 : -1])
        if not len(items):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found, counts = _sums(items, gains, dense=len(self.popularity) <= LARGEST_DENSE)
        counts /= counts.max()
        return found, counts.astype(np.float32)

    def parts(self, history: NDArray[np.integer], items: Indices) -> NDArray[np.float64]:
        """What a history (length,) gives to the shares of some items (k,), each once: (c, k).

        Of its c distinct items among the newest ``window``, newest first; a column adds up to the item's share, 0 where
        nothing counts for it.
        """
        newest = history[: -self.window - 1 : -1]
        rows: dict[int, int] = {}
        row_of = np.array([rows.setdefault(item, len(rows)) for item in newest.tolist()], np.int64)
        parts = np.zeros((len(rows), len(items)))
        found, gains, places = self._gains(newest)
        if len(found) and len(items):
            order = items.argsort()
            columns = order.take(items.take(order).searchsorted(found), mode="clip")
            wanted = items.take(columns) == found
            np.add.at(parts, (row_of.take(places[wanted]), columns[wanted]), gains[wanted])
            parts /= _sums(found, gains, dense=len(self.popularity) <= LARGEST_DENSE)[1].max()
        return parts

    def _gains(self, newest: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
        """Neighbours of some items (c,), newest first: the items (m,), repeats among them, and weights by age (m,).

        And whose neighbour each is, (m,), as a place in ``newest``.
        """
        # Items that were added have no neighbours in these tables: clipped, theirs begin where they end.
        first = self.offsets.take(newest, mode="clip")
        sizes = self.offsets.take(newest + 1, mode="clip") - first
        of = np.arange(len(newest)).repeat(sizes)
        places = (first - sizes.cumsum() + sizes).take(of)
        places += np.arange(len(places))
        items, gains = self.neighbours.take(places), self.weights.take(places) * self._ages.take(of)
        if self.live and (more := self.live.neighbours(newest, self._ages)):
            items, gains = np.concatenate((items, more[0])), np.concatenate((gains, more[1]))
            of = np.concatenate((of, more[2]))
        return items, gains, of

    def best(
        self, history: NDArray[np.integer], k: int, keep: ItemFilter, *, n: int | None = None, bonus: Bonus = NO_BONUS
    ) -> tuple[Indices, Scores]:
        """The k best items for a history that ``keep`` lets through: (indices int64, scores float32), best first.

        First what is counted, by share; then the most popular, whose score is their popularity less 1. Equal scores:
        the lowest index first. Fewer than k when fewer are left. ``n``: items that there are, those that were added
        since among them; they have no popularity. ``bonus``: added to scores before they are compared.
        """
        n = len(self.popularity) if n is None else n
        shown = passing(keep, n)
        items, scores = self.shares(history)
        if len(bonus[0]):
            items, scores = self._with_bonus(items, scores, bonus)
        scores[places_of(keep.exclude, items)] = _HIDDEN
        if shown is not None:
            scores[~is_shown(shown, items)] = _HIDDEN
        order = largest(scores, k)
        items, scores = items.take(order), scores.take(order)
        if scores.size and scores[-1] == _HIDDEN:
            left = scores != _HIDDEN
            items, scores = items[left], scores[left]
        if len(items) == k and scores[-1] > 0:
            return items, scores
        wanted = k if len(bonus[0]) else k - len(items)
        more = self._popular(wanted, {*keep.exclude.tolist(), *items.tolist(), *bonus[0].tolist()}, shown, n)
        items, scores = np.concatenate((items, more)), np.concatenate((scores, self._popularity_score(more)))
        if wanted < k:
            return items, scores
        order = np.lexsort((items, -scores))[:k]
        return items.take(order), scores.take(order)

    def scores(self, history: NDArray[np.integer], items: Indices, *, bonus: Bonus = NO_BONUS) -> Scores:
        """The scores of some items (m,), float32 (m,), as ``best`` gives them, be they among the best or not."""
        shares = values_of(items, self.shares(history))
        return np.where(shares > 0, shares, self._popularity_score(items)) + values_of(items, bonus)

    def _with_bonus(self, items: Indices, shares: Scores, bonus: Bonus) -> Bonus:
        """Scores of what is counted or has a bonus: items (c,), ascending."""
        others = np.setdiff1d(bonus[0], items, assume_unique=True)
        return sum_of((items, shares), (others, self._popularity_score(others)), bonus)

    def _popularity_score(self, items: Indices) -> Scores:
        """Popularity less 1; what was added since has none."""
        known = items < len(self.popularity)
        return np.where(known, self.popularity.take(items, mode="clip"), np.float32(0)) - np.float32(1)

    def _popular(self, k: int, hidden: set[int], shown: Mask | None, n: int) -> Indices:
        """The k most popular items that are shown and not hidden."""
        found: list[int] = []
        # Of the first k + h, at most h are hidden; where few are shown, ever more are looked at.
        low, size = 0, k + len(hidden)
        while len(found) < k and low < n:
            candidates = self._by_popularity[low : low + size]
            if low + size > len(self._by_popularity):
                added = np.arange(max(low, len(self._by_popularity)), min(low + size, n))
                candidates = np.concatenate((candidates, added))
            if shown is not None:
                candidates = candidates[is_shown(shown, candidates)]
            found += [item for item in candidates.tolist() if item not in hidden]
            low, size = low + size, 2 * size
        return np.array(found[:k], np.int64)


def _sums(items: NDArray[np.int32], gains: NDArray[np.float64], *, dense: bool) -> tuple[Indices, NDArray[np.float64]]:
    """The items that occur (c,), ascending, and the sum of each one's gains (c,), added up in their order."""
    counts: NDArray[np.float64]
    if dense:
        counts = np.bincount(items, gains).astype(np.float64, copy=False)
        found = (counts > 0).nonzero()[0].astype(np.int64, copy=False)
        return found, counts.take(found)
    # Sorted by item, then by place: one sort of plain numbers is faster than an order to sort by.
    bits = len(items).bit_length()
    keys = (items.astype(np.int64) << bits) | np.arange(len(items))
    keys.sort()
    ordered = keys >> bits
    new = np.empty(len(items), dtype=np.bool_)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    counts = np.bincount(new.cumsum() - 1, gains.take(keys & ((1 << bits) - 1))).astype(np.float64, copy=False)
    return ordered[new], counts
