"""Opens once the server is warm, closes when it drains, and counts the calls in progress."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fathom.errors import UnavailableError


class Gate:
    """Starting -> serving -> draining; used from one event loop only."""

    def __init__(self) -> None:
        self.state = "starting"
        self.in_flight = 0
        self._scopes: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def open(self) -> None:
        """From now on calls are let in."""
        self.state = "serving"

    def enter(self) -> None:
        """Count a call as in flight until ``leave``; raises UnavailableError unless the server is serving."""
        if self.state != "serving":
            raise UnavailableError(f"the server is {self.state}; use another one, or try again later")
        self.in_flight += 1
        self._empty.clear()

    def leave(self) -> None:
        """A call has ended."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._empty.set()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()

    @asynccontextmanager
    async def until_closing(self) -> AsyncIterator[None]:
        """Run the block until it ends or the gate closes, which interrupts it with UnavailableError."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            raise UnavailableError("the server is draining; use another one") from None

    async def drain(self, timeout_s: float) -> int:
        """Refuse new calls, wait for those in progress, and return how many remain after ``timeout_s``."""
        self.state = "draining"
        for scope in self._scopes:
            scope.reschedule(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return self.in_flight
