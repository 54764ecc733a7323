"""Heavy work in the event loop is done piece by piece, with other calls between two pieces."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from fathom.runtime.shares import Client

Member = TypeVar("Member")

#: Rounds of the event loop between two pieces: what another call needs from its message to the queue, and back.
ROUNDS = 4


class Turns:
    """One piece at a time: addresses in turn, the connections of each, and the clients of these.

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._busy = False
        self._waiting: Ring[asyncio.Future[None]] = Ring()

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
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False


class Ring(Generic[Member]):
    """Those who wait, in turn by the first name of their paths, then by the second, and so on; of one path in order."""

    def __init__(self) -> None:
        self._below: OrderedDict[str, Ring[Member]] = OrderedDict()
        self._members: OrderedDict[Member, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._below or self._members)

    def add(self, path: Sequence[str], member: Member) -> None:
        """Behind all others of the same path."""
        if path:
            self._below.setdefault(path[0], Ring()).add(path[1:], member)
        else:
            self._members[member] = None

    def pop(self) -> Member:
        """Take out whose turn it is; the rest of its path then comes last."""
        if self._members:
            return self._members.popitem(last=False)[0]
        name, ring = self._below.popitem(last=False)
        member = ring.pop()
        if ring:
            self._below[name] = ring
        return member

    def remove(self, path: Sequence[str], member: Member) -> None:
        """Take out one that is in it; the turns of the others stay as they are."""
        if not path:
            del self._members[member]
            return
        ring = self._below[path[0]]
        ring.remove(path[1:], member)
        if not ring:
            del self._below[path[0]]
