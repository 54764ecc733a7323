"""Why an item was recommended: the items of the history that its score is due to.

What counting gives is a sum over the history, so each item's part is known. What the network gives is not: there an
item's part is by how much the cosine falls where the history lacks it, found by running the network on that history.
Unlike a weight of attention, that is what would happen.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.item_filter import Indices

#: Reasons of one recommended item.
MOST_REASONS = 3
#: Items of an answer that get reasons, the first.
MOST_EXPLAINED = 100
#: Distinct items of a history, the newest, that are left out in turn.
MOST_LEFT_OUT = 20
#: A smaller part of a score is taken for rounding.
LEAST_PART = 1e-5

Source = Literal["counting", "network"]
Parts = NDArray[np.float64]


class Reason(NamedTuple):
    """An item of the history, by index, and its part in a score.

    ``amount``: of counting, its part in what is counted for the recommended item, 0 to 1; of the network, by how much
    the cosine falls without it.
    """

    item: int
    source: Source
    amount: float


class LeaveOneOut(NamedTuple):
    """Items (c,) that are left out of a history in turn, and the whole history (n,), oldest first."""

    left_out: Indices
    items: Indices
    timestamps: NDArray[np.int64] | None

    @classmethod
    def of(cls, used: Indices, items: Indices, timestamps: NDArray[np.int64] | None) -> "LeaveOneOut":
        """The newest distinct items of those that are ``used``, the newest of all ``items``."""
        return cls(newest_distinct(used)[:MOST_LEFT_OUT], items, timestamps)

    @property
    def runs(self) -> int:
        """As how many requests one with reasons counts: those histories, the whole one, and the answer itself."""
        return 2 + len(self.left_out)

    def histories(self, most: int) -> list[tuple[Indices, NDArray[np.int64] | None]]:
        """The newest ``most`` items of each history that lacks an item, all its repeats; empty where that was all."""
        kept = [np.flatnonzero(self.items != item)[-most:] for item in self.left_out.tolist()]
        return [(self.items[each], None if self.timestamps is None else self.timestamps[each]) for each in kept]


#: Of every item of an answer, at most of the first MOST_EXPLAINED, the most telling first.
Reasons = tuple[tuple[Reason, ...], ...]


def newest_distinct(history: NDArray[np.integer]) -> Indices:
    """The items of a history (n,), oldest first: each once, by its newest place, newest first."""
    return np.array(list(dict.fromkeys(history[::-1].tolist())), np.int64)


def falls(vectors: NDArray[np.float32], whole: NDArray[np.float32], without: NDArray[np.float32]) -> Parts:
    """By how much the cosines of items (k, width) fall from one user vector (width,) to others (c, width): (c, k)."""
    found: Parts = ((whole - without) @ vectors.T).astype(np.float64)
    return found


def reasons_of(history: NDArray[np.integer], counted: Parts, weight: float, fallen: Parts | None = None) -> Reasons:
    """At most MOST_REASONS for each of k recommended items, the largest part of its score first.

    ``counted`` (c, k): the parts of the newest distinct items of the history (n,) in the items' shares, which are
    ``weight`` times in their scores (``Counting.parts``). ``fallen`` (c', k): see ``falls``. An item of the history is
    named once, for what gives more, the network where both give the same. Of equal parts the newest item's comes first.
    """
    k = counted.shape[1]
    sources = newest_distinct(history)[: max(len(counted), 0 if fallen is None else len(fallen))]
    shares, network = np.zeros((len(sources), k)), np.zeros((len(sources), k))
    shares[: len(counted)] = counted
    if fallen is not None:
        # Not so for NaN either.
        network[: len(fallen)] = np.where(fallen > LEAST_PART, fallen, 0.0)
    parts = np.maximum(weight * shares, network)
    rows = np.argsort(-parts, axis=0, kind="stable")[:MOST_REASONS].T
    cells = rows * k + np.arange(k)[:, None]
    picked = parts.take(cells)
    from_network = network.take(cells) == picked
    whole = np.maximum(shares.sum(axis=0), np.finfo(np.float64).tiny)
    amounts = np.where(from_network, picked, shares.take(cells) / whole[:, None])
    reasons = zip(
        sources.take(rows).ravel().tolist(), from_network.ravel().tolist(), amounts.ravel().tolist(), strict=True
    )
    named = [Reason(item, "network" if run else "counting", amount) for item, run, amount in reasons]
    # The largest come first, so those without a part are the last.
    each, counts = rows.shape[1], np.count_nonzero(picked > 0, axis=1).tolist()
    return tuple(tuple(named[each * place : each * place + count]) for place, count in enumerate(counts))
