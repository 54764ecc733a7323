"""What one message may ask for, and who is served while a large one is answered."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import groupby
from pathlib import Path

import grpc
import pytest
from fake_engine import FakeEngine

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.shares import Client
from fathom.serving.access.caller import Caller
from fathom.serving.bundles import Bundles
from fathom.serving.config import ServerSettings
from fathom.serving.gate import Gate
from fathom.serving.many import BEGUN_AT_ONCE, Many
from fathom.serving.metrics import Metrics
from fathom.serving.recommend import Recommend
from fathom.serving.work import LARGEST_BATCH, is_light, work_of

BOMBER, VICTIM = Caller(Client("a", "bomber")), Caller(Client("b", "victim"))
LIGHT = pb.RecommendRequest(item_ids=["item-1"], depth=0)


class Watched(Recommend):
    """Notes whose requests are begun, in their order."""

    def enter(self, request, deadline_s, caller, owner, done):
        self.begun = [*getattr(self, "begun", []), caller.client.connection]
        return super().enter(request, deadline_s, caller, owner, done)


@pytest.fixture
async def recommend(synthetic_bundle: Path) -> AsyncIterator[Watched]:
    metrics, gate = Metrics(), Gate()
    bundles = Bundles(
        synthetic_bundle,
        ServerSettings(),
        metrics,
        lambda bundle, threads: FakeEngine(bundle.vectors, bundle.depths),  # noqa: ARG005
    )
    await bundles.start()
    gate.open()
    yield Watched(bundles, None, gate, metrics)
    await bundles.close()


def batch(requests: Iterable[pb.RecommendRequest]) -> bytes:
    return pb.RecommendBatchRequest(requests=requests).SerializeToString()


async def test_another_client_is_served_between_the_parts_of_a_batch(recommend: Watched) -> None:
    bomb = asyncio.create_task(Many(recommend, 2**22).batch(batch([LIGHT] * 200), None, BOMBER))
    while not bomb.done():
        await recommend.answer(LIGHT, None, VICTIM)
        await asyncio.sleep(0)
    assert len(pb.RecommendBatchResponse.FromString(await bomb).results) == 200
    parts = [len(list(group)) for who, group in groupby(recommend.begun) if who == "bomber"]
    assert parts == [BEGUN_AT_ONCE] * (200 // BEGUN_AT_ONCE)


async def test_parts_of_many_batches_do_not_add_up(recommend: Watched) -> None:
    many = Many(recommend, 2**22)
    bombs = [asyncio.create_task(many.batch(batch([LIGHT] * 40), None, BOMBER)) for _ in range(20)]
    gathered = asyncio.gather(*bombs)
    while not gathered.done():
        await recommend.answer(LIGHT, None, VICTIM)
        await asyncio.sleep(0)
    parts = [len(list(group)) for who, group in groupby(recommend.begun) if who == "bomber"]
    assert max(parts) == BEGUN_AT_ONCE


async def test_a_heavy_request_waits_for_one_of_another_client_however_many_that_has(recommend: Watched) -> None:
    heavy = pb.RecommendRequest(item_ids=["item-1"], depth=0, k=1_000)
    bombs = [asyncio.create_task(recommend.answer(heavy, None, BOMBER)) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(recommend.answer(heavy, None, VICTIM), *bombs)
    assert recommend.begun.index("victim") <= 2
    assert recommend.begun.count("bomber") == 50


@pytest.mark.parametrize(
    ("more", "light"),
    [
        ({"depth": 0}, True),
        ({"depth": 0, "include_reasons": True}, False),
        ({"depth": 0, "rules": pb.Rules(diversity=0.5)}, False),
        ({"depth": 4, "include_reasons": True, "rules": pb.Rules(diversity=0.5)}, True),
        ({"k": 101}, False),
        ({"filter": pb.Filter(allow_item_ids=["a"] * 1_000)}, False),
    ],
)
def test_a_request_takes_its_turn_where_it_keeps_the_event_loop_long(more: dict[str, object], light: bool) -> None:
    assert is_light(pb.RecommendRequest(**{"item_ids": ["item-1"], **more})) is light  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "work"),
    [
        ({}, 1),
        ({"k": 100}, 1),
        ({"k": 101}, 2),
        ({"k": 1_000}, 10),
        # It is refused alone, and costs nothing.
        ({"k": 4_000_000_000}, 10),
        ({"rules": pb.Rules(diversity=0.5)}, 1),
        ({"k": 100, "rules": pb.Rules(diversity=0.5)}, 5),
        ({"k": 1_000, "rules": pb.Rules(diversity=0.5)}, 10),
        ({"k": 1_000, "rules": pb.Rules(caps=[pb.Cap(at_most=3)])}, 20),
        ({"item_ids": ["item-1"] * 10_000}, 10),
        ({"filter": pb.Filter(allow_item_ids=["a"] * 1_500, exclude_item_ids=["a"] * 500)}, 3),
        ({"include_reasons": True}, 3),
        ({"include_reasons": True, "item_ids": ["item-1"] * 100}, 22),
        ({"include_reasons": True, "item_ids": [], "user_id": "u", "k": 1_000}, 31),
    ],
)
def test_a_request_counts_as_much_as_it_asks_for(more: dict[str, object], work: int) -> None:
    assert work_of(pb.RecommendRequest(**{"item_ids": ["item-1"], **more})) == work  # type: ignore[arg-type]


async def test_a_batch_that_asks_for_too_much_is_refused_before_any_of_it_is_done(recommend: Watched) -> None:
    heavy = pb.RecommendRequest(item_ids=["item-1"], depth=0, k=1_000)
    many = Many(recommend, 2**22)
    most = LARGEST_BATCH // work_of(heavy)
    with pytest.raises(InvalidRequestError, match=r"as much as 1,030 plain requests, at most 1,024; send several"):
        await many.batch(batch([heavy] * (most + 1)), None, BOMBER)
    assert not hasattr(recommend, "begun")
    answered = pb.RecommendBatchResponse.FromString(await many.batch(batch([heavy] * most), None, BOMBER))
    assert all(len(result.response.items) == 49 for result in answered.results)


async def test_a_batch_whose_answer_would_not_fit_into_a_message_is_refused_before_any_of_it_is_done(local) -> None:
    titled = pb.RecommendRequest(item_ids=["item-1"], depth=0, k=50, include_titles=True)
    async with local(max_message_mb=1) as it:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=[titled] * 1_000))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "MB, at most 1 MB; send several batches, or ask for a smaller k or no titles" in caught.value.details()
        answer = await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=[titled] * 300))
        assert len(answer.results[-1].response.items) == 49


async def test_what_does_not_fit_into_a_batchs_answer_after_all_is_refused_alone(local) -> None:
    titled = pb.RecommendRequest(request_id="r", item_ids=["item-1"], depth=0, k=50, include_titles=True)
    items = [pb.CatalogueItem(id=f"item-{i}", title="t" * 1_000) for i in range(50)]
    async with local(catalogue="memory", max_message_mb=1) as it:
        await it.stub.UpsertItems(pb.UpsertItemsRequest(items=items))
        answer = await it.stub.RecommendBatch(pb.RecommendBatchRequest(requests=[titled] * 40))
    assert answer.ByteSize() < 2**20
    answered = [result.HasField("response") for result in answer.results]
    assert 15 < sum(answered) < 25
    refused = answer.results[answered.index(False)].error
    assert (refused.request_id, refused.code) == ("r", grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert "fill a message of 1 MB; send fewer requests in a batch" in refused.message


async def test_messages_of_many_events_and_items_are_read_in_turn_with_others(local) -> None:
    events = [pb.Event(event_id=str(i), item_id=f"item-{i % 50}", timestamp=i) for i in range(3_000)]
    items = [
        pb.CatalogueItem(id=f"item-{i % 50}" if i < 50 else f"n{i}", similar_item_ids=["item-1"]) for i in range(1_000)
    ]
    for item in items[:50]:
        del item.similar_item_ids[:]
    async with local(catalogue="memory", history="memory") as it:
        assert (await it.stub.AppendEvents(pb.AppendEventsRequest(user_id="u", events=events))).appended == 1_000
        del events[7:]
        events[6].item_id = "x" * 200
        with pytest.raises(grpc.aio.AioRpcError, match="item_id has 200 bytes"):
            await it.stub.AppendEvents(pb.AppendEventsRequest(user_id="u", events=events * 500))
        with pytest.raises(grpc.aio.AioRpcError, match="is like 'item-1' of the same message"):
            await it.stub.UpsertItems(pb.UpsertItemsRequest(items=items))
        del items[1]
        done = await it.stub.UpsertItems(pb.UpsertItemsRequest(items=items))
        assert (done.added, done.updated) == (950, 49)
        large = pb.CatalogueItem(id="item-2", categories=["c" * 100] * 700)
        with pytest.raises(grpc.aio.AioRpcError, match=r"an item has .* bytes, at most 65,536"):
            await it.stub.UpsertItems(pb.UpsertItemsRequest(items=[large]))


async def test_a_page_of_large_items_ends_early_and_the_next_one_goes_on(local) -> None:
    names = [f"{number:03}" + "c" * 120 for number in range(100)]
    large = [pb.CatalogueItem(id=f"new-{i}", categories=names, similar_item_ids=["item-1"]) for i in range(10, 99)]
    async with local(catalogue="memory") as it:
        for low in range(0, len(large), 20):
            await it.stub.UpsertItems(pb.UpsertItemsRequest(items=large[low : low + 20]))
        first = await it.stub.ListItems(pb.ListItemsRequest(page_size=1_000))
        assert 1 < len(first.items) < len(large)
        assert first.ByteSize() < 1.1 * 2**20
        found = [each.item.id for each in first.items]
        while first.next_page_token:
            first = await it.stub.ListItems(pb.ListItemsRequest(page_size=1_000, page_token=first.next_page_token))
            found += [each.item.id for each in first.items]
        assert found == [each.id for each in large]


async def test_others_have_their_turn_while_many_events_of_added_items_are_counted(local) -> None:
    new = [pb.CatalogueItem(id=f"new-{i}", similar_item_ids=["item-1"]) for i in range(500)]
    events = [pb.Event(event_id=str(i), item_id=f"new-{i % 500}", timestamp=i) for i in range(1_000)]
    async with local(catalogue="memory", history="memory") as it:
        await it.stub.UpsertItems(pb.UpsertItemsRequest(items=new))
        assert (await it.stub.AppendEvents(pb.AppendEventsRequest(user_id="u", events=events))).appended == 1_000
        rounds = 0

        async def other() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        counter = it.server._counter
        waiting = len(next(iter(counter._waiting.values())))
        await counter.exchange()
        task.cancel()
        assert rounds >= 2 * waiting // 1_000 > 1
