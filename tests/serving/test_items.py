"""Items are added, changed and removed while real servers answer."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis_server import redis_at

from fathom.benchmarks.server import started
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc
from fathom.runtime import live_catalogue
from fathom.serving.items.contract import ItemStore
from fathom.serving.items.open import open_items

NEW = pb.CatalogueItem(id="new", title="New", categories=["western"], similar_item_ids=["item-3"])


def upsert(*items: pb.CatalogueItem) -> pb.UpsertItemsRequest:
    return pb.UpsertItemsRequest(items=items)


def ids(answer: pb.RecommendResponse) -> list[str]:
    return [item.id for item in answer.items]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_at(tmp_path_factory.mktemp("redis") / "socket") as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "redis"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        import redis

        url: str = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushall()
        return url
    return "memory" if request.param == "memory" else f"sqlite:{tmp_path / 'items.db'}"


@pytest.fixture
async def store(setting: str) -> AsyncIterator[ItemStore]:
    opened = open_items(setting)
    assert opened is not None
    yield opened
    await opened.close()


async def test_a_store_gives_back_what_was_last_said_of_each_item(store: ItemStore) -> None:
    assert await store.write("one", {"b": b"1", "a": b"2"}) == 1
    assert await store.write("two", {"a": b"3"}) == 1
    assert await store.write("one", {"b": None, "c": b""}) == 2
    assert sorted(await store.changes("one", 0)) == [("a", 1, b"2"), ("b", 2, None), ("c", 2, b"")]
    assert sorted(await store.changes("one", 1)) == [("b", 2, None), ("c", 2, b"")]
    assert await store.changes("two", 1) == []
    assert [each.id for each in await store.page("one", "", 2)] == ["a", "b"]
    assert [each.id for each in await store.page("one", "b", 2)] == ["c"]


async def test_many_changes_are_read_whole_and_in_their_order(store: ItemStore) -> None:
    for part in range(5):
        await store.write("one", {f"{part}-{number}": b"" for number in range(900)})
    await store.write("one", dict.fromkeys(("0-7", "4-7")))
    found = await store.changes("one", 0)
    assert len(found) == 4_500
    assert [each.version for each in found] == sorted(each.version for each in found)
    assert {each.id: each.version for each in found if each.record is None} == {"0-7": 6, "4-7": 6}
    assert len(await store.changes("one", 4)) == 901


async def test_an_added_item_is_recommended_and_listed_until_it_is_removed(local: Any, setting: str) -> None:
    async with local(catalogue=setting) as it:
        done = await it.stub.UpsertItems(upsert(NEW, pb.CatalogueItem(id="item-1", title="Renamed")))
        assert (done.added, done.updated, done.catalogue_version, done.workers_behind) == (1, 1, 1, 0)
        request = pb.RecommendRequest(item_ids=["item-2"], k=100, include_titles=True)
        for depth in (0, 4, 16):
            request.depth = depth
            answer = await it.stub.Recommend(request)
            titles = {item.id: item.title for item in answer.items}
            assert (titles["new"], titles["item-1"], answer.catalogue_version) == ("New", "Renamed", 1)
        own = await it.stub.Recommend(pb.RecommendRequest(item_ids=["new"], depth=4))
        assert (own.history_used, own.unknown_items) == (1, 0)
        assert (await it.stub.GetBundle(pb.GetBundleRequest())).items == 51
        gone = await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["new", "item-5", "who?"]))
        assert (gone.removed, gone.catalogue_version) == (2, 2)
        assert (await it.stub.GetBundle(pb.GetBundleRequest())).items == 49
        for depth in (0, 4, 16):
            request.depth = depth
            assert {"new", "item-5"}.isdisjoint(ids(await it.stub.Recommend(request)))
        listed = await it.stub.ListItems(pb.ListItemsRequest())
        assert [(each.item.id, each.trained, each.removed) for each in listed.items] == [
            ("item-1", True, False),
            ("item-5", True, True),
            ("new", False, True),
        ]
        first = await it.stub.ListItems(pb.ListItemsRequest(page_size=2))
        rest = await it.stub.ListItems(pb.ListItemsRequest(page_size=2, page_token=first.next_page_token))
        assert [*first.items, *rest.items] == list(listed.items)
        assert not rest.next_page_token


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "the message has 0 items; send 1 to 1000"),
        ([pb.CatalogueItem(id="")], "id has 0 bytes, at least 1"),
        ([NEW, NEW], "an item occurs twice in the message; send each once"),
        ([pb.CatalogueItem(id="x")], "nothing places item 'x': the bundle has no text encoder; name similar items"),
        ([NEW, pb.CatalogueItem(id="x", similar_item_ids=["new"])], "item 'x' is like 'new' of the same message; send"),
        ([pb.CatalogueItem(id="item-1", boost=11)], "item 'item-1': boost is 11; give one from -10 to 10"),
        ([pb.CatalogueItem(id="item-1", boost=float("nan"))], "item 'item-1': boost is nan"),
        (
            [pb.CatalogueItem(id="item-1", attributes={"price": float("inf")})],
            "item 'item-1': attribute 'price' is inf",
        ),
        ([pb.CatalogueItem(id="item-1", expires=-1)], "item 'item-1': expires has -1; send seconds"),
        ([pb.CatalogueItem(id="item-1", title="x" * 1_025)], "item 'item-1': its title has 1025 bytes, at most 1024"),
        ([pb.CatalogueItem(id="item-1", categories=[""])], "item 'item-1': a category has 0 bytes, at least 1"),
    ],
)
async def test_a_message_that_contradicts_the_contract_changes_nothing(
    local: Any, items: list[pb.CatalogueItem], words: str
) -> None:
    async with local(catalogue="memory") as it:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await it.stub.UpsertItems(upsert(*items))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (refused.value.details() or "")
        assert not (await it.stub.ListItems(pb.ListItemsRequest())).items


async def test_a_server_without_a_catalogue_says_how_to_get_one(local: Any) -> None:
    async with local() as it:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["item-1"]))
        assert refused.value.details() == "this server keeps no catalogue; start it with `fathom serve --catalogue`"


async def test_changes_outlive_a_restart_whatever_their_order(local: Any, tmp_path: Path) -> None:
    setting = f"sqlite:{tmp_path / 'items.db'}"
    request = pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4)
    async with local(catalogue=setting) as it:
        await it.stub.UpsertItems(upsert(NEW))
        await it.stub.UpsertItems(upsert(pb.CatalogueItem(id="newer", similar_item_ids=["new"])))
        # Said of again, "new" comes after "newer", which is placed by it.
        await it.stub.UpsertItems(upsert(NEW))
        await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["item-7"]))
        before = await it.stub.Recommend(request)
    async with local(catalogue=setting) as it:
        after = await it.stub.Recommend(request)
        assert sorted(ids(after)) == sorted(ids(before))
        assert {"new", "newer"} <= {*ids(after)}
        assert "item-7" not in ids(after)
        assert after.catalogue_version == 4


async def test_items_that_are_like_each_other_outlive_a_restart(local: Any, tmp_path: Path) -> None:
    setting = f"sqlite:{tmp_path / 'items.db'}"
    async with local(catalogue=setting) as it:
        await it.stub.UpsertItems(upsert(pb.CatalogueItem(id="a", similar_item_ids=["item-1"])))
        await it.stub.UpsertItems(upsert(pb.CatalogueItem(id="b", similar_item_ids=["a"])))
        await it.stub.UpsertItems(upsert(pb.CatalogueItem(id="a", similar_item_ids=["b", "item-1"])))
    async with local(catalogue=setting) as it:
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4))
        assert {"a", "b"} <= {*ids(answer)}


async def test_a_catalogue_that_has_no_room_for_all_that_is_stored_still_serves(
    local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = f"sqlite:{tmp_path / 'items.db'}"
    async with local(catalogue=setting) as it:
        await it.stub.UpsertItems(
            upsert(*(pb.CatalogueItem(id=name, attributes={name: 1}, similar_item_ids=["item-1"]) for name in "abc"))
        )
    monkeypatch.setattr(live_catalogue, "MOST_ATTRIBUTES", 2)
    async with local(catalogue=setting) as it:
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4))
        assert {"a", "b", "c"} & {*ids(answer)} == {"a", "b"}


async def test_an_item_that_a_bundle_cannot_place_can_be_removed(local: Any, tmp_path: Path) -> None:
    setting = f"sqlite:{tmp_path / 'items.db'}"
    async with local(catalogue=setting) as it:
        for each in ("new", "other"):
            await it.stub.UpsertItems(upsert(pb.CatalogueItem(id=each, similar_item_ids=["item-3"])))
        await it.stub.UpsertItems(upsert(pb.CatalogueItem(id="newer", similar_item_ids=["new"])))
        await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["new"]))
    async with local(catalogue=setting) as it:
        assert "newer" not in ids(await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4)))
        assert (await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["newer"]))).removed == 1
        assert (await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["newer"]))).removed == 0
        listed = await it.stub.ListItems(pb.ListItemsRequest())
        assert [each.item.id for each in listed.items if each.removed] == ["new", "newer"]


async def test_what_is_answered_holds_though_the_store_has_lost_what_was_said_before(
    local: Any, redis_url: str
) -> None:
    import redis

    redis.Redis.from_url(redis_url).flushall()
    async with local(catalogue=redis_url) as it:
        for _ in range(3):
            await it.stub.UpsertItems(upsert(NEW))
        redis.Redis.from_url(redis_url).flushall()
        gone = await it.stub.RemoveItems(pb.RemoveItemsRequest(item_ids=["new", "item-5"]))
        assert (gone.removed, gone.catalogue_version) == (2, 4)
        answer = await it.stub.Recommend(pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4))
        assert {"new", "item-5"}.isdisjoint(ids(answer))


async def test_rules_may_name_and_find_added_items(local: Any) -> None:
    pinned = pb.Rules(pins=[pb.Pin(item_id="new", position=1)])
    async with local(catalogue="memory") as it:
        await it.stub.UpsertItems(upsert(NEW))
        for depth in (0, 4, 16):
            request = pb.RecommendRequest(item_ids=["item-2"], k=5, depth=depth, rules=pinned)
            assert ids(await it.stub.Recommend(request))[0] == "new"
            request = pb.RecommendRequest(item_ids=["item-2"], k=100, depth=depth, rules=pb.Rules(diversity=0.5))
            assert "new" in ids(await it.stub.Recommend(request))


async def test_the_last_page_says_that_it_is_the_last(local: Any) -> None:
    async with local(catalogue="memory") as it:
        await it.stub.UpsertItems(upsert(*(pb.CatalogueItem(id=f"item-{i}") for i in range(4))))
        assert not (await it.stub.ListItems(pb.ListItemsRequest(page_size=4))).next_page_token
        assert (await it.stub.ListItems(pb.ListItemsRequest(page_size=3))).next_page_token == "item-2"


async def test_a_change_that_comes_while_a_bundle_is_exchanged_is_in_the_new_one(
    local: Any, synthetic_bundle: Path, uncounted_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.symlink_to(synthetic_bundle)
    async with local(path=folder, catalogue="memory") as it:
        await it.stub.UpsertItems(upsert(NEW))
        other = tmp_path / "other"
        other.symlink_to(uncounted_bundle)
        other.rename(folder)
        changes = [upsert(pb.CatalogueItem(id=f"x-{i}", similar_item_ids=["item-1"])) for i in range(30)]
        reloading = asyncio.create_task(_of(it.stub.Reload(pb.ReloadRequest())))
        for change in changes:
            await it.stub.UpsertItems(change)
        reloaded = (await reloading).bundles[0]
        assert reloaded.version != reloaded.previous
        request = pb.RecommendRequest(item_ids=["item-2"], k=100, depth=4)
        assert {"new", *(f"x-{i}" for i in range(30))} <= {*ids(await it.stub.Recommend(request))}


async def _of(call: Any) -> Any:
    return await call


def test_every_worker_applies_what_one_was_told(synthetic_bundle: Path, tmp_path: Path) -> None:
    options = ("--workers", "2", "--catalogue", f"sqlite:{tmp_path / 'items.db'}")
    with started(synthetic_bundle, *options) as server:
        stubs = [_stub(server.address, number) for number in range(12)]
        for round in range(5):
            done = stubs[round].UpsertItems(upsert(NEW), timeout=10)
            assert done.workers_behind == 0
            request = pb.RecommendRequest(item_ids=["item-2"], k=100, depth=0)
            assert all("new" in ids(stub.Recommend(request, timeout=10)) for stub in stubs)
            gone = stubs[-round].RemoveItems(pb.RemoveItemsRequest(item_ids=["new"]), timeout=10)
            assert (gone.removed, gone.workers_behind) == (1, 0)
            assert all("new" not in ids(stub.Recommend(request, timeout=10)) for stub in stubs)


def test_what_was_answered_outlives_kill_9(synthetic_bundle: Path, tmp_path: Path) -> None:
    options = ("--catalogue", f"sqlite:{tmp_path / 'items.db'}")
    answered: list[str] = []
    for round in range(2):
        with started(synthetic_bundle, *options) as server:
            stub = _stub(server.address, 0)
            until_s = time.monotonic() + 0.3
            while time.monotonic() < until_s:
                name = f"x-{round}-{len(answered)}"
                stub.UpsertItems(upsert(pb.CatalogueItem(id=name, similar_item_ids=["item-1"])), timeout=10)
                answered.append(name)
            os.kill(server.pid, signal.SIGKILL)
    with started(synthetic_bundle, *options) as server:
        stub = _stub(server.address, 0)
        listed = [each.item.id for each in stub.ListItems(pb.ListItemsRequest(page_size=1_000), timeout=10).items]
        assert sorted(answered) == listed
        request = pb.RecommendRequest(item_ids=["item-2"], k=1_000, depth=4)
        assert {*answered} <= {*ids(stub.Recommend(request, timeout=10))}


def _stub(address: str, number: int) -> recommender_pb2_grpc.RecommenderStub:
    channel = grpc.insecure_channel(address, options=[("fathom.number", number)])
    return recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
