"""A real server arranges by the rules of its file where a request brings none; Reload reads them again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_items import SeededEncoder, upsert

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.serving.request_decoder import RequestDecoder
from fathom.serving.requested_rules import ServerRules


def asked(depth: int, **changes) -> pb.RecommendRequest:
    return pb.RecommendRequest(item_ids=["item-1", "item-2"], depth=depth, k=5, **changes)


@pytest.mark.parametrize("depth", [0, 8])
async def test_the_servers_rules_hold_until_reload_reads_others(local, tmp_path: Path, depth: int) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        "block_lists: {recalled: [item-30]}\n"
        "default: {pins: [{item_id: item-30, position: 2}, {item_id: item-1, position: 9}]}"
    )
    async with local(rules=str(file)) as it:
        ids = [item.id for item in (await it.stub.Recommend(asked(depth))).items]
        assert (ids[1], ids[-1], len(ids)) == ("item-30", "item-1", 5)
        blocked = await it.stub.Recommend(asked(depth, filter=pb.Filter(block_lists=["recalled"])))
        assert "item-30" not in [item.id for item in blocked.items]
        own = pb.Rules(boosts=[pb.Boost(item_id="item-40", amount=9)])
        ids = [item.id for item in (await it.stub.Recommend(asked(depth, rules=own))).items]
        assert ids[0] == "item-40"
        assert "item-1" not in ids

        file.write_text("default: {pins: [{item_id: item-31, position: 1}]}")
        assert not (await it.stub.Reload(pb.ReloadRequest())).bundles[0].error
        assert (await it.stub.Recommend(asked(depth))).items[0].id == "item-31"
        file.write_text("default: {caps: [{category: nowhere, at_most: 1}]}")
        assert "nowhere" in (await it.stub.Reload(pb.ReloadRequest())).bundles[0].error
        assert (await it.stub.Recommend(asked(depth))).items[0].id == "item-31"


async def test_a_server_does_not_start_with_rules_that_cannot_be(local, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("default: {diversity: 7}")
    with pytest.raises(ConfigError, match="diversity is 7"):
        async with local(rules=str(file)):
            pass


@pytest.mark.parametrize("depth", [0, 8])
async def test_default_rules_may_name_a_category_and_ranges_an_attribute_that_only_added_items_have(
    local, tmp_path: Path, depth: int
) -> None:
    file = tmp_path / "rules.yaml"
    new = pb.CatalogueItem(
        id="new", title="New", categories=["fresh"], attributes={"price": 30}, similar_item_ids=["item-3"]
    )
    settings = {"catalogue": f"sqlite:{tmp_path / 'catalogue.db'}", "rules": str(file)}
    file.write_text("{}")
    async with local(**settings) as it:
        await it.stub.UpsertItems(pb.UpsertItemsRequest(items=[new]))
    file.write_text("default: {boosts: [{category: fresh, amount: 9}]}")
    async with local(**settings) as it:
        assert (await it.stub.Recommend(asked(depth))).items[0].id == "new"
        for low, high, found in ((30, 30, ["new"]), (0, 29, []), (31, 99, [])):
            ranges = [pb.Range(attribute="price", at_least=low, at_most=high)]
            answer = await it.stub.Recommend(asked(depth, filter=pb.Filter(ranges=ranges)))
            assert [item.id for item in answer.items] == found


def test_a_block_list_is_looked_up_once_for_all_requests_until_the_catalogue_changes(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = LiveCatalogue(bundle, encoder=SeededEncoder())
    decoder = RequestDecoder(bundle, catalogue, {}, load_profile("cloud"))

    class Ids(list[str]):
        read = 0

        def __iter__(self) -> Iterator[str]:
            Ids.read += 1
            return super().__iter__()

    decoder.use_rules(ServerRules({"recalled": Ids(["item-3", "new", "nothing"])}))
    request = pb.RecommendRequest(filter=pb.Filter(exclude_item_ids=["item-5"], block_lists=["recalled"] * 100))
    assert [decoder.query(request, None)[0].exclude.tolist() for _ in range(3)] == [[5, 3]] * 3
    assert Ids.read == 1
    upsert(catalogue, ItemRecord("new", "New"))
    assert decoder.query(request, None)[0].exclude.tolist() == [5, 3, catalogue.find("new")]
