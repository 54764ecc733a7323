"""Reasons, asked of a real server in every way that it can be asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import fathom

from fathom.client import AsyncClient, Query, Reason
from fathom.client import Client as Blocking
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine

Stub = recommender_pb2_grpc.RecommenderStub
HISTORY = ["item-3", "item-9", "unknown", "item-20"]


def reasons(item: Any) -> list[tuple[str, int, float]]:
    return [(each.item_id, each.source, each.amount) for each in item.reasons]


def test_above_depth_0_an_item_is_due_to_what_its_score_lacks_without(stub: Stub, synthetic_bundle: Path) -> None:
    request = pb.RecommendRequest(item_ids=HISTORY, depth=8, include_reasons=True, include_titles=True, k=5)
    answer = stub.Recommend(request, timeout=10)
    request.include_reasons = False
    plain = stub.Recommend(request, timeout=10)
    assert [(item.id, item.title, item.score) for item in answer.items] == [
        (item.id, item.title, item.score) for item in plain.items
    ]
    assert (len(answer.items), answer.depth, answer.unknown_items) == (5, 8, 1)
    assert not any(item.reasons for item in plain.items)
    bundle = Bundle.open(synthetic_bundle)
    with open_engine(bundle) as engine:
        runs = {lacking: [i + 1 for i in (3, 9, 20) if i != lacking] for lacking in (None, 3, 9, 20)}
        users = {lacking: engine.run(np.array([ids]), None, 8)[0] for lacking, ids in runs.items()}
    for item in answer.items:
        vector = bundle.vectors.take(np.array([int(item.id[5:])]))[0]
        found = {f"item-{i}": float(vector @ (users[None] - users[i])) for i in (3, 9, 20)}
        expected = sorted(((fall, name) for name, fall in found.items() if fall > 1e-4), reverse=True)
        assert [name for name, *_ in reasons(item)] == [name for _, name in expected]
        assert {source for _, source, _ in reasons(item)} <= {pb.ItemReason.NETWORK}
        assert [fall for *_, fall in reasons(item)] == pytest.approx([fall for fall, _ in expected], abs=1e-5)


def test_at_depth_0_an_item_is_due_to_its_parts_of_the_count(stub: Stub) -> None:
    request = pb.RecommendRequest(item_ids=["item-10", "item-11"], depth=0, include_reasons=True, k=4)
    first, *_, last = stub.Recommend(request, timeout=10).items
    assert first.id == "item-12"
    # 1 of the newest, and 1/2 of the older one, which counts half.
    counting = pb.ItemReason.COUNTING
    assert reasons(first) == [("item-11", counting, pytest.approx(0.8)), ("item-10", counting, pytest.approx(0.2))]
    assert (last.score < 0, reasons(last)) == (True, [])


def test_a_stranger_gets_no_reasons(stub: Stub) -> None:
    answer = stub.Recommend(pb.RecommendRequest(item_ids=["who?"], include_reasons=True), timeout=10)
    assert answer.reason == pb.DEPTH_REASON_POPULAR
    assert len(answer.items) == 10
    assert not any(item.reasons for item in answer.items)


def test_batches_and_streams_give_reasons_to_those_who_ask(stub: Stub) -> None:
    asked = pb.RecommendRequest(request_id="asked", item_ids=HISTORY, depth=4, include_reasons=True)
    requests = [pb.RecommendRequest(request_id="plain", item_ids=HISTORY, depth=4), asked]
    alone = stub.Recommend(asked, timeout=10)
    for results in (
        stub.RecommendBatch(pb.RecommendBatchRequest(requests=requests), timeout=10).results,
        stub.RecommendStream(iter(requests), timeout=10),
    ):
        found = {each.response.request_id: each.response for each in results}
        assert not any(item.reasons for item in found["plain"].items)
        for item, same in zip(found["asked"].items, alone.items, strict=True):
            assert [name for name, *_ in reasons(item)] == [name for name, *_ in reasons(same)]


async def test_clients_ask_for_reasons(live: Any) -> None:
    with Blocking(live.address) as client:
        answer = client.recommend(["item-10", "item-11"], depth=0, k=1, reasons=True)
        many = client.recommend_many([Query(["item-10", "item-11"], depth=0, k=1, reasons=True)])
    parts = (Reason("item-11", "counting", pytest.approx(0.8)), Reason("item-10", "counting", pytest.approx(0.2)))
    assert answer.items[0].reasons == parts
    assert [each.items[0].reasons for each in many] == [parts]  # type: ignore[union-attr]
    async with AsyncClient(live.address) as client:
        answer = await client.recommend(HISTORY, depth=16, k=1, reasons=True)
        assert {each.source for each in answer.items[0].reasons} == {"network"}
        assert (await client.recommend(HISTORY, depth=16, k=1)).items[0].reasons == ()


def test_the_command_line_shows_what_items_are_due_to(live: Any) -> None:
    ask = ["recommend", "--target", live.address, "--items", "item-10,item-11", "--depth", "0", "-k", "4"]
    shown = fathom(*ask, "--reasons").stdout
    assert "because of" in shown
    assert "item-11 (80% of the count)" in " ".join(shown.split())
    assert "because of" not in fathom(*ask).stdout
    found = json.loads(fathom(*ask, "--reasons", "--json").stdout)["items"]
    assert found[0]["reasons"][0] == {"item_id": "item-11", "source": "counting", "amount": pytest.approx(0.8)}
    assert found[-1]["reasons"] == []
