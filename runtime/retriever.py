"""Exact top-k by inner product, batched, with filters that belong to each request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]

_NO_ITEMS: Indices = np.empty(0, dtype=np.int64)
_NO_SCORES: Scores = np.empty(0, dtype=np.float32)
_NEVER, _EVER = np.float32(-np.inf), np.float32(np.inf)
_LEAST = np.finfo(np.float32).min


#: Groups of items for each item that is wanted: the more, the fewer items are looked at twice.
GROUPS = 8


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Which items one request may get: those of ``allow`` (all when None) that ``mask`` keeps, without ``exclude``.

    ``exclude``, ``allow``: item indices in any order, repeats welcome. ``mask``: bool (n,), True = may be returned.
    """

    exclude: Indices = field(default_factory=lambda: _NO_ITEMS)
    allow: Indices | None = None
    mask: NDArray[np.bool_] | None = None


class FlatRetriever:
    """Scores every item: exact, whatever the filters leave.

    ``vectors``: float32 (n, width). ``block_floats`` bounds the scores held at a time (rows x items of one block),
    so the memory of a search does not grow with the catalogue.
    """

    def __init__(self, vectors: NDArray[np.float32], *, block_floats: int = 2_000_000) -> None:
        # Transposed once: a batch then takes half the time, at the price of a second copy of the vectors.
        self._columns = np.ascontiguousarray(vectors.T)
        self._block_floats = block_floats

    def search(
        self, users: NDArray[np.float32], ks: Sequence[int], filters: Sequence[ItemFilter]
    ) -> list[tuple[Indices, Scores]]:
        """The ``ks[i]`` best items for user vector i: (indices int64, scores float32), best first.

        ``users``: float32 (rows, width). Equal scores: the lowest index first. Fewer than k when fewer are left.
        """
        count, n = len(users), self._columns.shape[1]
        block = max(1, self._block_floats // max(1, count))
        shown = {row: mask for row, keep in enumerate(filters) if (mask := _mask(keep, n)) is not None}
        hidden = _pairs([keep.exclude for keep in filters])
        best = _Best(count, max(ks, default=1))
        for low in range(0, n, block):
            scores = users @ self._columns[:, low : low + block]
            _hide(scores, hidden, low, n)
            best = best.joined(scores, low, shown)
        return best.split(ks)


class _Best(NamedTuple):
    """The best items of each of ``count`` rows so far, at least ``most`` where there are so many.

    Flat: ``rows``, ``items`` and ``values``, sorted by row, score (falling) and index.
    """

    count: int
    most: int
    rows: Indices = _NO_ITEMS
    items: Indices = _NO_ITEMS
    values: Scores = _NO_SCORES

    def joined(self, scores: Scores, low: int, shown: Mapping[int, NDArray[np.bool_]]) -> "_Best":
        """With a block (count, items): scores of items ``low``.. (overwritten); ``shown``: masks of some rows.

        All rows in each step together: what numpy does for one row costs as much to start as for all of them.
        """
        if self.rows.size:
            return self._joined_to_some(scores, low, shown)
        for row, mask in shown.items():
            scores[row, ~mask[low : low + scores.shape[1]]] = _NEVER
        return self._with(scores, low, _bound(scores, self.most))

    def _joined_to_some(self, scores: Scores, low: int, shown: Mapping[int, NDArray[np.bool_]]) -> "_Best":
        starts = np.searchsorted(self.rows, np.arange(self.count + 1))
        last = starts[:-1] + self.most - 1
        full = last < starts[1:]
        least = np.full(self.count, _LEAST)
        # Strictly more: an item of a later block loses to an earlier one with an equal score.
        least[full] = np.nextafter(self.values[last[full]], _EVER)
        for row in shown.keys() & set(np.flatnonzero(~full).tolist()):
            scores[row, ~shown[row][low : low + scores.shape[1]]] = _NEVER
        least[~full] = _bound(scores[~full], self.most)
        # Few items reach what a full row has already, and only those few have to pass its mask.
        masks = {row: shown[row] for row in shown.keys() & set(np.flatnonzero(full).tolist())}
        return self._with(scores, low, least, masks)

    def _with(
        self, scores: Scores, low: int, least: Scores, masks: Mapping[int, NDArray[np.bool_]] | None = None
    ) -> "_Best":
        rows, items = np.nonzero(scores >= least[:, None])
        values = scores[rows, items]
        if low:
            items += low
        for row, mask in (masks or {}).items():
            kept = (rows != row) | mask[items]
            rows, items, values = rows[kept], items[kept], values[kept]
        if self.rows.size:
            rows, items = np.concatenate((self.rows, rows)), np.concatenate((self.items, items))
            values = np.concatenate((self.values, values))
        # Stable: equal scores stay in the order of their indices, because both parts are in that order.
        order = np.lexsort((-values, rows))
        return self._replace(rows=rows[order], items=items[order], values=values[order])

    def split(self, ks: Sequence[int]) -> list[tuple[Indices, Scores]]:
        """By row, each with its own k."""
        starts = np.searchsorted(self.rows, np.arange(self.count + 1)).tolist()
        ends = [min(start + k, end) for start, end, k in zip(starts, starts[1:], ks, strict=False)]
        return [(self.items[start:end], self.values[start:end]) for start, end in zip(starts, ends, strict=False)]


def _bound(scores: Scores, most: int) -> Scores:
    """Per row a score that at least ``most`` items reach, if there are so many, and few others: (rows,).

    The best of every group of items are scores of different items, so the ``most``-th best of them is such a score,
    and much cheaper to find than the ``most``-th best of all. Hidden items never reach it.
    """
    groups = min(scores.shape[1], GROUPS * most)
    if groups < most:
        return np.full(len(scores), _LEAST)
    size = scores.shape[1] // groups
    highest = scores[:, : size * groups].reshape(len(scores), size, groups).max(axis=1)
    highest.partition(groups - most, axis=1)
    return np.maximum(highest[:, groups - most], _LEAST)


def _mask(keep: ItemFilter, n: int) -> NDArray[np.bool_] | None:
    """The items that pass allow list and mask, (n,); None = all."""
    if keep.allow is None:
        return keep.mask
    shown = np.zeros(n, dtype=np.bool_)
    shown[keep.allow] = True
    if keep.mask is not None:
        shown &= keep.mask
    return shown


def _pairs(items: Sequence[Indices]) -> tuple[Indices, Indices]:
    """(row, item) of every list, flat."""
    sizes = [len(each) for each in items]
    return np.repeat(np.arange(len(items)), sizes), np.concatenate(items) if items else _NO_ITEMS


def _hide(scores: Scores, hidden: tuple[Indices, Indices], low: int, total: int) -> None:
    """Make items of a block of ``total``, known by their row and index, worse than every other."""
    rows, items = hidden
    width = scores.shape[1]
    if width < total:
        inside = (items >= low) & (items < low + width)
        rows, items = rows[inside], items[inside] - low
    scores[rows, items] = _NEVER
