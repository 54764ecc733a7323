"""Depth 0 and strangers, asked of a real server."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from in_process import fathom

from fathom.client import AsyncClient
from fathom.errors import DeadlineError, InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.pipeline import Pipeline

Stub = recommender_pb2_grpc.RecommenderStub
TWO = ["item-1", "item-2"]
STRANGERS = {
    "an empty history": pb.RecommendRequest(),
    "only unknown items": pb.RecommendRequest(item_ids=["who?", ""], timestamps=[5, 6]),
    "an unknown user": pb.RecommendRequest(user_id="nobody"),
}


def ids(answer: pb.RecommendResponse) -> list[str]:
    return [item.id for item in answer.items]


def asked(request: pb.RecommendRequest, **changes: object) -> pb.RecommendRequest:
    changed = pb.RecommendRequest(**changes)  # type: ignore[arg-type]
    changed.MergeFrom(request)
    return changed


@pytest.mark.parametrize("request_", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_gets_the_popular_items_that_the_filter_leaves(stub: Stub, request_: pb.RecommendRequest) -> None:
    answer = stub.Recommend(request_, timeout=10)
    assert ids(answer) == [f"item-{i}" for i in range(10)]
    assert (answer.depth, answer.reason, answer.history_used) == (0, pb.DEPTH_REASON_POPULAR, 0)
    assert answer.unknown_items == len(request_.item_ids)
    assert (answer.why, answer.HasField("complexity")) == ("no item of the history is known: the most popular", False)
    some = pb.Filter(exclude_item_ids=["item-0"], allow_item_ids=["item-3", "item-0", "item-2"])
    assert ids(stub.Recommend(asked(request_, filter=some), timeout=10)) == ["item-2", "item-3"]
    assert ids(stub.Recommend(asked(request_, filter=pb.Filter(allow_item_ids=["?"])), timeout=10)) == []
    assert len(stub.Recommend(asked(request_, k=1_000), timeout=10).items) == 50
    everything = pb.Filter(exclude_item_ids=[f"item-{i}" for i in range(50)])
    assert ids(stub.Recommend(asked(request_, filter=everything), timeout=10)) == []
    assert stub.Recommend(asked(request_, depth=0), timeout=10).reason == pb.DEPTH_REASON_POPULAR


def test_strangers_in_a_batch_are_answered_beside_the_others(stub: Stub) -> None:
    requests = [*STRANGERS.values(), pb.RecommendRequest(item_ids=TWO), pb.RecommendRequest(strict=True)]
    results = stub.RecommendBatch(pb.RecommendBatchRequest(requests=requests), timeout=10).results
    reasons = [each.response.reason for each in results]
    assert reasons[:3] == [pb.DEPTH_REASON_POPULAR] * 3
    assert reasons[3] not in (pb.DEPTH_REASON_POPULAR, pb.DEPTH_REASON_UNSPECIFIED)
    assert results[4].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_depth_0_is_asked_for_by_name(stub: Stub, synthetic_bundle: Path) -> None:
    answer = stub.Recommend(pb.RecommendRequest(item_ids=TWO, depth=0, k=5, include_titles=True), timeout=10)
    counting, seen = Bundle.open(synthetic_bundle).counting, np.array([1, 2])
    assert counting is not None
    items, scores = counting.best(seen, 5, ItemFilter(exclude=seen))
    assert ids(answer) == [f"item-{i}" for i in items]
    assert [item.score for item in answer.items] == pytest.approx(scores.tolist())
    assert answer.items[0].title == "Title 3"
    assert (answer.depth, answer.reason, answer.why) == (0, pb.DEPTH_REASON_FIXED, "depth 0 was requested")
    assert (answer.timings.queue_us, answer.timings.engine_us) == (0, 0)


def answered(live: Any, reason: str) -> float:
    """How many requests the server has answered at depth 0 for this reason, by its metrics."""
    with urllib.request.urlopen(f"http://{live.metrics_address}/metrics", timeout=10) as page:
        text = page.read().decode()
    labels = f'depth="0",reason="{reason}",status="OK"'
    found = re.search(rf'^fathom_requests_total{{bundle="[^"]*",{labels}}} (\S+)$', text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_count_depth_0_and_its_reasons(live: Any, stub: Stub) -> None:
    before = [answered(live, reason) for reason in ("fixed", "popular")]
    stub.Recommend(pb.RecommendRequest(item_ids=TWO, depth=0), timeout=10)
    stub.Recommend(pb.RecommendRequest(), timeout=10)
    assert [answered(live, reason) for reason in ("fixed", "popular")] == [count + 1 for count in before]


def test_the_command_line_asks_for_depth_0_and_for_strictness(live: Any) -> None:
    target = ["recommend", "--target", live.address]
    shown = fathom(*target, "--items", "item-1,item-2", "--depth", "0").stdout
    assert "depth 0 was requested" in shown
    assert "engine 0" in shown
    popular = json.loads(fathom(*target, "--items", "who?", "-k", "2", "--json").stdout)
    assert [item["id"] for item in popular["items"]] == ["item-0", "item-1"]
    assert (popular["depth"], popular["reason"], popular["unknown_items"]) == (0, "popular", 1)
    assert "no item of the history" in fathom(*target, "--items", "who?", "--strict", code=2).stderr


async def test_a_full_queue_leaves_depth_0(local: Any) -> None:
    request = pb.RecommendRequest(item_ids=TWO)
    async with local(max_queue=2) as it:
        it.held.go.clear()
        calls = [it.stub.Recommend(request, timeout=30)]
        await asyncio.to_thread(it.held.reached.acquire)
        calls += [it.stub.Recommend(request, timeout=30) for _ in range(2)]
        async with asyncio.timeout(10):
            while it.pipeline.waiting < 2:
                await asyncio.sleep(0)
        answers = [await it.stub.Recommend(request, timeout=30) for _ in range(5)]
        assert {(answer.depth, answer.reason) for answer in answers} == {(0, pb.DEPTH_REASON_DEADLINE)}
        assert {answer.why for answer in answers} == {
            "the queue is full, so the network cannot answer in time: depth 0"
        }
        it.held.go.set()
        assert all([(await call).depth for call in calls])


async def test_without_a_counting_exit_strangers_get_errors_and_there_is_no_depth_0(
    local: Any, uncounted_bundle: Path
) -> None:
    async with local(uncounted_bundle, history="memory") as it, AsyncClient(it.info.address) as client:
        assert (await client.bundle()).depths == (4, 8, 12, 16)
        with pytest.raises(InvalidRequestError, match="item_ids is empty"):
            await client.recommend([])
        for asked_for in ({"items": ["who?"]}, {"user_id": "nobody"}, {"items": TWO, "depth": 0}):
            with pytest.raises(NotFoundError):
                await client.recommend(**asked_for)


async def test_what_refuses_a_request_before_it_is_read_does_not_refuse_a_stranger(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DeadlineError("as under overload")

    monkeypatch.setattr(Pipeline, "admit", refuse)
    async with local() as it, AsyncClient(it.info.address) as client:
        for nothing in ([], ["who?"]):
            assert (await client.recommend(nothing)).reason == "popular"
        with pytest.raises(DeadlineError, match="as under overload"):
            await client.recommend(TWO)


async def test_other_calls_get_their_turn_while_a_batch_is_answered_by_counting(local: Any) -> None:
    async with local() as it:
        small, large = ([pb.RecommendRequest(item_ids=TWO, depth=0)] * size for size in (1, 400))
        await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=small), timeout=10)
        batch = it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=large), timeout=60)
        beside = 0
        while not batch.done():
            await it.stub.GetBundle(pb.GetBundleRequest(), timeout=10)
            beside += 1
        assert len((await batch).results) == 400
        assert beside > 3
