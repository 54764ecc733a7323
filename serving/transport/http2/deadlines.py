"""Ends calls whose deadline has passed, with one timer for all of them."""

import asyncio
import heapq
import math
import time
from collections.abc import Callable

from fathom.serving.transport.http2.call import Http2Call

#: How late a call may be ended, in seconds, up to so many seconds of time that it had.
STEPS = ((0.01, 10.0), (1.0, 1_000.0), (60.0, math.inf))
#: How far ahead is looked: calls that have more time are looked at again then.
AHEAD_S = 86_400.0


class Deadlines:
    """Belongs to one event loop, and is used from there. ``expire`` is called for each call that is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[Http2Call], None]) -> None:
        self._loop = loop
        self._expire = expire
        #: The calls of each moment, and the moments in order.
        self._calls: dict[float, set[Http2Call]] = {}
        self._moments: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Http2Call, deadline_s: float) -> None:
        """Expire it at its deadline, seconds of ``time.monotonic``, or a little later."""
        had_s = deadline_s - call.begun_s
        deadline_s = min(deadline_s, time.monotonic() + AHEAD_S) if had_s > AHEAD_S else deadline_s
        step_s = STEPS[0][0] if had_s <= STEPS[0][1] else next(step for step, most in STEPS if had_s <= most)
        moment_s = (deadline_s // step_s + 1) * step_s
        calls = self._calls.get(moment_s)
        if calls is None:
            calls = self._calls[moment_s] = set()
            heapq.heappush(self._moments, moment_s)
            if self._moments[0] == moment_s:
                self._wait(moment_s)
        calls.add(call)
        call.due_s = moment_s

    def discard(self, call: Http2Call) -> None:
        """It has ended."""
        if call.due_s is not None:
            if (calls := self._calls.get(call.due_s)) is not None:
                calls.discard(call)
            call.due_s = None

    def close(self) -> None:
        """Expire nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, moment_s: float) -> None:
        self.close()
        self._timer = self._loop.call_later(max(0.0, moment_s - time.monotonic()), self._look)

    def _look(self) -> None:
        now_s = time.monotonic()
        while self._moments and self._moments[0] <= now_s:
            for call in self._calls.pop(heapq.heappop(self._moments)):
                call.due_s = None
                if call.deadline_s is not None and call.deadline_s > now_s:
                    self.add(call, call.deadline_s)
                else:
                    self._expire(call)
        if self._moments:
            self._wait(self._moments[0])
