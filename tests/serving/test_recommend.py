"""Calls of Recommend that arrive together: all are begun, unless the server has been behind for a while."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving import recommend
from fathom.serving.access.bucket import Bucket
from fathom.serving.access.caller import Caller
from fathom.serving.access.control import OPEN, AccessControl
from fathom.serving.access.principal import Principal
from fathom.serving.intake import FEW, SPAN_S, Intake
from fathom.serving.metrics import Metrics
from fathom.serving.recommend import Recommend
from fathom.serving.transport.contract import PATIENCE_S

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
REQUEST = pb.RecommendRequest(item_ids=["item-1"], k=3, depth=4).SerializeToString()


class Noted:
    """A call that keeps how it ended."""

    def __init__(self, deadline_s: float | None = None, port: int = 5000) -> None:
        self.payload = REQUEST
        self.port = port
        self.deadline_s = deadline_s
        self.left: Callable[[], object] | None = None
        self.status: grpc.StatusCode | None = None
        self.trailing: Sequence[Any] = ()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return ()

    def peer(self) -> str:
        return f"ipv4:192.0.2.1:{self.port}"

    def respond(self, payload: bytes) -> None:  # noqa: ARG002
        self.status = grpc.StatusCode.OK

    def fail(self, code: grpc.StatusCode, text: str, trailing: Sequence[Any] = ()) -> None:  # noqa: ARG002
        self.status, self.trailing = code, trailing


class Clock:
    """Moves on by a millisecond with every look."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def monotonic(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def perf_counter(self) -> float:
        return self.now_s


def service(it: Any, clock: Clock | None = None) -> Recommend:
    answering = Recommend(it.server.bundles, None, it.server._gate, Metrics())
    if clock is not None:
        clock.now_s = time.monotonic()
        answering.intake = Intake(clock.monotonic)
    return answering


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recommend, "time", clock)
    return clock


def behind(it: Any, clock: Clock) -> Recommend:
    """A server that has had too many calls for a while."""
    it.held.go.clear()
    answering = service(it, clock)
    for _ in range(3):
        clock.now_s += 1.0
        answering.intake.note(clock.now_s - 1.0, 60, 0)
    assert answering.intake.behind
    return answering


async def caught_up(answering: Recommend) -> None:
    async with asyncio.timeout(10):
        while answering._waiting:
            await asyncio.sleep(0)


async def test_a_burst_is_begun_in_turns_of_the_event_loop(local: LocalServer, clock: Clock) -> None:
    async with local() as it:
        it.held.go.clear()
        answering = service(it, clock)
        burst = [Noted(clock.now_s + 30) for _ in range(60)]
        assert answering.take(burst, 0) is None
        assert answering._waiting, "in one turn there is no time for all of them"
        other = Noted(port=6000)
        other.payload = pb.RecommendRequest(item_ids=["item-1"], depth=0).SerializeToString()
        answering.take([other], 0)
        assert other.status is grpc.StatusCode.OK, "another connection does not wait for all of them"
        await caught_up(answering)
        assert {call.status for call in burst} == {None}, "all are let in"


async def test_who_stays_behind_refuses_the_oldest(local: LocalServer, clock: Clock) -> None:
    async with local() as it:
        answering = behind(it, clock)
        calls = [Noted(clock.now_s + 0.9) for _ in range(100)]
        assert answering.take(calls, 3) is not None
        begun = [call.status is None for call in calls]
        assert begun == sorted(begun), "the newest are begun"
        assert FEW <= sum(begun) < 30
        assert calls[0].status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert calls[0].trailing == (("grpc-retry-pushback-ms", "100"),)
        for _ in range(2):
            clock.now_s += 1.0
            room = answering.take([Noted()], 0)
        assert room is None, "it has caught up meanwhile"
        again = [Noted(clock.now_s + 0.9) for _ in range(60)]
        answering.take(again, 0)
        await caught_up(answering)
        assert {call.status for call in again} == {None}


async def test_who_floods_does_not_shut_out_other_connections(local: LocalServer, clock: Clock) -> None:
    async with local() as it:
        answering = behind(it, clock)
        other = Noted(clock.now_s + 0.9, port=6000)
        flood = [Noted(clock.now_s + 0.9) for _ in range(100)]
        answering.take([other, *flood], 0)
        assert other.status is None
        assert flood[0].status is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_who_has_time_waits_until_the_server_has_caught_up(local: LocalServer, clock: Clock) -> None:
    async with local() as it:
        answering = behind(it, clock)
        it.held.go.set()
        calls = [Noted(clock.now_s + 60 if number % 2 else None) for number in range(100)]
        answering.take(calls, 0)
        assert sum(call.status is None for call in calls) == 100
        calls[-1].left()
        async with asyncio.timeout(10):
            while sum(call.status is grpc.StatusCode.OK for call in calls) < 99:
                await asyncio.sleep(0)
        assert calls[-1].status is None
        counted = answering.metrics.registry.get_sample_value
        assert counted("fathom_calls_total", {"method": "Recommend", "status": "CANCELLED"}) == 1


async def test_a_connection_with_many_calls_that_can_wait_does_not_keep_another_waiting(
    local: LocalServer, clock: Clock
) -> None:
    async with local() as it:
        answering = behind(it, clock)
        flood = [Noted() for _ in range(300)]
        answering.take(flood, 0)
        other = Noted(port=6000)
        other.payload = pb.RecommendRequest(item_ids=["item-1"], depth=0).SerializeToString()
        answering.take([other], 0)
        assert other.status is grpc.StatusCode.OK, "depth 0 is answered as soon as it is begun"
        assert {call.status for call in flood} == {None}


async def test_nobody_waits_for_ever(local: LocalServer, clock: Clock) -> None:
    async with local() as it:
        answering = behind(it, clock)
        calls = [Noted() for _ in range(100)]
        answering.take(calls, 0)
        clock.now_s += PATIENCE_S
        async with asyncio.timeout(10):
            while any(call.status is None for call in calls[50:]):
                await asyncio.sleep(0)
        assert calls[0].status is None, "the oldest are begun first"
        assert calls[-1].status is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_call_that_is_late_already_is_not_decoded(local: LocalServer) -> None:
    async with local() as it:
        late = Noted(deadline_s=0.0)
        late.payload = b"not decoded"
        service(it).take([late], 0)
        assert late.status is grpc.StatusCode.DEADLINE_EXCEEDED


class Limited(AccessControl):
    """Everybody has reached a limit."""

    def caller_of(self, call: Any) -> Caller:  # noqa: ARG002
        spent = Bucket(rate=1e-6, burst=1.0)
        spent.take(1.0, time.monotonic())
        return Caller(principal=Principal(buckets=(spent,)))


@pytest.mark.parametrize(
    ("access", "payload", "status"),
    [
        (OPEN, b"no message", grpc.StatusCode.INVALID_ARGUMENT),
        (OPEN, pb.RecommendRequest(timestamps=[1]).SerializeToString(), grpc.StatusCode.INVALID_ARGUMENT),
        (Limited(), REQUEST, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_calls_that_are_refused_for_their_callers_reasons_are_no_sign_that_the_server_is_behind(
    local: LocalServer, clock: Clock, access: AccessControl, payload: bytes, status: grpc.StatusCode
) -> None:
    async with local() as it:
        answering = service(it, clock)
        answering.access = access
        answering.intake = Intake(lambda: clock.now_s, lambda: clock.now_s)  # no time is left
        for _ in range(5):
            clock.now_s += SPAN_S
            refused = [Noted() for _ in range(60)]
            for call in refused:
                call.payload = payload
            assert answering.take(refused, 0) is None
            await caught_up(answering)
            assert {call.status for call in refused} == {status}
        assert not answering.intake.behind
