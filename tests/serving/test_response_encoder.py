"""Answers on the wire: joined from bytes, they are the message that the generated code would have made."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_items import SeededEncoder, remove, upsert
from memory_in_use import used_bytes

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.catalogue import Catalogue
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.query import Answer, Timing
from fathom.selector.choice import Choice, DepthReason
from fathom.serving.response_encoder import ResponseEncoder

IDS = ("a", "é" * 60, "x" * 300, "")
TITLES = ("", "A title", "t" * 200, "日本")


@pytest.fixture(scope="module")
def encoder(synthetic_bundle: Path) -> ResponseEncoder:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = Catalogue(IDS, TITLES, ((),) * len(IDS))
    bundle = replace(bundle, catalogue=catalogue)
    return ResponseEncoder(bundle, LiveCatalogue(bundle))


@pytest.mark.parametrize("titles", [False, True])
@pytest.mark.parametrize("complexity", [None, 0.0, 0.75])
def test_a_response_is_the_message_of_its_fields(
    encoder: ResponseEncoder, titles: bool, complexity: float | None, synthetic_bundle: Path
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
    assert pb.RecommendResponse.FromString(encoder.response(request, answer, 6)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_a_response_leaves_nothing_behind(encoder: ResponseEncoder) -> None:
    """Whoever sends request ids could make a server grow."""
    answer = Answer(
        np.arange(3), np.ones(3, np.float32), Choice(8, DepthReason.SIMPLE, "why"), 5, Timing(1, 2, 3, 4, 11)
    )
    requests = [pb.RecommendRequest(request_id=f"{number:0100}") for number in range(100)]
    for _ in range(10):
        for request in requests:
            encoder.response(request, answer, 0)
    before = used_bytes()
    for _ in range(50):
        for request in requests:
            encoder.response(request, answer, 0)
    assert used_bytes() - before < 100_000  # of ids of 500,000 bytes


def test_a_title_is_the_one_that_was_said_last(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    catalogue = LiveCatalogue(bundle, encoder=SeededEncoder())
    encoder = ResponseEncoder(bundle, catalogue)

    def title(id: str) -> str:
        item = catalogue.find(id)
        answer = Answer(
            np.array([item]), np.zeros(1, np.float32), Choice(8, DepthReason.FIXED, ""), 1, Timing(*[0] * 5)
        )
        (found,) = pb.RecommendResponse.FromString(
            encoder.response(pb.RecommendRequest(include_titles=True), answer, 0)
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
