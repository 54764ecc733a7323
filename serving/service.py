"""The RPCs of ``fathom.v1.Recommender`` on top of a Pipeline.

They raise our own errors; ``guard.py`` turns those of a whole call into its status, and ``_result`` those of one
request in a batch or stream into its RecommendError.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from fathom.errors import InvalidRequestError, RequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.pipeline import Pipeline
from fathom.serving.convert import LARGEST_BATCH, Converter, deadline_of, events_of, use_history, user_of
from fathom.serving.gate import Gate
from fathom.serving.history import HistoryStore
from fathom.serving.metrics import Metrics
from fathom.serving.status import code_number, retry_after_s, status_of

log = logging.getLogger("fathom.serving")


class RecommenderService(recommender_pb2_grpc.RecommenderServicer):
    """Answers requests while the gate is open."""

    def __init__(
        self,
        pipeline: Pipeline,
        converter: Converter,
        describe: Callable[[], pb.GetBundleResponse],
        history: HistoryStore | None,
        *,
        gate: Gate,
        metrics: Metrics,
        stream_in_flight: int,
    ) -> None:
        self._pipeline = pipeline
        self._converter = converter
        self._describe = describe
        self._history = history
        self._gate = gate
        self._metrics = metrics
        self._stream_in_flight = stream_in_flight

    async def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        """One history in, the k best items out."""
        with self._gate.enter():
            try:
                return await self._answer(request, deadline_of(context.time_remaining()))
            except Exception as error:
                self._metrics.failed(status_of(error)[0])
                raise

    async def RecommendBatch(self, request: pb.RecommendBatchRequest, context: Any) -> pb.RecommendBatchResponse:
        """Many independent requests; results in their order."""
        with self._gate.enter():
            count = len(request.requests)
            if count > LARGEST_BATCH:
                raise InvalidRequestError(f"the batch has {count} requests, at most {LARGEST_BATCH}; send several")
            deadline_s = deadline_of(context.time_remaining())
            results = await asyncio.gather(*(self._result(each, deadline_s) for each in request.requests))
            return pb.RecommendBatchResponse(results=results)

    async def RecommendStream(self, requests: AsyncIterator[pb.RecommendRequest], context: Any) -> None:
        """Independent requests; results as they are ready, at most ``stream_in_flight`` waiting at a time.

        What is in flight is still answered when the server drains or a message cannot be decoded.
        """
        slots = asyncio.Semaphore(self._stream_in_flight)
        writing = asyncio.Lock()  # gRPC sends one message of a call at a time

        async def answer(request: pb.RecommendRequest) -> None:
            try:
                result = await self._result(request, deadline_of(context.time_remaining()))
                async with writing:
                    await context.write(result)
            except grpc.aio.BaseError as error:
                # The client has left, and gRPC is about to cancel this call.
                log.debug("a result could not be sent: %s", error)
            finally:
                # Only now: a client that does not read its results is not read either.
                slots.release()

        failure: RequestError | None = None
        with self._gate.enter():
            async with asyncio.TaskGroup() as group:
                try:
                    async with self._gate.until_closing():
                        async for request in requests:
                            await slots.acquire()
                            group.create_task(answer(request))
                except RequestError as error:
                    failure = error
        if failure is not None:
            raise failure

    async def AppendEvents(self, request: pb.AppendEventsRequest, context: Any) -> pb.AppendEventsResponse:  # noqa: ARG002
        """Add events to what is known of a user."""
        with self._gate.enter():
            return pb.AppendEventsResponse(appended=await self._append(request))

    async def AppendEventStream(
        self,
        requests: AsyncIterator[pb.AppendEventsRequest],
        context: Any,  # noqa: ARG002
    ) -> pb.AppendEventsResponse:
        """The same for many messages."""
        with self._gate.enter():
            async with self._gate.until_closing():
                return pb.AppendEventsResponse(appended=sum([await self._append(each) async for each in requests]))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:  # noqa: ARG002
        """Forget a user."""
        with self._gate.enter():
            history, user_id = self._known(), user_of(request)
            with self._metrics.using_history("delete"):
                return pb.DeleteUserResponse(deleted=await history.delete(user_id))

    async def GetBundle(self, request: pb.GetBundleRequest, context: Any) -> pb.GetBundleResponse:  # noqa: ARG002
        """What is being served."""
        with self._gate.enter():
            return self._describe()

    def _known(self) -> HistoryStore:
        if self._history is None:
            raise InvalidRequestError("this server keeps no histories (`fathom serve --history`); send item_ids")
        return self._history

    async def _append(self, request: pb.AppendEventsRequest) -> int:
        history, user_id, events = self._known(), user_of(request), events_of(request)
        with self._metrics.using_history("append"):
            return await history.append(user_id, events)

    async def _answer(self, request: pb.RecommendRequest, deadline_s: float | None) -> pb.RecommendResponse:
        if request.user_id:
            if request.item_ids or request.timestamps:
                raise InvalidRequestError("the request has a user_id and a history; send one of them")
            history, user_id = self._known(), user_of(request)
            with self._metrics.using_history("read"):
                events = await history.read(user_id)
            use_history(request, events)
        query, unknown = self._converter.query(request, deadline_s)
        answer = await self._pipeline.recommend(query)
        self._metrics.answered(answer, unknown)
        return self._converter.response(request, answer, unknown)

    async def _result(self, request: pb.RecommendRequest, deadline_s: float | None) -> pb.RecommendResult:
        try:
            return pb.RecommendResult(response=await self._answer(request, deadline_s))
        except Exception as error:
            code, text = status_of(error)
            self._metrics.failed(code)
            if code is grpc.StatusCode.INTERNAL:
                log.error("unexpected error in one request of many", exc_info=error)
            failure = pb.RecommendError(request_id=request.request_id, code=code_number(code), message=text)
            if (seconds := retry_after_s(error)) is not None:
                failure.retry_after_ms = math.ceil(seconds * 1e3)
            return pb.RecommendResult(error=failure)
