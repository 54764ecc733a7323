"""Depth 0 in service: answers by counting alone, at once, and knows how long that takes."""

import random
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.cost import ROOM_P99, STEP_P50, STEP_P99, Quantile
from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import NO_BONUS, Bonus, Indices, ItemFilter, Scores, sum_of
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.reasons import Reasons, reasons_of
from fathom.runtime.rules import Arrangement, Found, Ranking, arrange

#: Answers that are timed at the start, each for as many random items as a history can have.
TIMED = 100
TIMED_K = 10
LEAST_S = 1e-6
#: When nothing was answered for so long, a request that is refused may be refused wrongly.
TRY_AFTER_S = 0.1


class DepthZero:
    """Belongs to one event loop; ``cost_s``: seconds that 99 of 100 answers keep to, known after ``measure``."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._p50: Quantile | None = None
        self._p99: Quantile | None = None
        self._ended_s = -np.inf

    def measure(self, max_history: int) -> None:
        """Time a few answers to histories of ``max_history`` items; the first only warms up."""
        # numpy.random is 2 MB that servers need for nothing else.
        drawn = random.Random(0).choices(range(len(self._counting.popularity)), k=(TIMED + 1) * max_history)
        histories = np.array(drawn, np.int64).reshape(TIMED + 1, max_history)
        took = []
        for history in histories:
            start_s = time.monotonic()
            self._counting.best(history, TIMED_K, ItemFilter(exclude=history))
            took.append(time.monotonic() - start_s)
        p50_s, p99_s = np.quantile(took[1:], (0.5, 0.99)).tolist()
        self._p50 = Quantile(p50_s, share=0.5, step=STEP_P50, least=LEAST_S)
        self._p99 = Quantile(p99_s, share=0.99, step=STEP_P99, least=LEAST_S, room=ROOM_P99)

    @property
    def cost_s(self) -> float:
        """Seconds that 99 of 100 answers keep to."""
        assert self._p99 is not None, "measure() comes first"
        return self._p99.value

    def may_try(self, now_s: float, time_s: float) -> bool:
        """Whether a request should be answered although ``time_s`` is less than ``cost_s``.

        There is nothing that would answer it sooner, so a fair chance is enough: what half of the answers keep to.
        """
        assert self._p50 is not None, "measure() comes first"
        return time_s > 0 and (time_s >= self._p50.value or self._is_stale(now_s))

    def _is_stale(self, now_s: float) -> bool:
        return now_s - self._ended_s > TRY_AFTER_S

    def answer(
        self,
        history: NDArray[np.integer],
        k: int,
        keep: ItemFilter,
        began_s: float,
        *,
        n: int | None = None,
        bonus: Bonus = NO_BONUS,
        arranged: tuple[Arrangement, LiveCatalogue] | None = None,
    ) -> tuple[Indices, Scores]:
        """The k best items for a history (length,), as ``Counting.best``; learns what has gone by since ``began_s``.

        ``arranged``: the rules of the request, and the catalogue that knows what they are about.
        """
        if arranged is None:
            found = self._counting.best(history, k, keep, n=n, bonus=bonus)
        else:
            found = self._arranged(history, k, keep, n, bonus, *arranged)
        ended_s = time.monotonic()
        assert self._p50 is not None, "measure() comes first"
        assert self._p99 is not None, "measure() comes first"
        stale = self._is_stale(began_s)
        for quantile in (self._p50, self._p99):
            quantile.observe(ended_s - began_s, ended_s, probe=stale)
        self._ended_s = ended_s
        return found

    def _arranged(
        self,
        history: NDArray[np.integer],
        k: int,
        keep: ItemFilter,
        n: int | None,
        bonus: Bonus,
        arrangement: Arrangement,
        catalogue: LiveCatalogue,
    ) -> Found:
        own = sum_of(bonus, arrangement.rules.boosts)

        def best(k: int, keep: ItemFilter) -> Found:
            return self._counting.best(history, k, keep, n=n, bonus=own)

        ranking = Ranking(
            best,
            partial(self._counting.scores, history, bonus=own),
            catalogue.vectors.take,
            catalogue.categories,
            catalogue.members,
        )
        return arrange(k, keep, arrangement, ranking)

    def reasons(self, history: NDArray[np.integer], items: Indices) -> Reasons:
        """Which items of a history (length,) some items of its answer are due to; popular ones to none."""
        return reasons_of(history, self._counting.parts(history, items), 1.0)
