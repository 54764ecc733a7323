"""Exact top-k by inner product, batched, with filters that belong to each request."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]

_NO_ITEMS: Indices = np.empty(0, dtype=np.int64)
_NO_SCORES: Scores = np.empty(0, dtype=np.float32)
_NEVER = np.float32(-np.inf)


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
        rows, n = len(users), self._columns.shape[1]
        block = max(1, self._block_floats // max(1, rows))
        best = [(_NO_ITEMS, _NO_SCORES)] * rows
        for low in range(0, n, block):
            scores = users @ self._columns[:, low : low + block]
            for row, (k, keep) in enumerate(zip(ks, filters, strict=True)):
                best[row] = _merge(best[row], scores[row], low, k, keep)
        return [_without_hidden(items, values) for items, values in best]


def _merge(best: tuple[Indices, Scores], scores: Scores, low: int, k: int, keep: ItemFilter) -> tuple[Indices, Scores]:
    """The k best of what earlier blocks gave and of this block: ``scores`` of items low.. (overwritten)."""
    if keep.exclude.size:
        scores[_inside(keep.exclude, low, len(scores))] = _NEVER
    items, values = best
    if len(values) >= k:
        # Strictly more: an item of a later block loses to an earlier one with an equal score. Few are, and only those
        # few have to pass the filter.
        chosen = np.flatnonzero(scores > values[-1])
        if chosen.size and (where := _kept(keep, low, len(scores), chosen)) is not None:
            chosen = where
        if not chosen.size:
            return best
    else:
        where = _kept(keep, low, len(scores), None)
        left = scores if where is None else scores[where]
        best_left = np.flatnonzero(left >= np.partition(left, -k)[-k]) if len(left) > k else np.arange(len(left))
        chosen = best_left if where is None else where[best_left]
    values = np.concatenate((values, scores[chosen]))
    # Stable: equal scores stay in the order of their indices, because both parts are in that order.
    order = np.argsort(-values, kind="stable")[:k]
    return np.concatenate((items, chosen + low))[order], values[order]


def _kept(keep: ItemFilter, low: int, count: int, among: Indices | None) -> Indices | None:
    """Ascending positions of the block, or of ``among``, that pass allow list and mask; None = all of them."""
    if keep.allow is None:
        if keep.mask is None:
            return None
        shown = keep.mask[low : low + count]
    else:
        shown = np.zeros(count, dtype=np.bool_)
        shown[_inside(keep.allow, low, count)] = True
        if keep.mask is not None:
            shown &= keep.mask[low : low + count]
    return np.flatnonzero(shown) if among is None else among[shown[among]]


def _inside(items: Indices, low: int, count: int) -> Indices:
    local = items - low
    return local[(local >= 0) & (local < count)]


def _without_hidden(items: Indices, values: Scores) -> tuple[Indices, Scores]:
    shown = values > _NEVER
    return (items, values) if shown.all() else (items[shown], values[shown])
