"""The server behind the console: only calls that change nothing there."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToDict

from fathom.client import AsyncClient, Recommendation, error_of
from fathom.connection import Connection
from fathom.console.answers import reasons_of, side_by_side
from fathom.console.items import ItemIndex, TitledItem
from fathom.console.question import PATIENCE_S, Question
from fathom.errors import FathomError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

#: Of one page of the catalogue; the most that a request may ask for.
PAGE = 1_000
#: Items that can be searched: what is left out of a request, to get the next page, has a limit.
MOST_ITEMS = 10_000
#: How long titles are kept before they are read again.
TITLES_S = 300.0
#: As the client's own: a server that comes back is noticed within about two seconds.
RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Gateway:
    """Asks one server; ``async with`` opens and closes its connections.

    Its methods raise ConnectError or a RequestError, as the client does.
    """

    def __init__(self, connection: Connection) -> None:
        self.target = connection.target
        self._connection = connection
        self._reading = asyncio.Lock()
        # By the bundle's name: when they were read, and the items.
        self._indexes: dict[str, tuple[float, ItemIndex]] = {}

    async def __aenter__(self) -> Self:
        self._client = AsyncClient.over(self._connection)
        self._channel = self._connection.aio_channel(RECONNECT)
        stub: Any = recommender_pb2_grpc.RecommenderStub
        self._stub = stub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._channel.close(None)

    async def bundle(self, name: str = "") -> dict[str, Any]:
        """All that GetBundle says, under the names of recommender.proto, with depths in order."""
        try:
            message = await self._stub.GetBundle(
                pb.GetBundleRequest(bundle=name), timeout=PATIENCE_S, metadata=self._connection.pairs
            )
        except grpc.RpcError as error:
            raise error_of(self.target, error) from None
        told = MessageToDict(message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True)
        told["depths"].sort(key=lambda each: each["depth"])
        return told

    async def compare(self, question: Question) -> dict[str, Any]:
        """The answer as served, then that of every depth, asked one after the other so that none waits for another."""
        depths = [each["depth"] for each in (await self.bundle(question.bundle))["depths"]]
        asked = []
        for depth in (None, *depths):
            start_s = time.perf_counter()
            answer = await self._answer(question, depth)
            asked.append((depth, answer, (time.perf_counter() - start_s) * 1e3))
        titles = await self.titles(question.bundle, question.items)
        return {
            "deepest": depths[-1],
            "history": [{"id": item, "title": titles.get(item, "")} for item in question.items],
            "answers": side_by_side(asked, depths[-1]),
        }

    async def _answer(self, question: Question, depth: int | None) -> Recommendation | FathomError:
        try:
            return await self._ask(question, depth)
        except FathomError as error:
            return error

    async def _ask(self, question: Question, depth: int | None, *, reasons: bool = False) -> Recommendation:
        timeout_s = question.deadline_s if depth is None else PATIENCE_S
        return await self._client.recommend(timeout_s=timeout_s, **question.options(depth, reasons=reasons))

    async def reasons(self, question: Question) -> list[dict[str, Any]]:
        """Which items of the history each item of one depth is due to."""
        answer = await self._ask(question, question.depth, reasons=True)
        named = {reason.item_id for item in answer.items for reason in item.reasons}
        return reasons_of(answer, await self.titles(question.bundle, sorted(named)))

    async def titles(self, bundle: str, ids: Iterable[str]) -> dict[str, str]:
        """Titles of items by id, without those that the server does not tell."""
        wanted = list(dict.fromkeys(ids))[-PAGE:]
        if not wanted:
            return {}
        # Recommend tells titles: of a request that allows these items only, the answer is these items.
        try:
            answer = await self._client.recommend(
                wanted, bundle=bundle, allow=wanted, include_seen=True, k=len(wanted), timeout_s=PATIENCE_S
            )
        except FathomError:
            # Whoever asks has what was asked for, and can do without titles.
            return {}
        return {item.id: item.title for item in answer.items}

    async def index(self, bundle: str) -> ItemIndex:
        """The items of a bundle; raises NotFoundError where it has no counting exit, which lists them."""
        async with self._reading:
            read_s, index = self._indexes.get(bundle, (0.0, None))
            if index is None or time.monotonic() - read_s > TITLES_S:
                index = await self._read_index(bundle)
                self._indexes[bundle] = time.monotonic(), index
            return index

    async def _read_index(self, bundle: str) -> ItemIndex:
        if (await self.bundle(bundle))["depths"][0]["depth"] != 0:
            raise NotFoundError("this bundle has no counting exit, so its items cannot be searched; give ids instead")
        found: list[TitledItem] = []
        while len(found) < MOST_ITEMS:
            answer = await self._client.recommend(
                [], bundle=bundle, depth=0, k=PAGE, exclude=[item.id for item in found], timeout_s=PATIENCE_S
            )
            found += [TitledItem(item.id, item.title) for item in answer.items]
            if len(answer.items) < PAGE:
                return ItemIndex(found, complete=True)
        return ItemIndex(found, complete=False)
