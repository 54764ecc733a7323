"""What a soak asks for: users whose histories grow and begin again, and the four kinds of calls of the plain soak."""

import random
from collections.abc import Callable, Coroutine, Sequence
from itertools import cycle
from typing import Any, Protocol

from fathom.client import AsyncClient, Event, Query, Recommendation
from fathom.errors import FathomError

SEED = 0
GROWS = 20
LONGEST = 180
BATCH_LENGTHS = 5, 20, 50

#: Seconds since 1970 of so many new events.
Clock = Callable[[int], Sequence[int]]


class Traffic(Protocol):
    """Random calls, none of which leaves more behind than the one of its kind before it."""

    async def prepare(self) -> None:
        """Give the server what the calls are about."""

    def pick(self) -> tuple[str, Coroutine[Any, Any, None]]:
        """The next call: its kind, and what makes it. Awaited, it raises FathomError where the call fails."""
        ...


class User:
    """Somebody whose history grows: here by up to GROWS items, on the server for ever; ``clock`` dates the events."""

    def __init__(self, user_id: str, history: list[str], rng: random.Random, clock: Clock = range) -> None:
        self.user_id = user_id
        self._rng = rng
        self._clock = clock
        self._items = history
        self._first = min(len(history), LONGEST)
        self._here = rng.randrange(GROWS)

    @property
    def history(self) -> list[str]:
        """It as it is now."""
        return self._items[: self._first] + self._items[: self._here]

    def grow(self) -> list[str]:
        """It with one item more."""
        self._here = (self._here + 1) % GROWS
        return self.history

    def events(self, count: int) -> list[Event]:
        """New events for the server."""
        return [Event(uuid(self._rng), self._rng.choice(self._items), when) for when in self._clock(count)]

    async def append(self, client: AsyncClient, count: int) -> None:
        """So many events more on the server."""
        await client.append_events(self.user_id, self.events(count))


class LikeTrained(User):
    """One whose history grows by what the user really had next, as those do that a certificate is made from."""

    @property
    def history(self) -> list[str]:
        """It as it is now."""
        return self._items[: max(1, min(len(self._items), LONGEST + GROWS) - GROWS) + self._here]


def uuid(rng: random.Random) -> str:
    """An id that does not come twice."""
    return f"{rng.getrandbits(128):032x}"


def answered(results: Sequence[Recommendation | FathomError]) -> None:
    """Raises the first error of a batch or stream."""
    for each in results:
        if isinstance(each, FathomError):
            raise each


def users_of(
    histories: Sequence[list[str]],
    rng: random.Random,
    kind: type[User] = User,
    clock: Callable[[], Clock] = lambda: range,
) -> list[User]:
    """One for each history that is not empty, in a random order; ``clock`` makes each user's own."""
    users = [kind(f"user-{number}", history, rng, clock()) for number, history in enumerate(histories) if history]
    rng.shuffle(users)
    return users


class PlainTraffic:
    """Four kinds, a quarter each."""

    def __init__(self, client: AsyncClient, histories: list[list[str]]) -> None:
        self._client = client
        self._random = random.Random(SEED)
        self._users = users_of(histories, self._random)
        self._turn = cycle(self._users)
        self._kinds = {
            "history": self._history,
            "returning": self._returning,
            "user_id": self._user_id,
            "batch": self._batch,
        }

    async def prepare(self) -> None:
        """Give the server its users."""
        for user in self._users:
            await user.append(self._client, GROWS)

    def pick(self) -> tuple[str, Coroutine[Any, Any, None]]:
        """Any of the four."""
        kind = self._random.choice([*self._kinds])
        return kind, self._kinds[kind](next(self._turn))

    async def _history(self, user: User) -> None:
        await self._client.recommend(user.history)

    async def _returning(self, user: User) -> None:
        await self._client.recommend(user.grow())

    async def _user_id(self, user: User) -> None:
        await user.append(self._client, 1)
        await self._client.recommend(user_id=user.user_id)

    async def _batch(self, user: User) -> None:
        answered(await self._client.recommend_many([Query(user.history[-length:]) for length in BATCH_LENGTHS]))
