"""Between replicas: what one was told and all must know, as the workers of a server tell each other."""

import asyncio
import time

from fathom.serving.workers import ANSWER_S, Notice

#: The actor's name in its deployment.
NAME = "notices"
# So long a replica waits for notices in one call; one that has not asked for twice as long is gone.
WAIT_S = 5.0


class Notices:
    """An actor that all replicas of a deployment share: each waits for notices, and confirms them by asking again."""

    def __init__(self) -> None:
        # Of another actor's numbers, should this one take its place, none is newer.
        self._last = time.time_ns()
        self._notices: list[tuple[str, Notice]] = []
        self._done: dict[str, int] = {}
        self._seen_s: dict[str, float] = {}
        self._changed = asyncio.Condition()

    async def wait(self, replica: str, done: int | None) -> tuple[int, list[Notice]]:
        """What ``replica`` is to do next, and the number to confirm it with; ``done``: that of the last time, or None.

        Waits up to WAIT_S for something.
        """
        async with self._changed:
            self._done[replica] = self._last if done is None else done
            self._seen_s[replica] = time.monotonic()
            self._changed.notify_all()
            after = self._done[replica]
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._changed.wait_for(lambda: self._last > after)
            except TimeoutError:
                pass
            return self._last, [each for sender, each in self._notices if each.number > after and sender != replica]

    async def tell(self, replica: str, what: str, name: str) -> int:
        """Let all others know; returns how many of them have not done it in time."""
        async with self._changed:
            self._forget_lost()
            self._last += 1
            self._notices.append((replica, Notice(self._last, what, name)))
            number = self._last
            self._changed.notify_all()
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._changed.wait_for(lambda: not self._behind(number, replica))
            except TimeoutError:
                pass
            return self._behind(number, replica)

    def _behind(self, number: int, but: str) -> int:
        return sum(done < number for replica, done in self._done.items() if replica != but)

    def _forget_lost(self) -> None:
        lost = [each for each, seen_s in self._seen_s.items() if time.monotonic() - seen_s > 2 * WAIT_S]
        for each in lost:
            del self._done[each], self._seen_s[each]
        oldest = min(self._done.values(), default=self._last)
        self._notices = [each for each in self._notices if each[1].number > oldest]
