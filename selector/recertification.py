"""Certifies a routing anew, from live requests that were run at every depth.

The promise stays what it was: over all requests, answers lack on average no larger share of the deepest depth's top 10
than before. Let a be the agreement of depth d with the deepest. Where a share w of the requests gets depth d, and the
rest the deepest, answers lack w (1 - a). So a lower bound of a gives the largest w, and one bound for each depth tells
all about such mixtures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fathom.selector.certificate import at_least
from fathom.selector.routing import Mixture
from fathom.selector.schema import Floats

#: Requests that the first attempt takes; each later one takes twice as many, up to the largest.
FIRST_ATTEMPT, LARGEST_ATTEMPT = 500, 8_000
#: A routing that saves less of the deepest depth's cost is not worth certifying.
LEAST_SAVED = 0.01


class Recertified(NamedTuple):
    """``agreement``: the least that is promised of requests at the shallower depth. ``saved``: share of the cost."""

    routing: Mixture
    agreement: float
    saved: float


class Recertification:
    """Gathers evidence, and attempts to certify from it: each attempt from its own.

    The n-th is at level alpha / (n (n + 1)), so all together are wrong with probability at most ``alpha``. ``depths``:
    ascending. ``costs_ms``: depth -> milliseconds of a request; a depth without is not chosen.
    """

    def __init__(self, depths: Sequence[int], costs_ms: Mapping[int, float], alpha: float) -> None:
        self.attempts = 0
        self.succeeded = 0
        self._depths = depths
        self._costs_ms = costs_ms
        self._alpha = alpha
        self._agreements: list[Sequence[float]] = []

    @property
    def gathered(self) -> int:
        """Requests since the last attempt."""
        return len(self._agreements)

    @property
    def needed(self) -> int:
        """Requests that the next attempt takes."""
        return min(FIRST_ATTEMPT << self.attempts, LARGEST_ATTEMPT)

    def add(self, agreements: Sequence[float]) -> bool:
        """Take the agreement of each shallower depth with the deepest, of one request; whether an attempt is due."""
        self._agreements.append(agreements)
        return self.gathered >= self.needed

    def attempt(self, allowed: float) -> Recertified | None:
        """The cheapest routing whose answers are shown to lack at most ``allowed``, 0 to 1; None where none is."""
        self.attempts += 1
        level = self._alpha / (self.attempts * (self.attempts + 1))
        gathered, self._agreements = np.array(self._agreements), []
        found = certify_again(gathered, self._depths, self._costs_ms, allowed=allowed, level=level)
        self.succeeded += found is not None
        return found


def certify_again(
    agreements: Floats, depths: Sequence[int], costs_ms: Mapping[int, float], *, allowed: float, level: float
) -> Recertified | None:
    """The cheapest mixture of the deepest and one other depth, wrong with probability at most ``level``; None for none.

    ``agreements``: of every depth but the deepest, (n, depths - 1), 0 to 1, in the order in which the requests came.
    """
    found = []
    for depth, values in zip(depths, agreements.T, strict=False):
        if depth not in costs_ms:
            continue
        # Any of the other depths' bounds may be wrong too.
        low = at_least(values, level=level / (len(depths) - 1))
        share = math.floor(100 * min(1.0, allowed / max(1 - low, 1e-12))) / 100
        saved = share * (1 - costs_ms[depth] / costs_ms[depths[-1]])
        # Up to a share of ``allowed`` nothing was shown: such answers lack no more whatever the depth gives.
        if share > allowed and saved >= LEAST_SAVED:
            shares = {depth: share, depths[-1]: 1 - share}
            routing = Mixture("mixture", tuple(depths), tuple(shares.get(each, 0.0) for each in depths))
            found.append(Recertified(routing, 1 - allowed / share, saved))
    return max(found, key=lambda each: each.saved, default=None)
