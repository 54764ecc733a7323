"""Calls of Recommend that arrive together: all are begun, unless the server has been behind for a while."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving import recommend
from fathom.serving.intake import FEW, Intake
from fathom.serving.recommend import Recommend

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
REQUEST = pb.RecommendRequest(item_ids=["item-1"], k=3, depth=4).SerializeToString()


class Noted:
    """A call that keeps how it ended."""

    def __init__(self, deadline_s: float | None = None) -> None:
        self.payload = REQUEST
        self.deadline_s = deadline_s
        self.left: Callable[[], object] | None = None
        self.status: grpc.StatusCode | None = None
        self.trailing: Sequence[Any] = ()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return ()

    def peer(self) -> str:
        return "ipv4:192.0.2.1:5000"

    def respond(self, payload: bytes) -> None:  # noqa: ARG002
        self.status = grpc.StatusCode.OK

    def fail(self, code: grpc.StatusCode, text: str, trailing: Sequence[Any] = ()) -> None:  # noqa: ARG002
        self.status, self.trailing = code, trailing


class Clock:
    """Moves on by a millisecond with every look."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def perf_counter(self) -> float:
        return self.now_s


def service(it: Any) -> Recommend:
    return Recommend(it.server.bundles, None, it.server._gate, it.server._metrics)


async def test_a_burst_is_let_in_and_who_stays_behind_refuses_the_oldest(
    local: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local() as it:
        it.held.go.clear()
        answering, clock = service(it), Clock()
        answering._intake = Intake(clock.monotonic)
        monkeypatch.setattr(recommend, "time", clock)
        burst = [Noted() for _ in range(60)]
        assert answering.take(burst, 0) is None
        assert {call.status for call in burst} == {None}
        clock.now_s += 1.0
        calls = [Noted() for _ in range(100)]
        assert answering.take(calls, 3) is not None
        begun = [call.status is None for call in calls]
        assert begun == sorted(begun), "the newest are begun"
        assert FEW <= sum(begun) < 30
        assert calls[0].status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert calls[0].trailing == (("grpc-retry-pushback-ms", "100"),)
        assert answering.take([Noted()], 0) is None
        again = [Noted() for _ in range(60)]
        answering.take(again, 0)
        assert {call.status for call in again} == {None}, "it has caught up meanwhile"


async def test_a_call_that_is_late_already_is_not_decoded(local: LocalServer) -> None:
    async with local() as it:
        late = Noted(deadline_s=0.0)
        late.payload = b"not decoded"
        service(it).take([late], 0)
        assert late.status is grpc.StatusCode.DEADLINE_EXCEEDED
