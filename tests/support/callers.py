"""Callers as a server meets them: each on its own connection, one call after the other."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

AGAIN = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
PLAIN = (*AGAIN, ("grpc.enable_retries", 0))


@dataclass
class Callers:
    """What they have got so far: calls by status, and the texts of what failed. Being refused does not count."""

    statuses: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)

    async def reach(self, answers: int) -> None:
        """Wait until they have so many answers more."""
        wanted = self.statuses["OK"] + answers
        async with asyncio.timeout(60):
            while self.statuses["OK"] < wanted:
                await asyncio.sleep(0.005)

    async def call(self, address: str, ids: Sequence[str], *, go_on: bool, again: bool) -> None:
        """One caller: until its first failure, or with a pause after each."""
        async with grpc.aio.insecure_channel(address, options=AGAIN if again else PLAIN) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            for number in range(1_000_000):
                request = pb.RecommendRequest(item_ids=[ids[number % len(ids)], ids[number // len(ids) % len(ids)]])
                try:
                    await stub.Recommend(request, timeout=60)
                    self.statuses["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the machine is busy with other tests
                        await asyncio.sleep(0.02)
                        continue
                    self.statuses[error.code().name] += 1
                    self.texts[error.details() or ""] += 1
                    if not go_on:
                        return
                    await asyncio.sleep(0.02)


@asynccontextmanager
async def calling(
    address: str, ids: Sequence[str], *, callers: int = 64, go_on: bool = False, again: bool = False
) -> AsyncIterator[Callers]:
    """They call within the block; those that do not ``go_on`` are then waited for.

    ``again``: gRPC sends what no server has seen once more, as it does by default; else nothing is tried again.
    """
    found = Callers()
    tasks = [asyncio.create_task(found.call(address, ids, go_on=go_on, again=again)) for _ in range(callers)]
    try:
        yield found
        if not go_on:
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
