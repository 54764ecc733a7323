"""The two methods that stream, which the client library does not have, with its messages, retries and errors."""

from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import cycle
from typing import Any, TypeVar

import grpc

from fathom.client import DEFAULT_TIMEOUT_S, Event, Query, Recommendation, messages
from fathom.client.channels import ONE_SERVER
from fathom.errors import FathomError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

T = TypeVar("T")
CHANNELS = 2


class Streams:
    """Streams to one server, on connections of their own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channels = [grpc.aio.insecure_channel(address, options=ONE_SERVER) for _ in range(CHANNELS)]
        stub: Any = recommender_pb2_grpc.RecommenderStub
        self._stubs = cycle([stub(channel) for channel in self._channels])

    async def recommend(self, queries: Sequence[Query]) -> list[Recommendation | FathomError]:
        """The answer or the error of each, in order. Raises FathomError where the stream fails or one is missing."""
        call = messages.recommend_many(queries)
        for number, request in enumerate(call.request.requests):
            request.request_id = str(number)
        found: dict[str, pb.RecommendResult] = {}
        try:
            async for result in next(self._stubs).RecommendStream(
                _each(call.request.requests), timeout=DEFAULT_TIMEOUT_S
            ):
                found[getattr(result, result.WhichOneof("outcome")).request_id] = result
        except grpc.aio.AioRpcError as error:
            raise messages.error_of(self._address, error) from None
        if found.keys() != {str(number) for number in range(len(queries))}:
            raise FathomError(f"of {len(queries)} requests of a stream these were answered: {sorted(found)}")
        return call.read(pb.RecommendBatchResponse(results=[found[str(number)] for number in range(len(queries))]))

    async def append(self, events: Sequence[tuple[str, Sequence[Event]]]) -> None:
        """Events of several users. Raises FathomError."""
        requests = [messages.append_events(user_id, each).request for user_id, each in events]
        try:
            await next(self._stubs).AppendEventStream(_each(requests), timeout=DEFAULT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise messages.error_of(self._address, error) from None

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close(None)


async def _each(found: Iterable[T]) -> AsyncIterator[T]:
    for each in found:
        yield each
