import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from fathom.errors import ConfigError, ConnectError
from fathom.loadtests.replay import replay
from fathom.loadtests.report import NOT_SENT
from fathom.loadtests.traces import Arrival, Trace
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc


class Stub(recommender_pb2_grpc.RecommenderServicer):
    """Answers nobody before it has ``together`` requests; refuses k = 99."""

    def __init__(self, together: int) -> None:
        self.barrier = threading.Barrier(together)

    def GetBundle(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ARG002
        return pb.GetBundleResponse(name="stub", version="1", transport="http2")

    def Recommend(self, request, context):  # type: ignore[no-untyped-def]
        if request.k == 99:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        try:
            self.barrier.wait(timeout=5)
        except threading.BrokenBarrierError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nobody else came")
        return pb.RecommendResponse(depth=8, reason=pb.DEPTH_REASON_SIMPLE)


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(32))
    recommender_pb2_grpc.add_RecommenderServicer_to_server(stub, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stub.barrier.abort()
        server.stop(None).wait()


def arrivals(count: int, gap_s: float, **options: int) -> tuple[Arrival, ...]:
    return tuple(Arrival(i * gap_s, ("a",), **options) for i in range(count))


def test_requests_leave_at_their_moments_however_slow_the_answers_are() -> None:
    # Nobody is answered before the 20th request has arrived: a sender that waits for answers would never get there.
    with serving(Stub(together=20)) as target:
        report = replay(target, Trace(arrivals(20, 0.02), 0.4), deadline_ms=5_000)
    assert report.statuses == {"OK": 20}
    assert report.depths == {8: 20}
    assert report.reasons == {"simple": 20}
    assert (report.bundle, report.transport) == ("stub 1", "http2")
    # So the request of moment t waited until moment 0.38 s, and that is what was measured.
    waits = [sample.latency_ms for sample in report.samples]
    assert waits[0] >= 380
    for sample in report.samples:
        assert sample.latency_ms >= (0.38 - sample.intended_s) * 1e3
    assert report.latency is not None
    assert report.latency.max_ms == pytest.approx(waits[0])
    assert report.offered_per_s == pytest.approx(50)


def test_errors_are_reported_by_status() -> None:
    with serving(Stub(together=1)) as target:
        report = replay(target, Trace((*arrivals(3, 0.001), *arrivals(1, 0.001, k=99)), 0.1))
    assert report.statuses == {"OK": 3, "RESOURCE_EXHAUSTED": 1}


def test_each_call_is_bounded_by_its_deadline_and_open_calls_by_their_number() -> None:
    with serving(Stub(together=1000)) as target:
        report = replay(target, Trace(arrivals(10, 0.001), 0.1), deadline_ms=200, max_in_flight=4)
    assert report.statuses == {"DEADLINE_EXCEEDED": 4, NOT_SENT: 6}
    assert report.latency is None


def test_a_replay_is_bounded_in_requests_and_in_time() -> None:
    with serving(Stub(together=1)) as target:
        trace = Trace(arrivals(100, 0.01), 1.0)
        assert replay(target, trace, max_requests=5).requests == 5
        assert replay(target, trace, max_duration_s=0.075).requests == 8


def test_a_server_that_is_not_there_is_an_error_of_one_line() -> None:
    with serving(Stub(together=1)) as target:
        gone = target
    with pytest.raises(ConnectError, match=f"^{gone}: no answer: [^\n]*$"):
        replay(gone, Trace(arrivals(1, 1), 1))


@pytest.mark.parametrize("bounds", [{"deadline_ms": 0}, {"max_requests": 0}, {"max_duration_s": 0}])
def test_impossible_bounds_and_empty_traces_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replay("127.0.0.1:1", Trace(arrivals(1, 1), 1), **bounds)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no requests"):
        replay("127.0.0.1:1", Trace((), 1))
