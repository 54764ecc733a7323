"""Which items may answer a request, and what is added to their scores."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Items (b,), ascending, each once, and what is added to their scores (b,), finite.
Bonus = tuple[Indices, Scores]
NO_BONUS: Bonus = np.empty(0, np.int64), np.empty(0, np.float32)
_NO_ITEMS: Indices = np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class ItemFilter:
    """Which items one request may get: those of ``allow`` (all when None) that ``mask`` keeps, without ``exclude``.

    ``exclude``, ``allow``: item indices in any order, repeats welcome. ``mask``: bool (n,), True = may be returned;
    items behind its end may not.
    """

    exclude: Indices = field(default_factory=lambda: _NO_ITEMS)
    allow: Indices | None = None
    mask: Mask | None = None


def passing(keep: ItemFilter, n: int) -> Mask | None:
    """The items that pass allow list and mask, bool (n,) or shorter: those behind the end do not. None = all."""
    if keep.allow is None:
        return keep.mask
    shown = np.zeros(n, dtype=np.bool_)
    shown[keep.allow] = True
    return shown if keep.mask is None else both(shown, keep.mask)


def both(one: Mask, other: Mask) -> Mask:
    """What passes two masks; the items behind the end of the shorter one do not."""
    n = min(len(one), len(other))
    return one[:n] & other[:n]


def are_kept(items: Indices, keep: ItemFilter) -> Mask:
    """Which of some items (m,) a filter lets through, bool (m,)."""
    kept = ~np.isin(items, keep.exclude)
    if keep.allow is not None:
        kept &= np.isin(items, keep.allow)
    return kept if keep.mask is None else kept & is_shown(keep.mask, items)


def is_shown(mask: Mask, items: Indices) -> Mask:
    """Which of some items (m,) a mask shows, bool (m,); those behind its end it does not."""
    return mask.take(items, mode="clip") & (items < len(mask)) if len(mask) else np.zeros(len(items), np.bool_)


def values_of(items: Indices, bonus: Bonus) -> Scores:
    """What is added to each of some items (m,), float32 (m,); nothing where the bonus lacks it."""
    ascending, values = bonus
    if not len(ascending):
        return np.zeros(len(items), np.float32)
    places = ascending.searchsorted(items)
    there = ascending.take(places, mode="clip") == items
    return np.where(there, values.take(places, mode="clip"), np.float32(0))


def places_of(items: Indices, ascending: Indices) -> Indices:
    """Where those of ``items`` (any,) that are among the ``ascending`` (n,) stand in it, (at most any,)."""
    places = ascending.searchsorted(items)
    # One that is larger than all would stand behind the last.
    return places[ascending.take(places, mode="clip") == items] if len(ascending) else places[:0]


def sum_of(*bonuses: Bonus) -> Bonus:
    """Several bonuses as one; what meets in an item is added up."""
    some = [bonus for bonus in bonuses if len(bonus[0])]
    if len(some) < 2:
        return some[0] if some else NO_BONUS
    items, where = np.unique(np.concatenate([each for each, _ in some]), return_inverse=True)
    amounts = np.bincount(where, np.concatenate([values for _, values in some]), minlength=len(items))
    return items, amounts.astype(np.float32)


def largest(values: Scores, k: int) -> Indices:
    """Where the k largest are, largest first; equal ones in their order."""
    near = np.arange(len(values))
    if k < len(values):
        ascending = values.copy()
        ascending.partition(-k)
        near = (values >= ascending[-k]).nonzero()[0]
    best: Indices = near.take((-values.take(near)).argsort(kind="stable")[:k])
    return best
