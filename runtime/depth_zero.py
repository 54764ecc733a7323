"""Depth 0 in service: answers by counting alone, at once, and knows how long that takes."""

import time

import numpy as np
from numpy.typing import NDArray

from fathom.runtime.cost import ROOM_P99, STEP_P99, Quantile
from fathom.runtime.counting import Counting
from fathom.runtime.item_filter import Indices, ItemFilter, Scores

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
        self._took: Quantile | None = None
        self._ended_s = -np.inf

    def measure(self, max_history: int) -> None:
        """Time a few answers to histories of ``max_history`` items; the first only warms up."""
        histories = np.random.default_rng(0).integers(len(self._counting.popularity), size=(TIMED + 1, max_history))
        took = []
        for history in histories:
            start_s = time.monotonic()
            self._counting.best(history, TIMED_K, ItemFilter(exclude=history))
            took.append(time.monotonic() - start_s)
        p99_s = float(np.quantile(took[1:], 0.99))
        self._took = Quantile(p99_s, share=0.99, step=STEP_P99, least=LEAST_S, room=ROOM_P99)

    @property
    def cost_s(self) -> float:
        """Seconds that 99 of 100 answers keep to."""
        assert self._took is not None, "measure() comes first"
        return self._took.value

    def may_try(self, now_s: float, time_s: float) -> bool:
        """Whether a request should be answered although the estimate says that ``time_s`` is too short."""
        return time_s > 0 and now_s - self._ended_s > TRY_AFTER_S

    def answer(self, history: NDArray[np.integer], k: int, keep: ItemFilter, began_s: float) -> tuple[Indices, Scores]:
        """The k best items for a history (length,), as ``Counting.best``; learns what has gone by since ``began_s``."""
        found = self._counting.best(history, k, keep)
        ended_s = time.monotonic()
        assert self._took is not None, "measure() comes first"
        self._took.observe(ended_s - began_s, ended_s, probe=self.may_try(ended_s, 1.0))
        self._ended_s = ended_s
        return found
