"""A core that two threads of a server share: the event loop's and the engine's. No clock, and no threads.

A thread that wakes while the other runs gets the core after a delay, as the kernel's scheduler has it; the delays are
measured, and drawn at random. Whoever is interrupted has its turn again once the other waits for something, or after
the longest of these delays.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np

#: What happens when a piece of work is done, at so many seconds.
Then = Callable[[float], None]


class Thread(IntEnum):
    """Who works."""

    LOOP = 0
    ENGINE = 1


class SharedCore:
    """Work in pieces, each thread's one after the other; times in seconds.

    ``delays_s``: until a thread that wakes while the other runs gets the core. ``stalls_per_s``: how often per second
    of work the machine takes the core away, for one of ``stalls_s``. ``now_s``, ``busy_s``: the time, and how much of
    it was work.
    """

    def __init__(
        self, delays_s: Sequence[float], stalls_per_s: float, stalls_s: Sequence[float], rng: np.random.Generator
    ) -> None:
        self._delays = _Drawn(delays_s, rng)
        self._slice_s = max(delays_s) or math.inf
        self._stalls_per_s, self._stalls, self._rng = stalls_per_s, _Drawn(stalls_s, rng), rng
        self._until_stall_s = self._next_stall_s()
        self._work: tuple[deque[tuple[float, Then]], ...] = (deque(), deque())
        self._holder: Thread | None = None
        #: When the other thread gets the core, if it wants it.
        self._switch_s = math.inf
        self.now_s = self.busy_s = 0.0

    def does(self, thread: Thread) -> bool:
        """Whether a thread has something to do."""
        return bool(self._work[thread])

    def add(self, thread: Thread, seconds: float, then: Then, *, first: bool = False) -> None:
        """A piece of work for a thread, after all that it has to do, or before it."""
        work = self._work[thread]
        piece = (seconds + self._stalled_s(seconds), then)
        if self._holder is None:
            self._holder = thread
        elif self._holder is not thread and not work:
            self._switch_s = self.now_s + self._delays.next()
        if first:
            work.appendleft(piece)
        else:
            work.append(piece)

    def advance(self, until_s: float) -> None:
        """Work up to a moment; until nothing is left, where it is infinite."""
        while self._holder is not None:
            work, other = self._work[self._holder], Thread(1 - self._holder)
            left_s, then = work[0]
            wants = bool(self._work[other])
            switches = wants and self._switch_s < self.now_s + left_s
            event_s = max(self.now_s, self._switch_s) if switches else self.now_s + left_s
            if event_s > until_s:
                self._run(until_s)
                return
            self._run(event_s)
            if switches:
                self._holder, self._switch_s = other, self.now_s + self._slice_s
                continue
            work.popleft()
            then(self.now_s)
            if not work:
                self._holder = other if self._work[other] else None
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)

    def _run(self, until_s: float) -> None:
        assert self._holder is not None
        work, ran_s = self._work[self._holder], until_s - self.now_s
        work[0] = (max(0.0, work[0][0] - ran_s), work[0][1])
        self.busy_s += ran_s
        self.now_s = until_s

    def _stalled_s(self, seconds: float) -> float:
        """How long the core is taken away during so much work."""
        stalled_s = 0.0
        self._until_stall_s -= seconds
        while self._until_stall_s < 0:
            self._until_stall_s += self._next_stall_s()
            stalled_s += self._stalls.next()
        return stalled_s

    def _next_stall_s(self) -> float:
        return float(self._rng.exponential(1 / self._stalls_per_s)) if self._stalls_per_s else math.inf


class _Drawn:
    """Values drawn at random, many at a time."""

    MANY = 1024

    def __init__(self, values: Sequence[float], rng: np.random.Generator) -> None:
        self._values, self._rng = np.array(values, float), rng
        self._left: list[float] = []

    def next(self) -> float:
        """One of them."""
        if not self._left:
            self._left = self._rng.choice(self._values, self.MANY).tolist()
        return self._left.pop()
