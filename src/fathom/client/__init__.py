"""A client for a Fathom server.

    with Client("127.0.0.1:50051") as client:
        answer = client.recommend(["1", "50", "181"], k=5, profile="edge", timeout_s=0.2)
        print(answer.depth, answer.why, [item.title for item in answer.items])

``AsyncClient`` is the same with ``async with`` and ``await``. Over TLS, and with a key for every call:

    Client("recommender.example.org:443", tls=True, metadata={"authorization": "Bearer ..."})

Calls that a server refuses because it is full, starting or draining are tried again by gRPC itself, up to four times
in all, when the server says it is worth it, within the timeout, and only while most calls to that server succeed.
A server that comes back is noticed within about two seconds, however long it was away.

Of several servers, each gets the same users again and again, because it remembers them:

    Client(["10.0.0.7:50051", "10.0.0.8:50051"])
    Client("dns:///recommender-headless:50051", affinity=True)
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Self

from fathom.client import catalogue, experiments, messages
from fathom.client.asynchronous import AsyncCalls
from fathom.client.blocking import BlockingCalls, Sent
from fathom.client.catalogue import CatalogueItem as CatalogueItem
from fathom.client.catalogue import ItemPage as ItemPage
from fathom.client.catalogue import ListedItem as ListedItem
from fathom.client.catalogue import Removed as Removed
from fathom.client.catalogue import Upserted as Upserted
from fathom.client.experiments import Action
from fathom.client.experiments import ArmInfo as ArmInfo
from fathom.client.experiments import ExperimentInfo as ExperimentInfo
from fathom.client.experiments import Outcome as Outcome
from fathom.client.messages import BundleInfo as BundleInfo
from fathom.client.messages import Event as Event
from fathom.client.messages import Interval as Interval
from fathom.client.messages import Item as Item
from fathom.client.messages import Query as Query
from fathom.client.messages import Reason as Reason
from fathom.client.messages import Recommendation as Recommendation
from fathom.client.messages import Reloaded as Reloaded
from fathom.client.messages import Timings as Timings
from fathom.client.messages import error_of as error_of
from fathom.client.rules import Boost as Boost
from fathom.client.rules import Range as Range
from fathom.client.rules import Rules as Rules
from fathom.errors import FathomError

DEFAULT_TIMEOUT_S = 5.0
RELOAD_TIMEOUT_S = 120.0
#: Vectors are made for up to 1,000 items, and all workers wait for each other.
CATALOGUE_TIMEOUT_S = 30.0
#: Messages of a long list of queries that are sent before an answer is waited for: the server need not wait for us.
UNDER_WAY = 2


class Client(BlockingCalls):
    """A blocking client, safe to share between threads; calls take turns on its ``channels`` connections.

    A server of several workers is spread over by several connections. ``tls``, ``certificate``, ``key``, ``metadata``:
    see ``fathom.connection.Connection``.

    ``target``: one server, or a list of several. With a list, or ``affinity``, each user's requests go to one of the
    servers (and connections), whose prefix cache then knows the history, and to the next one while that is away. A
    name then stands for all of its addresses, and is looked up again every 30 seconds and when a server is lost.
    ``affinity_header``: of the metadata in which a hash of the user is sent, for a proxy that balances by it.

    Every method raises ConnectError when no server answers, or a RequestError of ``fathom.errors`` that says what
    the server did not accept.
    """

    def recommend(
        self, items: Sequence[str] = (), *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any
    ) -> Recommendation:
        """The best items for one history, or one ``user_id``; ``options`` are the other fields of Query."""
        return self._call(messages.recommend(Query(items, **options)), timeout_s)

    def recommend_many(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[Recommendation | FathomError]:
        """Up to 1,024 queries in one message; the answer or the error of each, in order."""
        return self._finish_many(self._send_many(messages.recommend_many(queries), timeout_s))

    def recommend_all(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Iterator[Recommendation | FathomError]:
        """Any number of queries; the answer or the error of each, in order, as they come.

        They are read and sent while answers are taken, 32 in a message and two messages at a time, each of which must
        be answered within ``timeout_s``. Costs much less than a call per query, here and in the server.
        """
        under_way: deque[list[Sent]] = deque()
        self._wait(timeout_s)
        try:
            for call in messages.in_parts(queries, self._part):
                under_way.append(self._send_many(call, timeout_s))
                if len(under_way) == UNDER_WAY:
                    yield from self._finish_many(under_way.popleft())
            while under_way:
                yield from self._finish_many(under_way.popleft())
        finally:
            for sent in under_way:
                self._cancel(sent)

    def append_events(self, user_id: str, events: Iterable[Event], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Add up to 10,000 events to the history that the server keeps of a user; returns how many were new.

        An event whose id is known already is ignored, so the same events may be sent again.
        """
        return self._call(messages.append_events(user_id, events), timeout_s)

    def delete_user(self, user_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Make the server forget a user; returns how many events that were."""
        return self._call(messages.delete_user(user_id), timeout_s)

    def upsert_items(
        self, items: Iterable[CatalogueItem], *, bundle: str = "", timeout_s: float = CATALOGUE_TIMEOUT_S
    ) -> Upserted:
        """Add up to 1,000 items to a bundle's catalogue, or change them; what was said of each before is replaced.

        All or none; the same call may be sent again.
        """
        return self._call(catalogue.upsert_items(items, bundle), timeout_s)

    def remove_items(self, ids: Iterable[str], *, bundle: str = "", timeout_s: float = CATALOGUE_TIMEOUT_S) -> Removed:
        """Take up to 1,000 items out of a bundle's catalogue; ids that it does not hold are ignored."""
        return self._call(catalogue.remove_items(ids, bundle), timeout_s)

    def list_items(
        self, page: str = "", *, size: int = 0, bundle: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ItemPage:
        """A page of the items that were added, changed or removed, by id; ``page``: ``next_page`` of the one before.

        ``size``: at most 1,000; 0 means 100.
        """
        return self._call(catalogue.list_items(page, size, bundle), timeout_s)

    def bundle(self, name: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BundleInfo:
        """What the server serves under this name, or by default."""
        return self._call(messages.bundle(name), timeout_s)

    def reload(self, name: str = "", *, timeout_s: float = RELOAD_TIMEOUT_S) -> list[Reloaded]:
        """Make the server replace this bundle, or all, by the newest in its folder; returns when it has."""
        return self._call(messages.reload(name), timeout_s)

    def report_outcomes(self, outcomes: Iterable[Outcome], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Say what users did with up to 1,000 answers; returns how many of it experiments are judged by."""
        return self._call(experiments.report_outcomes(outcomes), timeout_s)

    def experiments(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[ExperimentInfo]:
        """The experiments of the server, and how they stand."""
        return self._call(experiments.list_experiments(), timeout_s)

    def change_experiment(
        self, name: str, action: Action, *, arm: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ExperimentInfo:
        """Start or stop an experiment, or promote an arm, which everybody then gets."""
        return self._call(experiments.change_experiment(name, action, arm), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(AsyncCalls):
    """``Client`` for asyncio: the same methods, awaited."""

    async def recommend(
        self, items: Sequence[str] = (), *, timeout_s: float = DEFAULT_TIMEOUT_S, **options: Any
    ) -> Recommendation:
        return await self._call(messages.recommend(Query(items, **options)), timeout_s)

    async def recommend_many(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[Recommendation | FathomError]:
        return await self._finish_many(await self._send_many(messages.recommend_many(queries), timeout_s))

    async def recommend_all(
        self, queries: Iterable[Query], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> AsyncIterator[Recommendation | FathomError]:
        under_way: deque[list[Sent]] = deque()
        await self._wait(timeout_s)
        try:
            for call in messages.in_parts(queries, self._part):
                under_way.append(await self._send_many(call, timeout_s))
                if len(under_way) == UNDER_WAY:
                    for answer in await self._finish_many(under_way.popleft()):
                        yield answer
            while under_way:
                for answer in await self._finish_many(under_way.popleft()):
                    yield answer
        finally:
            for sent in under_way:
                self._cancel(sent)

    async def append_events(
        self, user_id: str, events: Iterable[Event], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> int:
        return await self._call(messages.append_events(user_id, events), timeout_s)

    async def delete_user(self, user_id: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        return await self._call(messages.delete_user(user_id), timeout_s)

    async def upsert_items(
        self, items: Iterable[CatalogueItem], *, bundle: str = "", timeout_s: float = CATALOGUE_TIMEOUT_S
    ) -> Upserted:
        return await self._call(catalogue.upsert_items(items, bundle), timeout_s)

    async def remove_items(
        self, ids: Iterable[str], *, bundle: str = "", timeout_s: float = CATALOGUE_TIMEOUT_S
    ) -> Removed:
        return await self._call(catalogue.remove_items(ids, bundle), timeout_s)

    async def list_items(
        self, page: str = "", *, size: int = 0, bundle: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ItemPage:
        return await self._call(catalogue.list_items(page, size, bundle), timeout_s)

    async def bundle(self, name: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BundleInfo:
        return await self._call(messages.bundle(name), timeout_s)

    async def reload(self, name: str = "", *, timeout_s: float = RELOAD_TIMEOUT_S) -> list[Reloaded]:
        return await self._call(messages.reload(name), timeout_s)

    async def report_outcomes(self, outcomes: Iterable[Outcome], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        return await self._call(experiments.report_outcomes(outcomes), timeout_s)

    async def experiments(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[ExperimentInfo]:
        return await self._call(experiments.list_experiments(), timeout_s)

    async def change_experiment(
        self, name: str, action: Action, *, arm: str = "", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ExperimentInfo:
        return await self._call(experiments.change_experiment(name, action, arm), timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
