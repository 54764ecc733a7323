"""Answers on the wire: joined from bytes, they are the message that the generated code would have made."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_items import SeededEncoder, remove, upsert
from memory_in_use import used_bytes

from fathom.edge_profiles.profile import load_profile
from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle, Catalogue
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.query import Answer, Timing
from fathom.runtime.shares import Client
from fathom.selector.choice import Choice, DepthReason
from fathom.serving.convert import CLIENT_KEY, Converter, client_of

IDS = ("a", "é" * 60, "x" * 300, "")
TITLES = ("", "A title", "t" * 200, "日本")


@pytest.fixture(scope="module")
def converter(synthetic_bundle: Path) -> Converter:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = Catalogue(IDS, TITLES, ((),) * len(IDS))
    bundle = replace(bundle, catalogue=catalogue)
    return Converter(bundle, LiveCatalogue(bundle), {}, load_profile("cloud"))


@pytest.mark.parametrize("titles", [False, True])
@pytest.mark.parametrize("complexity", [None, 0.0, 0.75])
def test_a_response_is_the_message_of_its_fields(
    converter: Converter, titles: bool, complexity: float | None, synthetic_bundle: Path
) -> None:
    scores = np.array([0.5, 0.0, -0.25, -1.0], np.float32)
    decision = Choice(8, DepthReason.SIMPLE, "because", complexity)
    answer = Answer(np.array([2, 1, 0, 3]), scores, decision, 5, Timing(1, 2, 3, 4, 11))
    request = pb.RecommendRequest(request_id="r", include_titles=titles)
    expected = pb.RecommendResponse(
        request_id="r",
        items=[
            pb.Item(id=IDS[i], score=score, title=TITLES[i] if titles else "")
            for i, score in zip((2, 1, 0, 3), scores.tolist(), strict=True)
        ],
        depth=8,
        reason=pb.DEPTH_REASON_SIMPLE,
        why="because",
        complexity=complexity,
        history_used=5,
        unknown_items=6,
        timings=pb.Timings(select_us=1, queue_us=2, engine_us=3, retrieval_us=4, total_us=11),
        bundle_version=Bundle.open(synthetic_bundle).manifest.version,
    )
    assert pb.RecommendResponse.FromString(converter.response(request, answer, 6)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_a_response_leaves_nothing_behind(converter: Converter) -> None:
    """Whoever sends request ids could make a server grow."""
    answer = Answer(
        np.arange(3), np.ones(3, np.float32), Choice(8, DepthReason.SIMPLE, "why"), 5, Timing(1, 2, 3, 4, 11)
    )
    requests = [pb.RecommendRequest(request_id=f"{number:0100}") for number in range(100)]
    for _ in range(10):
        for request in requests:
            converter.response(request, answer, 0)
    before = used_bytes()
    for _ in range(50):
        for request in requests:
            converter.response(request, answer, 0)
    assert used_bytes() - before < 100_000  # of ids of 500,000 bytes


def test_a_title_is_the_one_that_was_said_last(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = LiveCatalogue(bundle, encoder=SeededEncoder())
    converter = Converter(bundle, catalogue, {}, load_profile("cloud"))

    def title(id: str) -> str:
        item = catalogue.find(id)
        answer = Answer(
            np.array([item]), np.zeros(1, np.float32), Choice(8, DepthReason.FIXED, ""), 1, Timing(*[0] * 5)
        )
        (found,) = pb.RecommendResponse.FromString(
            converter.response(pb.RecommendRequest(include_titles=True), answer, 0)
        ).items
        assert found.id == id
        return found.title

    assert title("item-1") == "Title 1"
    upsert(catalogue, ItemRecord("item-1", "Better"), ItemRecord("new", "New"))
    assert (title("item-1"), title("new")) == ("Better", "New")
    retitled = catalogue.retitled
    upsert(catalogue, ItemRecord("another", "Another"), ItemRecord("item-2", boost=1.0))
    # What was in no answer yet costs nothing that is remembered.
    assert catalogue.retitled == retitled
    remove(catalogue, "item-1", "new")
    upsert(catalogue, ItemRecord("item-1"), ItemRecord("new", "Newer"))
    assert (title("item-1"), title("new")) == ("Title 1", "Newer")


class Call:
    """Of a call's context, who called."""

    def __init__(self, peer: str, *metadata: tuple[str, str]) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:50123", "10.1.2.3"),
        ("ipv6:%5B::1%5D:50123", "::"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50123", "2001:db8:1:2::"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50123", "fe80::"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50123", "10.1.2.3"),
        ("unix:/run/fathom.sock", "unix:/run/fathom.sock"),
        ("unix:", "unix:"),
        ("ipv4:nonsense", "ipv4:nonsense"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_a_connection_and_a_name(peer: str, address: str) -> None:
    assert client_of(Call(peer)) == Client(address, peer, "")
    assert client_of(Call(peer, ("other", "x"), (CLIENT_KEY, "anna"))) == Client(address, peer, "anna")


def test_of_a_long_name_only_the_beginning_counts() -> None:
    assert client_of(Call("unix:", (CLIENT_KEY, "n" * 8_000))).name == "n" * 256


def test_a_request_is_of_now_unless_it_says_otherwise(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    converter = Converter(bundle, LiveCatalogue(bundle), {}, load_profile("cloud"))

    def asked(request_time: int) -> int | None:
        return converter.query(pb.RecommendRequest(item_ids=["item-1"], request_time=request_time), None)[0].asked_s

    before = int(time.time())
    assert before <= asked(0) <= time.time()
    assert asked(1_700_000_000) == 1_700_000_000
    for bad in (-1, 1_700_000_000_000):
        with pytest.raises(InvalidRequestError, match=f"request_time has {bad}; send seconds since 1970"):
            asked(bad)
