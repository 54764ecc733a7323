"""Searches by an index: it finds candidates, and these are scored, filtered and sorted exactly.

What is shown never depends on the index, only whether all of the best are found. Exact are the filters, the scores, and
the number of items; and whatever is cheap to search one by one: items that were added to a bundle's, items that get a
bonus, and the items that a filter leaves where these are few.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.session import Device
from fathom.runtime.item_filter import (
    NO_BONUS,
    Bonus,
    Indices,
    ItemFilter,
    Mask,
    Scores,
    both,
    is_shown,
    largest,
    passing,
    places_of,
)
from fathom.runtime.item_index import ItemIndex
from fathom.runtime.item_vectors import GrowingVectors, ItemVectors
from fathom.runtime.manifest import SearchLevel
from fathom.runtime.retriever import BLOCK_ITEMS, FlatRetriever, Retriever

#: So few items that a filter leaves are scored one by one, which takes about as long as a search by the index.
FEW_ITEMS = 8_192
#: Where the index cannot answer, so small a part of all items is still scored sooner than all.
SMALL_PART = 1 / 32
#: More items than this that a request leaves out are hidden from the index; fewer are dropped from what it finds.
MOST_DROPPED = 500

_HIDDEN = np.float32(-np.inf)
_FIRST = np.ones(1, np.bool_)

Found = tuple[Indices, Scores]


def open_retriever(
    bundle: Bundle,
    vectors: ItemVectors | None = None,
    *,
    block_items: int = BLOCK_ITEMS,
    threads: int = 1,
    device: Device = "cpu",
) -> Retriever:
    """The search that a bundle is made for: by its index, if it has one; but on a GPU every item is scored.

    ``vectors``: of the bundle's items and of those that are added to them; None: the bundle's alone. The others: see
    FlatRetriever. Raises MissingExtraError where the index needs FAISS, and BundleError for a broken index.
    """
    vectors = bundle.vectors if vectors is None else vectors
    flat = FlatRetriever(vectors, block_items=block_items, threads=threads, device=device)
    info = bundle.manifest.retrieval
    if info is None or device == "cuda":
        return flat
    return IndexRetriever(ItemIndex.of(bundle, info, threads=threads), vectors, flat)


class _Asked(NamedTuple):
    """One row of a search among n items.

    ``shown``: which items it may get but for ``exclude``, bool (n,) or shorter; None: any. ``passing``: how many those
    are. ``wanted``: of how many of the best by cosine k are left if nothing is excluded: what has a bonus below 0 may
    be behind others.
    """

    k: int
    exclude: Indices
    bonus: Bonus
    shown: Mask | None
    passing: int
    wanted: int


class IndexRetriever:
    """Searches n items by an index, and those behind them one by one.

    ``vectors``: of all items, those of the index first. ``flat``: searches the same items; it answers where the index
    cannot: where more items are wanted than it was measured for, or it finds too few that pass a filter.
    """

    def __init__(self, index: ItemIndex, vectors: ItemVectors, flat: FlatRetriever) -> None:
        self._index = index
        self._vectors = vectors
        self._flat = flat

    def search(
        self,
        users: NDArray[np.float32],
        ks: Sequence[int],
        filters: Sequence[ItemFilter],
        bonuses: Sequence[Bonus | None] | None = None,
        offered: Mask | None = None,
    ) -> list[Found]:
        """See Retriever."""
        given = [None] * len(ks) if bonuses is None else bonuses
        rows = [self._asked(*each, offered) for each in zip(ks, filters, given, strict=True)]
        found = self._by_index(users, rows)
        if isinstance(self._vectors, GrowingVectors) and self._vectors.added is not None:
            added = self._flat.search(users, ks, filters, bonuses, offered, added=True)
            for row, more in enumerate(added):
                if row in found:
                    found[row] = _merged(found[row], more, ks[row])
        if missing := [row for row in range(len(ks)) if row not in found]:
            some = [ks[row] for row in missing], [filters[row] for row in missing], [given[row] for row in missing]
            found |= zip(missing, self._flat.search(users[missing], *some, offered), strict=True)
        return [found[row] for row in range(len(ks))]

    def _asked(self, k: int, keep: ItemFilter, bonus: Bonus | None, offered: Mask | None) -> _Asked:
        n = len(self._index)
        exclude, bonus, shown = keep.exclude, bonus or NO_BONUS, passing(keep, n)
        if shown is None:
            shown = offered
        elif offered is not None:
            shown = both(shown, offered)
        if len(exclude) > MOST_DROPPED:
            shown = np.ones(n, np.bool_) if shown is None else shown[:n].copy()
            shown[exclude[exclude < len(shown)]] = False
            exclude = exclude[:0]
        left = n if shown is None else int(np.count_nonzero(shown[:n]))
        wanted = k + int(np.count_nonzero(bonus[1] < 0))
        return _Asked(k, exclude, bonus, shown, left, wanted)

    def _by_index(self, users: NDArray[np.float32], rows: Sequence[_Asked]) -> dict[int, Found]:
        """Row -> its best items among those of the index; without the rows that it cannot answer."""
        n, found = len(self._index), dict[int, Found]()
        waiting = {row: each.wanted for row, each in enumerate(rows)}
        while waiting:
            together: defaultdict[tuple[SearchLevel, int], list[int]] = defaultdict(list)
            for row, wanted in waiting.items():
                each = rows[row]
                # Where a share of the items passes, the best of these are so much further down among all.
                level = self._index.level_for(wanted * n / max(each.passing, 1))
                few = max(FEW_ITEMS, n * SMALL_PART if level is None else 0)
                if each.shown is not None and each.passing <= few:
                    found[row], _ = self._best(users[row], each, each.shown[:n].nonzero()[0])
                elif level is not None:
                    together[level, id(each.shown)].append(row)
            waiting = {}
            for (level, _), some in together.items():
                asked = users if len(some) == len(users) else users[some]
                candidates = self._index.candidates(asked, level, rows[some[0]].shown)
                for row, items in zip(some, candidates, strict=True):
                    each = rows[row]
                    best, above = self._best(users[row], each, items if items[-1] >= 0 else items[items >= 0])
                    # Too few: the flat search knows whether there are more.
                    if len(best[0]) == each.k:
                        if (each.wanted + above) * n <= level.wanted * each.passing:
                            found[row] = best
                        else:
                            waiting[row] = each.wanted + above
        return found

    def _best(self, user: NDArray[np.float32], asked: _Asked, items: Indices) -> tuple[Found, int]:
        """The best of some items of the index (m,), each once, and of those that have a bonus.

        And how many that are left out are above the last of them.
        """
        some, values = asked.bonus
        if len(some):
            known = slice(0, int(some.searchsorted(len(self._index))))
            some, values = some[known], values[known]
            if asked.shown is not None:
                shown = is_shown(asked.shown, some)
                some, values = some[shown], values[shown]
        items = np.concatenate((items, some))
        items.sort()
        if len(some):
            items = items[np.concatenate((_FIRST, items[1:] != items[:-1]))]
        scores: Scores = self._vectors.take(items) @ user
        if len(some):
            scores[items.searchsorted(some)] += values
        places = places_of(asked.exclude, items)
        excluded = scores[places]
        scores[places] = _HIDDEN
        order = largest(scores, asked.k)
        items, scores = items.take(order), scores.take(order)
        if len(scores) and scores[-1] == _HIDDEN:
            left = scores != _HIDDEN
            items, scores = items[left], scores[left]
        above = int(np.count_nonzero(excluded >= scores[-1])) if len(scores) else 0
        return (items, scores), above


def _merged(one: Found, other: Found, k: int) -> Found:
    """The k best of two, the second with higher indices."""
    items, scores = np.concatenate((one[0], other[0])), np.concatenate((one[1], other[1]))
    order = largest(scores, k)
    return items.take(order), scores.take(order)
