"""Small twins of the measurements of a server under stress: real servers, few requests."""

import asyncio
from pathlib import Path

import grpc
import pytest

from fathom.benchmarks.server import METHOD, started
from fathom.benchmarks.systems import overload, workers
from fathom.benchmarks.systems.grpc_echo import make_requests
from fathom.protos.fathom.v1 import recommender_pb2 as pb

IDS = [f"item-{number}" for number in range(10)]


def test_what_is_offered_is_offered_at_its_rate_and_all_of_it_ends(synthetic_bundle: Path) -> None:
    requests = [pb.RecommendRequest(item_ids=IDS[:length]).SerializeToString() for length in (1, 5, 10)]

    async def measure() -> list[overload.Ended]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)
            return await overload.offer(call, requests, rate=200, seconds=0.5)

    with started(synthetic_bundle) as server:
        assert asyncio.run(overload.capacity_of(server, requests)) > 0
        found = asyncio.run(measure())
    assert len(found) == 100
    assert {each.status for each in found} <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "TOO_LATE"}
    assert any(each.depth in (4, 8, 12, 16) for each in found)
    summary = overload.summarise(found, 0.5)
    assert summary["offered_per_s"] == 200
    assert sum(summary["statuses"].values()) == 100


def test_a_killed_worker_is_counted_and_replaced(
    synthetic_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client beside other tests hears late of a connection that ended.
    monkeypatch.setattr(workers, "NOTICED_S", 5.0)
    log, requests = tmp_path / "log", make_requests(synthetic_bundle)
    with started(synthetic_bundle, "--workers", "2", log=log) as server:
        result = asyncio.run(workers.kills_of(server.pid, log, server.address, requests, repetitions=1))
    assert result["kills"] == 1
    assert result["statuses"]["OK"] > 0
    assert result["failed_otherwise"] == 0
    assert result["failed_in_flight"] <= result["in_flight_at_kills"]
    assert 0 < result["back_s"]["median"] <= result["back_s"]["most"]
