"""What the workers of a server say of their certificate while the traffic changes and changes back."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from fathom.client import AsyncClient
from fathom.errors import FathomError

LOOK_EVERY_S = 2.0


class Alarms:
    """Asks on every connection, so that every worker is asked; ``shifted``: whether the traffic is another one now.

    Answers count, not alarms: a reload ends an alarm, and the next one is raised anew. What is said of a version that
    said so before the traffic changed is not due to that, so it is not counted as new.
    """

    def __init__(self, client: AsyncClient, channels: int) -> None:
        self._client, self._channels = client, channels
        self.shifted = False
        self._began_s: float | None = None
        self._is_certified = False
        self._answers = {False: 0, True: 0}
        self._alarmed = {False: 0, True: 0}
        self._recertified = {False: 0, True: 0}
        #: Versions whose certificate did not fit before.
        self._unfit: set[str] = set()
        self._new: Counter[str] = Counter()
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
        if not shifted and (info.alarm or info.recertified):
            self._unfit.add(info.version)
        if shifted and self._began_s is not None and info.version not in self._unfit:
            for name, holds in (("alarm", info.alarm), ("recertified", bool(info.recertified))):
                if holds:
                    self._new[name] += 1
                    self._first_s.setdefault(name, time.perf_counter() - self._began_s)

    def found(self) -> dict[str, Any]:
        """Of the time with the bundle's traffic and of that with another: answers, and how many of them said what.

        ``new``: how many of the latter are of versions that did not say so before; ``first_s``: seconds from the change
        to the first of them.
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
            "new": {name: self._new[name] for name in ("alarm", "recertified")},
            "first_s": {name: round(seconds, 1) for name, seconds in self._first_s.items()},
        }
