"""How many calls the event loop can begin: who is behind must not spend its time on calls that it cannot answer."""

import math
import time
from collections.abc import Callable

#: Calls that have arrived together may keep the event loop for TURN_S; those that can wait are begun in later turns.
#: Where that is not enough for BEHIND_S without a break, the server is behind, and of those that cannot wait only as
#: many are begun as it has proved able to answer, and a few more.
TURN_S, BEHIND_S = 0.005, 0.1
#: How many more than were let in the last time, to find out whether it has become better.
MORE, SHARE = 4, 1.25
#: So many are never too many.
FEW = 16
#: Weight of the newest turn in the estimates.
STEP = 0.2


class Intake:
    """Used from one event loop. ``clock``: seconds, as ``time.monotonic``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._behind_since_s = math.inf
        self._each_s = 0.0
        self._let_in = float(FEW)

    @property
    def behind(self) -> bool:
        """Whether calls that have arrived may have to be refused before they are decoded."""
        return self._clock() - self._behind_since_s > BEHIND_S

    def note(self, began_s: float, begun: int, let_in: int, refused: int, *, left: bool) -> int | None:
        """A turn that began then has ended; returns how many calls there is room for until the next, None: any number.

        ``let_in``: of those that were begun, how many were not refused after all. ``refused``: before they were begun.
        ``left``: whether any wait for the next turn.
        """
        now_s = self._clock()
        took_s = now_s - began_s
        if begun:
            self._each_s += STEP * (took_s / begun - self._each_s)
            self._let_in += STEP * (let_in - self._let_in)
        if not (refused or left) and (begun <= FEW or took_s <= TURN_S):
            self._behind_since_s = math.inf
            return None
        self._behind_since_s = min(self._behind_since_s, began_s)
        if now_s - self._behind_since_s <= BEHIND_S:
            return None
        return MORE + int(min(SHARE * self._let_in, TURN_S / max(self._each_s, 1e-6)))
