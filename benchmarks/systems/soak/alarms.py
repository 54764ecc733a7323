"""What the workers of a server say of their certificate while the traffic changes and changes back."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from fathom.client import AsyncClient
from fathom.errors import FathomError

LOOK_EVERY_S = 2.0


class Alarms:
    """Asks on every connection, so that every worker is asked; ``shifted``: whether the traffic is another one now.

    Answers count, not alarms: a reload ends an alarm, and the next one is raised anew.
    """

    def __init__(self, client: AsyncClient, channels: int) -> None:
        self._client, self._channels = client, channels
        self.shifted = False
        self._began_s: float | None = None
        self._is_certified = False
        self._answers = {False: 0, True: 0}
        self._alarmed = {False: 0, True: 0}
        self._recertified = {False: 0, True: 0}
        self._first_s: dict[str, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            for _ in range(self._channels):
                with suppress(FathomError):  # Calls of this kind are judged elsewhere.
                    await self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        shifted, now_s = self.shifted, time.perf_counter()
        if shifted and self._began_s is None:
            self._began_s = now_s
        info = await self._client.bundle()
        self._is_certified |= info.certified or bool(info.recertified)
        self._answers[shifted] += 1
        self._alarmed[shifted] += info.alarm
        self._recertified[shifted] += bool(info.recertified)
        if shifted and self._began_s is not None:
            for name, holds in (("alarm", info.alarm), ("recertified", bool(info.recertified))):
                if holds:
                    self._first_s.setdefault(name, time.perf_counter() - self._began_s)

    def found(self) -> dict[str, Any]:
        """Of the time with the bundle's traffic and of that with another: answers, and how many of them said what.

        ``first_s``: seconds from the change to the first answer that said so.
        """
        return {
            "certified": self._is_certified,
            **{
                name: {
                    "answers": self._answers[shifted],
                    "alarm": self._alarmed[shifted],
                    "recertified": self._recertified[shifted],
                }
                for name, shifted in (("as certified", False), ("changed", True))
            },
            "first_s": {name: round(seconds, 1) for name, seconds in self._first_s.items()},
        }
