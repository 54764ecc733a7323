"""The event loop of a server, and how it shares the interpreter with the engine's thread."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

#: How long the event loop may keep the interpreter while the engine waits for it. By default that is 5 ms, in which an
#: engine of a millisecond a batch stands still most of the time.
SWITCH_INTERVAL_S = 0.00005


def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run`` on the fastest event loop that is installed: uvloop, or asyncio's own where there is none."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):  # there is none for Windows
        import uvloop

        factory = uvloop.new_event_loop
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
