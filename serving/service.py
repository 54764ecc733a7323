"""The RPCs of ``fathom.v1.Recommender`` on top of the bundles in service.

They raise our own errors; ``guard.py`` turns those of a whole call into its status, and ``_result`` those of one
request in a batch or stream into its RecommendError.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
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
    LARGEST_BATCH,
    MOST_ITEMS,
    batch_of,
    check_items,
    check_removed,
    client_of,
    deadline_of,
    events_of,
    listed_item,
    result_of,
    user_of,
)
from fathom.serving.history.contract import Appended, HistoryStore, digest_of
from fathom.serving.live_counter import LiveCounter
from fathom.serving.recommend import Recommend
from fathom.serving.status import code_number, retry_after_s, status_of

#: Lets the other workers follow: ("reload", name of the bundle or ""), ("forget", digest of the user's id) or
#: ("catalogue", name of the bundle). Returns how many have not answered in time.
TellWorkers = Callable[[Literal["reload", "forget", "catalogue"], str], Awaitable[int]]
Result = TypeVar("Result")

#: Requests of a batch that are begun before other calls get their turn; depth 0 answers as soon as it begins.
BATCH_PART = 8

log = logging.getLogger("fathom.serving")


@dataclass(eq=False)
class RecommenderService(recommender_pb2_grpc.RecommenderServicer):
    """Answers all methods but Recommend, whose calls ``recommend`` takes itself, while the gate is open."""

    recommend: Recommend
    transport: str
    stream_in_flight: int
    tell_workers: TellWorkers
    counter: LiveCounter | None = None
    catalogues: Catalogues | None = None

    def __post_init__(self) -> None:
        self.bundles, self.gate, self.metrics = self.recommend.bundles, self.recommend.gate, self.recommend.metrics
        self._tasks: set[asyncio.Task[Any]] = set()

    async def RecommendBatch(self, request: pb.RecommendBatchRequest, context: Any) -> bytes:
        """Many independent requests; results in their order: an encoded RecommendBatchResponse."""
        with self.gate:
            count = len(request.requests)
            if count > LARGEST_BATCH:
                raise InvalidRequestError(f"the batch has {count} requests, at most {LARGEST_BATCH}; send several")
            deadline_s = deadline_of(context.time_remaining())
            client = client_of(context)
            async with asyncio.TaskGroup() as group:
                tasks = []
                for each in request.requests:
                    tasks.append(group.create_task(self._result(each, deadline_s, client)))
                    if len(tasks) % BATCH_PART == 0:
                        await asyncio.sleep(0)
            return batch_of(task.result() for task in tasks)

    async def RecommendStream(self, requests: AsyncIterator[pb.RecommendRequest], context: Any) -> None:
        """Independent requests; results as they are ready, at most ``stream_in_flight`` waiting at a time.

        What is in flight is still answered when the server drains or a message cannot be decoded.
        """
        client = client_of(context)
        slots = asyncio.Semaphore(self.stream_in_flight)
        writing = asyncio.Lock()  # gRPC sends one message of a call at a time

        async def answer(request: pb.RecommendRequest) -> None:
            try:
                result = await self._result(request, deadline_of(context.time_remaining()), client)
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
                        async for request in requests:
                            await slots.acquire()
                            group.create_task(answer(request))
                except RequestError as error:
                    failure = error
        if failure is not None:
            raise failure

    async def AppendEvents(self, request: pb.AppendEventsRequest, context: Any) -> pb.AppendEventsResponse:  # noqa: ARG002
        """Add events to what is known of a user."""
        with self.gate:
            return _appended(await self._append(request))

    async def AppendEventStream(
        self,
        requests: AsyncIterator[pb.AppendEventsRequest],
        context: Any,  # noqa: ARG002
    ) -> pb.AppendEventsResponse:
        """The same for many messages."""
        total = Appended()
        with self.gate:
            async with self.gate.until_closing():
                async for each in requests:
                    total += await self._append(each)
            return _appended(total)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:  # noqa: ARG002
        """Forget a user; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            return await self._to_its_end(self._delete(self.recommend.known(), user_of(request)))

    async def UpsertItems(self, request: pb.UpsertItemsRequest, context: Any) -> pb.UpsertItemsResponse:  # noqa: ARG002
        """Say what items are; goes on to its end even if the caller does not wait for it."""
        with self.gate:
            catalogues = self._changeable()
            check_items(request.items)
            changed, behind = await self._to_its_end(
                self._change(request.bundle, catalogues.upsert(request.bundle, request.items))
            )
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
            return pb.ListItemsResponse(
                items=[listed_item(each.id, each.record, catalogue) for each in found[:size]],
                next_page_token=found[size - 1].id if len(found) > size else "",
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

    async def _append(self, request: pb.AppendEventsRequest) -> Appended:
        history, user_id, events = self.recommend.known(), user_of(request), events_of(request)
        with self.metrics.using_history("append"):
            return await (self.counter or history).append(user_id, events)

    async def _result(self, request: pb.RecommendRequest, deadline_s: float | None, client: Client) -> bytes:
        """One request of many: an encoded RecommendResult."""
        try:
            return result_of(await self.recommend.answer(request, deadline_s, client))
        except Exception as error:
            code, text = status_of(error)
            self.metrics.failed(code)
            if code is grpc.StatusCode.INTERNAL:
                log.error("unexpected error in one request of many", exc_info=error)
            failure = pb.RecommendError(request_id=request.request_id, code=code_number(code), message=text)
            if (seconds := retry_after_s(error)) is not None:
                failure.retry_after_ms = math.ceil(seconds * 1e3)
            return pb.RecommendResult(error=failure).SerializeToString()


def _appended(done: Appended) -> pb.AppendEventsResponse:
    return pb.AppendEventsResponse(
        appended=done.added,
        already_known=done.known,
        too_old=done.too_old,
        before_deletion=done.before_deletion,
    )


def _reloaded(each: ReloadResult) -> pb.Reloaded:
    return pb.Reloaded(bundle=each.name, version=each.version, previous=each.previous, error=each.error)
