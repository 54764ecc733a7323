"""Replays a trace against a server in an open loop: requests leave at their moments, however slow the answers are.

    fathom loadtest --trace trace.jsonl --target 127.0.0.1:50051 --deadline-ms 100 --out report.json

Latency counts from the moment a request should have been sent. Every run is bounded: in requests, in time, in open
calls, and each call by its deadline.
"""

import asyncio
import math
import time

import grpc

from fathom.client import error_of
from fathom.client.messages import reason_of
from fathom.connection import Connection
from fathom.errors import ConfigError
from fathom.loadtests.report import NOT_SENT, LoadReport, Sample, summarise
from fathom.loadtests.traces import Arrival, Trace
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc


def replay(
    connection: Connection | str,
    trace: Trace,
    *,
    bundle: str = "",
    deadline_ms: float = 1_000.0,
    max_requests: int = 100_000,
    max_duration_s: float = 600.0,
    max_in_flight: int = 2_000,
) -> LoadReport:
    """Send the trace's requests at their times and report what came back.

    ``connection``: or only the target. ``bundle``: which of the server's, instead of its default.
    What lies beyond ``max_requests`` or ``max_duration_s`` is not sent and not counted; a request that comes due while
    ``max_in_flight`` calls are open is counted as NOT_SENT. Raises ConfigError for an empty trace or impossible
    bounds, ConnectError when the server does not answer at the start.
    """
    if not (0 < deadline_ms < math.inf and max_requests >= 1 and max_duration_s > 0 and max_in_flight >= 1):
        raise ConfigError("deadline_ms, max_requests, max_duration_s and max_in_flight must be positive")
    arrivals = [each for each in trace.arrivals if each.at_s < max_duration_s][:max_requests]
    if not arrivals:
        raise ConfigError("the trace has no requests to send")
    whole = len(arrivals) == len(trace.arrivals)
    offered_s = trace.duration_s if whole else max(arrivals[-1].at_s, 1e-3)
    if isinstance(connection, str):
        connection = Connection(connection)
    return asyncio.run(_Replayer(connection, bundle, deadline_ms / 1e3, max_in_flight).run(arrivals, trace, offered_s))


class _Replayer:
    def __init__(self, connection: Connection, bundle: str, deadline_s: float, max_in_flight: int) -> None:
        self._connection = connection
        self._bundle_name = bundle
        self._deadline_s = deadline_s
        self._max_in_flight = max_in_flight
        self._samples: list[Sample] = []
        self._started = 0.0

    async def run(self, arrivals: list[Arrival], trace: Trace, offered_s: float) -> LoadReport:
        # Built before the clock starts, so that the sender has little left to do.
        requests = [_message(each, self._bundle_name) for each in arrivals]
        async with self._connection.aio_channel() as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            bundle = await self._bundle(stub)
            open_calls: set[asyncio.Task[None]] = set()
            self._started = time.perf_counter()
            for arrival, request in zip(arrivals, requests, strict=True):
                # Never without a turn of the loop: a sender that is behind must still let its calls out and in.
                await asyncio.sleep(max(0.0, arrival.at_s - self._now()))
                if len(open_calls) >= self._max_in_flight:
                    self._samples.append(Sample(arrival.at_s, self._now(), self._now(), NOT_SENT))
                    continue
                task = asyncio.create_task(self._send(stub, arrival.at_s, request))
                open_calls.add(task)
                task.add_done_callback(open_calls.discard)
            await asyncio.gather(*open_calls)
        return summarise(
            sorted(self._samples, key=lambda sample: sample.intended_s),
            target=self._connection.target,
            bundle=f"{bundle.name} {bundle.version}",
            transport=bundle.transport,
            trace=trace.made,
            deadline_ms=self._deadline_s * 1e3,
            offered_s=offered_s,
        )

    async def _bundle(self, stub: recommender_pb2_grpc.RecommenderStub) -> pb.GetBundleResponse:
        try:
            request = pb.GetBundleRequest(bundle=self._bundle_name)
            answer: pb.GetBundleResponse = await stub.GetBundle(request, timeout=5, metadata=self._connection.pairs)
        except grpc.aio.AioRpcError as error:
            raise error_of(self._connection.target, error) from None
        return answer

    async def _send(
        self, stub: recommender_pb2_grpc.RecommenderStub, at_s: float, request: pb.RecommendRequest
    ) -> None:
        sent_s = self._now()
        try:
            answer = await stub.Recommend(request, timeout=self._deadline_s, metadata=self._connection.pairs)
        except grpc.aio.AioRpcError as error:
            self._samples.append(Sample(at_s, sent_s, self._now(), error.code().name))
            return
        self._samples.append(Sample(at_s, sent_s, self._now(), "OK", answer.depth, reason_of(answer)))

    def _now(self) -> float:
        return time.perf_counter() - self._started


def _message(arrival: Arrival, bundle: str) -> pb.RecommendRequest:
    return pb.RecommendRequest(
        item_ids=arrival.items,
        timestamps=arrival.timestamps,
        k=arrival.k,
        profile=arrival.profile,
        depth=arrival.depth,
        bundle=bundle,
    )
