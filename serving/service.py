"""The RPCs of ``fathom.v1.Recommender`` on top of the bundles in service.

They raise our own errors; ``guard.py`` turns those of a whole call into its status, and ``many.py`` those of one
request in a batch or stream into its RecommendError.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

import grpc

from fathom.errors import InvalidRequestError, RequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.shares import Client
from fathom.serving.bundles import ReloadResult
from fathom.serving.catalogues import Catalogues, Changed
from fathom.serving.convert import (
    DEFAULT_PAGE,
    MOST_ITEMS,
    check_removed,
    client_of,
    deadline_of,
    listed_item,
    user_of,
)
from fathom.serving.history.contract import Appended, HistoryStore, digest_of
from fathom.serving.items.contract import ItemChange
from fathom.serving.live_counter import LiveCounter
from fathom.serving.many import Many
from fathom.serving.recommend import Recommend
from fathom.serving.uploads import read_events, read_items

#: Lets the other workers follow: ("reload", name of the bundle or ""), ("forget", digest of the user's id) or
#: ("catalogue", name of the bundle). Returns how many have not answered in time.
TellWorkers = Callable[[Literal["reload", "forget", "catalogue"], str], Awaitable[int]]
Result = TypeVar("Result")

#: Methods whose messages can be so large that they are decoded here, a few parts at a time.
ENCODED = ("RecommendBatch", "RecommendStream", "AppendEvents", "AppendEventStream", "UpsertItems")

#: Of the items of a page, as far as there are several.
LARGEST_PAGE_BYTES = 2**20

log = logging.getLogger("fathom.serving")


@dataclass(eq=False)
class RecommenderService(recommender_pb2_grpc.RecommenderServicer):
    """Answers all methods but Recommend, whose calls ``recommend`` takes itself, while the gate is open.

    Messages of the methods in ``ENCODED`` come as they are. ``most_bytes``: of a message that is sent.
    """

    recommend: Recommend
    transport: str
    stream_in_flight: int
    most_bytes: int
    tell_workers: TellWorkers
    counter: LiveCounter | None = None
    catalogues: Catalogues | None = None

    def __post_init__(self) -> None:
        self.bundles, self.gate, self.metrics = self.recommend.bundles, self.recommend.gate, self.recommend.metrics
        self.many = Many(self.recommend, self.most_bytes)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def RecommendBatch(self, request: bytes, context: Any) -> bytes:
        """Many independent requests; results in their order."""
        with self.gate:
            return await self.many.batch(request, deadline_of(context.time_remaining()), client_of(context))

    async def RecommendStream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Independent requests; results as they are ready, at most ``stream_in_flight`` waiting at a time.

        What is in flight is still answered when the server drains or a message cannot be decoded.
        """
        client = client_of(context)
        slots = asyncio.Semaphore(self.stream_in_flight)
        writing = asyncio.Lock()  # gRPC sends one message of a call at a time

        async def answer(request: pb.RecommendRequest) -> None:
            try:
                result = await self.many.result(request, deadline_of(context.time_remaining()), client)
                async with writing:
                    await context.write(result)
            except grpc.aio.BaseError as error:
                # The client has left, and gRPC is about to cancel this call.
                log.debug("a result could not be sent: %s", error)
            finally:
                # Only now: a client that does not read its results is not read either.
                slots.release()

        failure: RequestError | None = None
        with self.gate:
            async with asyncio.TaskGroup() as group:
                try:
                    async with self.gate.until_closing():
                        async for raw in requests:
                            await slots.acquire()
                            group.create_task(answer(await self.many.read(raw, client)))
                except RequestError as error:
                    failure = error
        if failure is not None:
            raise failure

    async def AppendEvents(self, request: bytes, context: Any) -> pb.AppendEventsResponse:
        """Add events to what is known of a user."""
        with self.gate:
            return _appended(await self._append(request, client_of(context)))

    async def AppendEventStream(
        self,
        requests: AsyncIterator[bytes],
        context: Any,
    ) -> pb.AppendEventsResponse:
        """The same for many messages."""
        total, client = Appended(), client_of(context)
        with self.gate:
            async with self.gate.until_closing():
                async for each in requests:
                    total += await self._append(each, client)
            return _appended(total)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:  # noqa: ARG002
        """Forget a user; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            return await self._to_its_end(self._delete(self.recommend.known(), user_of(request)))

    async def UpsertItems(self, request: bytes, context: Any) -> pb.UpsertItemsResponse:
        """Say what items are; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            catalogues = self._changeable()
            items = await read_items(request, self.recommend.turns, client_of(context))
            changed, behind = await self._to_its_end(self._change(items.bundle, catalogues.upsert(items)))
            return pb.UpsertItemsResponse(
                added=changed.new,
                updated=changed.known,
                catalogue_version=changed.version,
                workers_behind=behind,
            )

    async def RemoveItems(self, request: pb.RemoveItemsRequest, context: Any) -> pb.RemoveItemsResponse:  # noqa: ARG002
        """Take items out; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            catalogues = self._changeable()
            check_removed(request.item_ids)
            changed, behind = await self._to_its_end(
                self._change(request.bundle, catalogues.remove(request.bundle, request.item_ids))
            )
            return pb.RemoveItemsResponse(
                removed=changed.known, catalogue_version=changed.version, workers_behind=behind
            )

    async def ListItems(self, request: pb.ListItemsRequest, context: Any) -> pb.ListItemsResponse:  # noqa: ARG002
        """What was said of items, by id."""
        with self.gate:
            size = request.page_size or DEFAULT_PAGE
            if size > MOST_ITEMS:
                raise InvalidRequestError(f"page_size is {size}, at most {MOST_ITEMS}")
            found, catalogue = await self._changeable().listed(request.bundle, request.page_token, size + 1)
            page = _page(found[:size])
            return pb.ListItemsResponse(
                items=[listed_item(each.id, each.record, catalogue) for each in page],
                next_page_token=page[-1].id if len(found) > len(page) else "",
                catalogue_version=catalogue.version,
            )

    async def GetBundle(self, request: pb.GetBundleRequest, context: Any) -> pb.GetBundleResponse:  # noqa: ARG002
        """What is being served."""
        with self.gate:
            answer = pb.GetBundleResponse()
            answer.CopyFrom(self.bundles.choose(request.bundle).describe())
            answer.bundles.extend(each.name for each in self.bundles)
            answer.transport = self.transport
            return answer

    async def Reload(self, request: pb.ReloadRequest, context: Any) -> pb.ReloadResponse:  # noqa: ARG002
        """Serve the newest bundles; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            return await self._to_its_end(self._reload(request.bundle))

    async def _reload(self, name: str) -> pb.ReloadResponse:
        reloaded = await self.bundles.reload(name)
        return pb.ReloadResponse(
            bundles=map(_reloaded, reloaded), workers_behind=await self.tell_workers("reload", name)
        )

    async def _delete(self, history: HistoryStore, user_id: str) -> pb.DeleteUserResponse:
        digest = digest_of(user_id)
        try:
            with self.metrics.using_history("delete"):
                deleted = await history.delete(user_id)
        finally:
            # A store that fails may have deleted already, and what is remembered must not outlive that.
            self.bundles.forget(digest)
            if self.counter is not None:
                self.counter.forget(digest)
            behind = await self.tell_workers("forget", digest)
        return pb.DeleteUserResponse(deleted=deleted, workers_behind=behind)

    async def _to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _change(self, bundle: str, change: Awaitable[Changed]) -> tuple[Changed, int]:
        """Change a catalogue and let the other workers follow; how many of them have not, in time."""
        changed = await change
        return changed, await self.tell_workers("catalogue", self.bundles.choose(bundle).name)

    def _changeable(self) -> Catalogues:
        if self.catalogues is None:
            raise InvalidRequestError("this server keeps no catalogue; start it with `fathom serve --catalogue`")
        return self.catalogues

    async def _append(self, request: bytes, client: Client) -> Appended:
        history = self.recommend.known()
        user_id, events = await read_events(request, self.recommend.turns, client)
        with self.metrics.using_history("append"):
            return await (self.counter or history).append(user_id, events)


def _page(found: Sequence[ItemChange]) -> Sequence[ItemChange]:
    """The first of some items, at least one: as many as have LARGEST_PAGE_BYTES together."""
    sizes = accumulate(len(each.id) + len(each.record or b"") for each in found)
    return found[: max(1, sum(size <= LARGEST_PAGE_BYTES for size in sizes))]


def _appended(done: Appended) -> pb.AppendEventsResponse:
    return pb.AppendEventsResponse(
        appended=done.added,
        already_known=done.known,
        too_old=done.too_old,
        before_deletion=done.before_deletion,
    )


def _reloaded(each: ReloadResult) -> pb.Reloaded:
    return pb.Reloaded(bundle=each.name, version=each.version, previous=each.previous, error=each.error)
