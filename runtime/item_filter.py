"""Which items may answer a request."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]

_NO_ITEMS: Indices = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """Which items one request may get: those of ``allow`` (all when None) that ``mask`` keeps, without ``exclude``.

    ``exclude``, ``allow``: item indices in any order, repeats welcome. ``mask``: bool (n,), True = may be returned.
    """

    exclude: Indices = field(default_factory=lambda: _NO_ITEMS)
    allow: Indices | None = None
    mask: NDArray[np.bool_] | None = None


def passing(keep: ItemFilter, n: int) -> NDArray[np.bool_] | None:
    """The items that pass allow list and mask, bool (n,); None = all."""
    if keep.allow is None:
        return keep.mask
    shown = np.zeros(n, dtype=np.bool_)
    shown[keep.allow] = True
    if keep.mask is not None:
        shown &= keep.mask
    return shown


def places_of(items: Indices, ascending: Indices) -> Indices:
    """Where those of ``items`` (any,) that are among the ``ascending`` (n,) stand in it, (at most any,)."""
    places = ascending.searchsorted(items)
    # One that is larger than all would stand behind the last.
    return places[ascending.take(places, mode="clip") == items] if len(ascending) else places[:0]
