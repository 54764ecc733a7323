"""Appends events to a store of histories and prints each that is done: python -m ... SETTING EVENTS AT_ONCE USERS."""

import asyncio
import sys

from fathom.serving.history.contract import Retention, StoredEvent
from fathom.serving.history.open import open_history


async def append_all(setting: str, events: int, at_once: int, users: int) -> None:
    """``events`` events, ``at_once`` of them at a time; a number is printed when its append has returned."""
    store = open_history(setting, Retention(events))
    assert store is not None

    async def append(number: int) -> None:
        await store.append(f"user-{number % users}", [StoredEvent(f"e{number}", "item", number)])
        print(number, flush=True)

    for first in range(0, events, at_once):
        await asyncio.gather(*(append(first + each) for each in range(at_once)))


if __name__ == "__main__":
    asyncio.run(append_all(sys.argv[1], *map(int, sys.argv[2:])))
