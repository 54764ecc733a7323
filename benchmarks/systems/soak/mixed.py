"""Calls of all kinds, in fixed shares: every method of the service but Reload, which the disturber calls.

Nothing grows: users, sessions and ids of items come again, messages have fixed sizes, the server keeps GROWS events of
a user, and what a call adds it takes out again or replaces. Three promises of the server are looked after on the way,
each a WrongAnswerError where it is broken: a deleted user is forgotten, expired events are not used, and an item is
returned once it was added and no more once it was removed, by every worker that was not counted as behind.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeVar

from fathom.benchmarks.systems.soak.streams import Streams
from fathom.benchmarks.systems.soak.traffic import (
    BATCH_LENGTHS,
    GROWS,
    SEED,
    LikeTrained,
    User,
    answered,
    users_of,
    uuid,
)
from fathom.client import AsyncClient, Boost, BundleInfo, CatalogueItem, Event, Outcome, Query, Range, Rules
from fathom.client.experiments import Action
from fathom.errors import FathomError
from fathom.protos.fathom.v1 import recommender_pb2 as pb

T = TypeVar("T")

#: Of a hundred calls.
SHARES: Mapping[str, int] = {
    "history": 17,
    "returning": 12,
    "user_id": 12,
    "append": 10,
    "depth": 5,
    "profile": 5,
    "filter": 6,
    "rules": 3,
    "reasons": 2,
    "session": 6,
    "batch": 6,
    "stream": 4,
    "append_stream": 3,
    "forget": 2,
    "expire": 2,
    "items": 1,
    "update": 1,
    "list": 1,
    "experiments": 1,
    "bundle": 1,
}
#: Users that are deleted again and again, and those whose events expire.
FORGOTTEN, EXPIRING = 64, 16
SESSIONS = 500
#: Messages of items that come and go, and items in each.
MESSAGES, PART = 32, 10
PRICE, CATEGORY = "price", "soak"
#: Days that the server keeps events, and seconds that an expiring user's have left of them.
DAYS, LEFT_S = 1, 45.0
DAY_S = 86_400
#: By how much the clocks of seconds of both sides may differ.
ABOUT_S = 2.0
#: Seconds in which all workers give an experiment's arms, and answers in a row that show it: some on every connection.
FOLLOW_S, AT_ONCE = 10.0, 32
#: The file of experiments; the second is started and stopped all the time.
TRIED, TOGGLED = "tried", "toggled"
EXPERIMENTS: Mapping[str, Any] = {
    "salt": "a-salt-of-benchmarks",
    "experiments": {
        TRIED: {
            "unit": "session",
            "arms": {"control": {"share": 0.5}, "shallower": {"share": 0.5, "max_depth": 8}},
            "shadows": {"deepest": {"share": 0.1, "policy": "deepest"}},
            "primary": {"outcome": "click"},
        },
        TOGGLED: {
            "unit": "session",
            "arms": {"control": {"share": 0.5}, "twin": {"share": 0.5}},
            "primary": {"outcome": "click"},
        },
    },
}
#: All of the service.
METHODS = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["Recommender"].methods)


class WrongAnswerError(FathomError):
    """An answer that the server promises never to give."""


def expect(holds: bool, what: str) -> None:
    """Raises WrongAnswerError where it does not hold."""
    if not holds:
        raise WrongAnswerError(what)


class Dated:
    """The clock of a user whose events are dated: each later than the one before, and than a deletion just now."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self, number: int) -> Sequence[int]:
        first = max(int(time.time() + ABOUT_S), self._last + 1)
        self._last = first + number - 1
        return range(first, first + number)


class MixedTraffic:
    """Random calls of all kinds. ``known``: ids of the bundle's items; ``info``: what the server says of itself.

    ``shifted``: histories that requests bring are of other items (item i is replaced by item p(i), for one random
    permutation p), as of a shop whose customers have changed. ``called``: how often each method was answered.
    """

    def __init__(
        self, client: AsyncClient, address: str, histories: list[list[str]], known: Sequence[str], info: BundleInfo
    ) -> None:
        self._client, self._streams, self._known, self._info = client, Streams(address), known, info
        self._random = random.Random(SEED)
        self._users = users_of(histories, self._random, LikeTrained, Dated)
        self._turn = cycle(self._users)
        self._other = dict(zip(known, self._random.sample(known, len(known)), strict=True))
        self.shifted = False
        self.called: Counter[str] = Counter()
        self._kinds = [*SHARES], [*SHARES.values()]
        self._depths, self._profiles = cycle(info.depths), cycle(info.profiles)
        self._all_filters, self._all_rules = cycle(self._filters()), cycle(self._arrangements())
        self._sessions, self._prices = cycle(range(SESSIONS)), cycle(range(1, 101))
        self._toggles: cycle[Action] = cycle(("stop", "start"))
        # Whoever takes one out has it alone until it is back.
        self._forgotten: asyncio.Queue[User] = asyncio.Queue()
        self._expiring: asyncio.Queue[tuple[str, float, bool]] = asyncio.Queue()
        self._messages: asyncio.Queue[list[str]] = asyncio.Queue()

    def _filters(self) -> list[dict[str, Any]]:
        some = self._known[:100]
        return [
            {"exclude": some},
            {"include_seen": True},
            {"allow": some, "include_seen": True},
            {"categories": (CATEGORY,)},
            {"ranges": (Range(PRICE, at_least=1, at_most=100),)},
        ]

    def _arrangements(self) -> list[Rules]:
        item, other, *_ = self._known
        return [
            Rules(pins={1: item}, boosts=[Boost(0.1, item_id=other)]),
            Rules(boosts=[Boost(0.1, category=CATEGORY)], caps={CATEGORY: 2}),
            Rules(diversity=0.3),
        ]

    async def prepare(self) -> None:
        """Give the server its users and items, and start its experiment."""
        for user in self._users:
            await user.append(self._client, GROWS)
        for number in range(FORGOTTEN):
            user = User(f"forgotten-{number}", self._users[number % len(self._users)].history, self._random, Dated())
            await user.append(self._client, GROWS)
            self._forgotten.put_nowait(user)
        for number in range(EXPIRING):
            until_s = await self._begin_expiring(f"expiring-{number}")
            self._expiring.put_nowait((f"expiring-{number}", until_s, True))
        for number in range(MESSAGES):
            self._messages.put_nowait([f"soak-{number}-{place}" for place in range(PART)])
        await self._update(self._users[0])
        for name in (TRIED, TOGGLED):
            await self._counted("ChangeExperiment", self._client.change_experiment(name, "start"))
        await self._all_follow()

    async def _all_follow(self) -> None:
        """Until every worker gives arms: the one that was not called hears of it a moment later."""
        following = 0
        async with asyncio.timeout(FOLLOW_S):
            while following < AT_ONCE:
                answer = await self._recommend(self._users[0].history, session_id="visit-0")
                following = following + 1 if TRIED in answer.experiments else 0

    def pick(self) -> tuple[str, Coroutine[Any, Any, None]]:
        """Any of them, by SHARES."""
        (kind,) = self._random.choices(*self._kinds)
        call: Callable[[User], Coroutine[Any, Any, None]] = getattr(self, f"_{kind}")
        return kind, call(next(self._turn))

    async def close(self) -> None:
        """Close its own connections."""
        await self._streams.close()

    async def _counted(self, method: str, call: Awaitable[T]) -> T:
        answer = await call
        self.called[method] += 1
        return answer

    def _seen(self, items: Sequence[str]) -> list[str]:
        return [self._other.get(item, item) for item in items] if self.shifted else [*items]

    async def _recommend(self, items: Sequence[str] = (), **options: Any) -> Any:
        return await self._counted("Recommend", self._client.recommend(self._seen(items), **options))

    async def _appended(self, user: User, number: int) -> None:
        await self._counted("AppendEvents", user.append(self._client, number))

    # A call of each kind, by its name in SHARES.

    async def _history(self, user: User) -> None:
        await self._recommend(user.history)

    async def _returning(self, user: User) -> None:
        await self._recommend(user.grow())

    async def _user_id(self, user: User) -> None:
        answer = await self._recommend(user_id=user.user_id)
        expect(answer.history_used > 0, "a user's history was not used")

    async def _append(self, user: User) -> None:
        await self._appended(user, 1)

    async def _depth(self, user: User) -> None:
        depth = next(self._depths)
        answer = await self._recommend(user.history, depth=depth)
        expect(answer.depth == depth, "another depth than was asked for")

    async def _profile(self, user: User) -> None:
        await self._recommend(user.history, profile=next(self._profiles))

    async def _filter(self, user: User) -> None:
        answer = await self._recommend(user.history, **next(self._all_filters))
        expect(bool(answer.items), "a filter has left nothing")

    async def _rules(self, user: User) -> None:
        await self._recommend(user.history, rules=next(self._all_rules))

    async def _reasons(self, user: User) -> None:
        await self._recommend(user.history, reasons=True)

    async def _session(self, user: User) -> None:
        answer = await self._recommend(user.history, session_id=f"visit-{next(self._sessions)}")
        expect(TRIED in answer.experiments, "an answer is no part of the experiment that runs")
        click = Outcome(answer.request_id, "click", item_id=answer.items[0].id)
        await self._counted("ReportOutcomes", self._client.report_outcomes([click]))

    def _queries(self, user: User) -> list[Query]:
        return [Query(self._seen(user.history[-length:])) for length in BATCH_LENGTHS]

    async def _batch(self, user: User) -> None:
        answered(await self._counted("RecommendBatch", self._client.recommend_many(self._queries(user))))

    async def _stream(self, user: User) -> None:
        answered(await self._counted("RecommendStream", self._streams.recommend(self._queries(user))))

    async def _append_stream(self, user: User) -> None:
        messages = [(each.user_id, each.events(1)) for each in (user, next(self._turn))]
        await self._counted("AppendEventStream", self._streams.append(messages))

    async def _forget(self, _: User) -> None:
        user = await self._forgotten.get()
        try:
            await self._counted("DeleteUser", self._client.delete_user(user.user_id))
            answer = await self._recommend(user_id=user.user_id)
            expect(answer.reason == "popular", "a deleted user is remembered")
            await self._appended(user, GROWS)
        finally:
            self._forgotten.put_nowait(user)

    async def _begin_expiring(self, user_id: str) -> float:
        """Give a user events that have LEFT_S seconds left; returns when they expire, in seconds since 1970."""
        until_s = time.time() + LEFT_S
        # Always the same items, so that what is counted of those that come and go is bounded.
        items = [*self._known[: GROWS - 1], "soak-0-0"]
        events = [Event(uuid(self._random), item, int(until_s) - DAYS * DAY_S) for item in items]
        await self._counted("AppendEvents", self._client.append_events(user_id, events))
        return until_s

    async def _expire(self, _: User) -> None:
        user_id, until_s, is_sure = await self._expiring.get()
        # Where a call fails, events may have been stored or not; they have expired by then in any case.
        back = user_id, time.time() + LEFT_S, False
        try:
            is_over = time.time() > until_s + ABOUT_S
            answer = await self._recommend(user_id=user_id)
            if is_over:
                expect(answer.reason == "popular", "events are used that have expired")
                back = user_id, await self._begin_expiring(user_id), True
            else:
                is_early = is_sure and time.time() < until_s - ABOUT_S
                expect(answer.history_used > 0 or not is_early, "events are not used that have not expired yet")
                back = user_id, until_s, is_sure
        finally:
            self._expiring.put_nowait(back)

    def _items_of(self, ids: Sequence[str]) -> list[CatalogueItem]:
        """Always alike but for the price: an item whose title changes is another one to requests that are under way."""
        price, like = float(next(self._prices)), self._known[0]
        return [CatalogueItem(each, "Soak", (CATEGORY,), {PRICE: price}, similar=(like,)) for each in ids]

    async def _items(self, user: User) -> None:
        ids = await self._messages.get()
        try:
            added = await self._counted("UpsertItems", self._client.upsert_items(self._items_of(ids)))
            there = await self._recommend(user.history, allow=ids, include_seen=True)
            expect(bool(added.workers_behind) or len(there.items) == PART, "added items are not returned")
            removed = await self._counted("RemoveItems", self._client.remove_items(ids))
            gone = await self._recommend(user.history, allow=ids, include_seen=True)
            expect(bool(removed.workers_behind) or not gone.items, "removed items are returned")
        finally:
            self._messages.put_nowait(ids)

    async def _update(self, _: User) -> None:
        ids = [f"kept-{place}" for place in range(PART)]
        await self._counted("UpsertItems", self._client.upsert_items(self._items_of(ids)))

    async def _list(self, _: User) -> None:
        page = await self._counted("ListItems", self._client.list_items(size=PART))
        expect(bool(page.items), "no changed items are listed")

    async def _experiments(self, _: User) -> None:
        found = await self._counted("ListExperiments", self._client.experiments())
        expect(len(found) == len(EXPERIMENTS["experiments"]), "an experiment is missing")
        await self._counted("ChangeExperiment", self._client.change_experiment(TOGGLED, next(self._toggles)))

    async def _bundle(self, _: User) -> None:
        info = await self._counted("GetBundle", self._client.bundle())
        expect(info.name == self._info.name, "another bundle is served")
