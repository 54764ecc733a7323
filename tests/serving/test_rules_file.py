"""A server's own rules: what its file says, which bundle it says it of, and what cannot be in it."""

from pathlib import Path

import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError, InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.serving.request_decoder import RequestDecoder
from fathom.serving.rules_file import load_rules

FILE = """
block_lists: {recalled: [item-3]}
default: {pins: [{item_id: item-7, position: 1}], diversity: 0.5}
bundles:
  shop: {block_lists: {adult: [item-4]}, default: {caps: [{category: "", at_most: 2}]}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def decoder(synthetic_bundle: Path) -> RequestDecoder:
    bundle = Bundle.open(synthetic_bundle)
    return RequestDecoder(bundle, LiveCatalogue(bundle), {}, load_profile("cloud"))


def ask(decoder: RequestDecoder, **changes):
    return decoder.query(pb.RecommendRequest(item_ids=["item-1"], **changes), None)[0]


def test_a_request_without_rules_gets_the_servers_and_one_with_rules_its_own(
    decoder: RequestDecoder, file: Path
) -> None:
    assert ask(decoder).rules is None
    decoder.use_rules(load_rules(file, "other"))
    rules = ask(decoder).rules
    assert rules is not None
    assert (rules.pins, rules.diversity) == ({1: 7}, 0.5)
    mine = ask(decoder, rules=pb.Rules()).rules
    assert mine is not None
    assert (mine.pins, mine.caps, mine.diversity) == ({}, {}, 0)
    decoder.use_rules(load_rules(file, "shop"))
    shop = ask(decoder).rules
    assert shop is not None
    assert (shop.pins, shop.caps) == ({}, {"": 2})


def test_block_lists_are_left_out_by_name(decoder: RequestDecoder, file: Path) -> None:
    decoder.use_rules(load_rules(file, "shop"))
    assert list(ask(decoder, filter=pb.Filter(block_lists=["recalled", "adult"])).exclude) == [3, 4]
    with pytest.raises(NotFoundError, match="block list 'nope'"):
        ask(decoder, filter=pb.Filter(block_lists=["nope"]))


@pytest.mark.parametrize(
    "text",
    [
        "defaults: {}",
        "block_lists: {a: [1]}",
        "default: {pin: []}",
        "default: {diversity: 2}",
        "bundles: {shop: {default: {boosts: [{amount: 1}]}}}",
        "default: 3",
    ],
)
def test_what_cannot_be_in_the_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_rules(path, "any")
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "rules",
    [
        pb.Rules(pins=[pb.Pin(item_id="a", position=0)]),
        pb.Rules(pins=[pb.Pin(item_id="a", position=1), pb.Pin(item_id="b", position=1)]),
        pb.Rules(boosts=[pb.Boost(item_id="a", amount=float("nan"))]),
        pb.Rules(caps=[pb.Cap(at_most=1), pb.Cap(at_most=2)]),
        pb.Rules(diversity=-0.1),
    ],
)
def test_rules_that_contradict_the_contract_are_refused(decoder: RequestDecoder, rules: pb.Rules) -> None:
    with pytest.raises(InvalidRequestError):
        ask(decoder, rules=rules)


def test_unknown_categories_and_attributes_are_not_found(decoder: RequestDecoder) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        ask(decoder, rules=pb.Rules(caps=[pb.Cap(category="nowhere", at_most=1)]))
    with pytest.raises(NotFoundError, match="price"):
        ask(decoder, filter=pb.Filter(ranges=[pb.Range(attribute="price", at_most=30)]))
