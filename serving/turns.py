"""Heavy work in the event loop is done piece by piece, with other calls between two pieces."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fathom.runtime.shares import Client

#: Rounds of the event loop between two pieces: what another call needs from its message to the queue, and back.
ROUNDS = 4


class Turns:
    """One piece at a time: addresses in turn, the connections of each, and the clients of these.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._busy = False
        self._waiting = _Ring()

    @asynccontextmanager
    async def take(self, client: Client) -> AsyncIterator[None]:
        """Run a piece of a client's work when it is its turn, and then let all other calls have theirs."""
        await self._begin(client)
        try:
            yield
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
        finally:
            self._end()

    async def _begin(self, client: Client) -> None:
        if not self._busy:
            self._busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(client, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._end()  # It was given the turn that nobody wants any more.
            raise

    def _end(self) -> None:
        """Let the next one begin, if any waits."""
        while self._waiting:
            turn = self._waiting.next()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False


class _Ring:
    """Who waits for one of several, or who waits as one."""

    def __init__(self) -> None:
        self._below: OrderedDict[str, _Ring] = OrderedDict()
        self._turns: deque[asyncio.Future[None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._below or self._turns)

    def add(self, path: Sequence[str], turn: "asyncio.Future[None]") -> None:
        """Behind all others of the same path."""
        if path:
            self._below.setdefault(path[0], _Ring()).add(path[1:], turn)
        else:
            self._turns.append(turn)

    def next(self) -> "asyncio.Future[None]":
        """Of whose turn it is, which then comes last."""
        if self._turns:
            return self._turns.popleft()
        key, ring = self._below.popitem(last=False)
        turn = ring.next()
        if ring:
            self._below[key] = ring
        return turn
