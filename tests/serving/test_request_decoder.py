"""Requests are decoded and checked against their contract."""

import time
from pathlib import Path

import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.serving.request_decoder import RequestDecoder


def test_a_request_is_of_now_unless_it_says_otherwise(synthetic_bundle: Path) -> None:
    bundle = Bundle.open(synthetic_bundle)
    decoder = RequestDecoder(bundle, LiveCatalogue(bundle), {}, load_profile("cloud"))

    def asked(request_time: int) -> int | None:
        return decoder.query(pb.RecommendRequest(item_ids=["item-1"], request_time=request_time), None)[0].asked_s

    before = int(time.time())
    assert before <= asked(0) <= time.time()
    assert asked(1_700_000_000) == 1_700_000_000
    for bad in (-1, 1_700_000_000_000):
        with pytest.raises(InvalidRequestError, match=f"request_time has {bad}; send seconds since 1970"):
            asked(bad)
