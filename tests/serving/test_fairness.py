"""Whose requests the engine runs first, in a real server whose engine does one run at a time, when the test says so."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_engine import FakeEngine

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.serving.access.caller import CLIENT_KEY
from fathom.serving.config import ServerSettings
from fathom.serving.server import Server

LONG = pb.RecommendRequest(item_ids=[f"item-{number}" for number in range(1, 31)], depth=16)
SHORT = pb.RecommendRequest(item_ids=["item-1"], depth=4)
OUTSTANDING = 300


class Stepped:
    """A server, what its engine has run (requests, depth), and what lets it go on by one run."""

    def __init__(self, bundle: Path, transport: str) -> None:
        self.runs: list[tuple[int, int]] = []
        self._go = threading.Semaphore(0)
        settings = ServerSettings(port=0, transport=transport, feedback_share=0)
        self.server = Server(settings, bundle, make_engine=self._engine)
        self._free = True
        self.address = ""

    def _engine(self, bundle: Bundle, _threads: int) -> FakeEngine:
        return FakeEngine(bundle.vectors, bundle.depths, on_run=self._on_run)

    def _on_run(self, batch: int, depth: int) -> None:
        if not self._free:
            self.runs.append((batch, depth))
            assert self._go.acquire(timeout=30)

    @property
    def waiting(self) -> int:
        return self.server.bundles.choose("").pipeline.waiting

    def hold(self) -> None:
        self._free = False

    def release(self) -> None:
        self._free = True
        self._go.release(1_000)

    async def step(self) -> tuple[int, int]:
        """Let it end the run that it stands in; returns the next one."""
        before = len(self.runs)
        self._go.release()
        await until(lambda: len(self.runs) > before)
        return self.runs[-1]


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def stepped(synthetic_bundle: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stepped]:
    def measured(_: object, depths: Collection[int], lengths: Collection[int], **__: object) -> CostModel:
        lines = {(depth, length): Line(0.0, depth * (1 + length) * 3e-6) for depth in depths for length in lengths}
        return CostModel(lines, tail=0.0)

    monkeypatch.setattr("fathom.runtime.pipeline.measure", measured)
    it = Stepped(synthetic_bundle, transport)
    async with it.server:
        it.address = (await it.server.start()).address
        it.hold()
        try:
            yield it
        finally:
            it.release()


def connected(it: Stepped) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(it.address, options=[("grpc.use_local_subchannel_pool", 1)])


def stub_of(channel: grpc.aio.Channel) -> recommender_pb2_grpc.RecommenderStub:
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]


async def asked(channel: grpc.aio.Channel, name: str = "") -> None:
    """A long request, again while the server has too much to read."""
    metadata = ((CLIENT_KEY, name),) if name else ()
    while True:
        try:
            await stub_of(channel).Recommend(LONG, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        else:
            return


async def flood(channel: grpc.aio.Channel, name: str) -> None:
    """One of the callers that ask again as soon as they are answered."""
    while True:
        await asked(channel, name)


@pytest.mark.parametrize("identities", [1, 100])
async def test_a_short_request_waits_for_the_run_that_it_finds_and_no_other(stepped: Stepped, identities: int) -> None:
    async with connected(stepped) as loud, connected(stepped) as quiet:
        callers = [asyncio.create_task(flood(loud, str(number % identities))) for number in range(OUTSTANDING)]
        await until(lambda: stepped.runs and stepped.waiting == OUTSTANDING - stepped.runs[0][0])
        # Now the flood has had something, and whoever comes has not.
        await stepped.step()
        for _ in range(5):
            running = stepped.runs[-1][0]
            await until(lambda running=running: stepped.waiting == OUTSTANDING - running)
            call = stub_of(quiet).Recommend(SHORT)
            await until(lambda running=running: stepped.waiting == OUTSTANDING - running + 1)
            assert await stepped.step() == (1, 4)
            assert (await stepped.step())[1] == 16
            assert (await call).depth == 4
        for caller in callers:
            caller.cancel()
        stepped.release()
        await asyncio.gather(*callers, return_exceptions=True)


async def test_behind_a_proxy_another_name_does_not_wait_for_a_flood(stepped: Stepped) -> None:
    async with connected(stepped) as proxy:
        calls = [asyncio.create_task(asked(proxy, "loud")) for _ in range(OUTSTANDING)]
        await until(lambda: stepped.runs and stepped.waiting == OUTSTANDING - stepped.runs[0][0])
        await stepped.step()
        call = stub_of(proxy).Recommend(SHORT, metadata=((CLIENT_KEY, "quiet"),))
        before = stepped.waiting
        await until(lambda: stepped.waiting == before + 1)
        assert await stepped.step() == (1, 4)
        stepped.release()
        await asyncio.gather(call, *calls)


async def test_calls_that_are_reset_at_once_do_not_make_their_connection_new(stepped: Stepped) -> None:
    async with connected(stepped) as loud, connected(stepped) as quiet:
        first = stub_of(quiet).Recommend(SHORT)
        await until(lambda: stepped.runs)
        # Something always waits, so what is owed is not forgotten.
        patient = [stub_of(quiet).Recommend(SHORT) for _ in range(40)]
        await until(lambda: stepped.waiting == 40)
        for _ in range(3):
            calls = [asyncio.create_task(asked(loud)) for _ in range(100)]
            await until(lambda: stepped.waiting == 140)
            for call in calls:
                call.cancel()
            await until(lambda: stepped.waiting == 40)
        again = stub_of(loud).Recommend(LONG)
        await until(lambda: stepped.waiting == 41)
        sizes = [await stepped.step() for _ in range(3)]
        assert [depth for _, depth in sizes] == [4, 4, 16]
        stepped.release()
        await asyncio.gather(first, again, *patient)
