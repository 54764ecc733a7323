"""Requests that come many in one message or stream: each is answered or refused alone, as if it had come alone."""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from fathom.errors import InvalidRequestError, OverloadError, RequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.shares import Client
from fathom.serving.access.caller import Caller
from fathom.serving.access.principal import Tenant
from fathom.serving.limits import LONGEST_ID_BYTES
from fathom.serving.recommend import Recommend, charge
from fathom.serving.response_encoder import ANSWER_BYTES, batch_of, result_of
from fathom.serving.status import code_number, retry_after_s, status_of
from fathom.serving.wire import parts_of
from fathom.serving.work import LARGEST_BATCH, LIGHT_BYTES, few_of, request_of, work_of

#: Requests of a batch that are begun in one turn; depth 0 answers as soon as it begins.
BEGUN_AT_ONCE = 8
#: Requests of a batch without a deadline that wait at a time: enough for full runs of the engine, and few enough for a
#: large batch not to make its own requests shallow, or have them refused.
IN_FLIGHT = 64

log = logging.getLogger("fathom.serving")


@dataclass(frozen=True)
class Many:
    """Answers batches, and single requests of streams; ``most_bytes``: of a message that is sent."""

    recommend: Recommend
    most_bytes: int

    async def batch(self, raw: bytes, deadline_s: float | None, caller: Caller) -> bytes:
        """The encoded RecommendBatchResponse to an encoded RecommendBatchRequest.

        It takes the event loop a few requests at a time, in turn with other clients. Raises InvalidRequestError for one
        that asks for too much, and OverloadError for more than its caller may ask for now, before any of it is done.
        """
        requests = await self._read(raw, caller)
        charge(caller, *requests)
        room = _Room(self.most_bytes, len(requests))
        slots = asyncio.Semaphore(IN_FLIGHT if deadline_s is None else LARGEST_BATCH)
        async with asyncio.TaskGroup() as group:
            tasks = []
            for low in range(0, len(requests), BEGUN_AT_ONCE):
                few = requests[low : low + BEGUN_AT_ONCE]
                for _ in few:
                    await slots.acquire()
                async with self.recommend.turns.take(caller.client):
                    for each in few:
                        task = group.create_task(self._result(each, deadline_s, caller, room))
                        task.add_done_callback(lambda _: slots.release())
                        tasks.append(task)
        return batch_of(task.result() for task in tasks)

    async def streamed(self, request: pb.RecommendRequest, deadline_s: float | None, caller: Caller) -> bytes:
        """One request of a stream: an encoded RecommendResult."""
        try:
            charge(caller, request)
        except OverloadError as error:
            return self._refusal(request.request_id, error, caller)
        return await self._answered(request, deadline_s, caller)

    async def _answered(self, request: pb.RecommendRequest, deadline_s: float | None, caller: Caller) -> bytes:
        try:
            return result_of(await self.recommend.answer(request, deadline_s, caller))
        except Exception as error:
            return self._refusal(request.request_id, error, caller)

    async def read(self, raw: bytes, client: Client) -> pb.RecommendRequest:
        """A request of a stream; raises InvalidRequestError where it is too large, or none."""
        if len(raw) <= LIGHT_BYTES:
            return request_of(raw)
        async with self.recommend.turns.take(client):
            return request_of(raw)

    async def _result(
        self, request: pb.RecommendRequest, deadline_s: float | None, caller: Caller, room: "_Room"
    ) -> bytes:
        result = await self._answered(request, deadline_s, caller)
        if room.takes(len(result)):
            return result
        return self._refusal(request.request_id, _full(self.most_bytes), caller)

    def _refusal(self, request_id: str, error: Exception, caller: Caller) -> bytes:
        code, text = status_of(error)
        if code is grpc.StatusCode.PERMISSION_DENIED:
            # The audit log is told of the call with its number.
            caller.about["refused_parts"] = int(str(caller.about.get("refused_parts", 0))) + 1
        self.recommend.metrics.failed(code)
        if code is grpc.StatusCode.INTERNAL:
            log.error("unexpected error in one request of many", exc_info=error)
        failure = pb.RecommendError(request_id=request_id[:LONGEST_ID_BYTES], code=code_number(code), message=text)
        if (seconds := retry_after_s(error)) is not None:
            failure.retry_after_ms = math.ceil(seconds * 1e3)
        return pb.RecommendResult(error=failure).SerializeToString()

    async def _read(self, raw: bytes, caller: Caller) -> Sequence[pb.RecommendRequest]:
        """The requests of a batch; raises InvalidRequestError where one is none, or they ask for too much."""
        parts, _ = parts_of(raw, pb.RecommendBatchRequest.REQUESTS_FIELD_NUMBER, LARGEST_BATCH)
        if len(parts) > LARGEST_BATCH:
            raise InvalidRequestError(f"the batch has more than {LARGEST_BATCH} requests; send several")
        requests: list[pb.RecommendRequest] = []
        work = answer_bytes = 0
        for few in few_of(parts):
            async with self.recommend.turns.take(caller.client):
                read = list(map(request_of, few))
                work += sum(map(work_of, read))
                answer_bytes += sum(self._answer_bytes(each, caller.principal.tenant) for each in read)
                requests += read
        if work > LARGEST_BATCH:
            raise InvalidRequestError(
                f"the batch asks for as much as {work:,} plain requests, at most {LARGEST_BATCH:,}; send several with"
                " fewer requests, or ask for a smaller k or no reasons"
            )
        if answer_bytes > self.most_bytes:
            raise InvalidRequestError(
                f"the answer would have about {answer_bytes / 2**20:.1f} MB, at most {self.most_bytes / 2**20:g} MB;"
                " send several batches, or ask for a smaller k or no titles"
            )
        return requests

    def _answer_bytes(self, request: pb.RecommendRequest, tenant: Tenant) -> int:
        try:
            return self.recommend.bundles.choose(request.bundle, tenant).encoder.answer_bytes(request)
        except RequestError:
            return ANSWER_BYTES


class _Room:
    """What is left of the largest message, once there is room for a refusal of every request."""

    def __init__(self, most_bytes: int, requests: int) -> None:
        self._left = most_bytes - ANSWER_BYTES * requests

    def takes(self, size: int) -> bool:
        """Whether there is room for one result more of this size; then it is taken."""
        more = max(0, size - ANSWER_BYTES)
        if more > self._left:
            return False
        self._left -= more
        return True


def _full(most_bytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the answers before this one fill a message of {most_bytes / 2**20:g} MB; send fewer requests in a batch"
    )
