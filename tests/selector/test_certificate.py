"""The certificate: its bounds hold, what was written is read, of older schemas too, and what is none is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fathom.errors import ArtefactError
from fathom.selector.certificate import (
    KINDS,
    SCHEMA_VERSION,
    Certificate,
    Claim,
    Promise,
    at_least,
    buckets,
    kept_at_least,
)
from fathom.selector.routing import Mixture

DELTA = 0.05


def ndcg(rng: np.random.Generator, count: int) -> np.ndarray:
    """Qualities as they come: mostly zero, else 1 / log2(place + 2)."""
    found = rng.random(count) < 0.4
    return np.where(found, 1 / np.log2(rng.integers(0, 10, count) + 2), 0.0)


def shallow(rng: np.random.Generator, full: np.ndarray, loss: float) -> np.ndarray:
    """A depth that answers a third of the users independently, and loses exactly ``loss`` of the mean."""
    other = np.where(rng.random(len(full)) < 1 / 3, ndcg(rng, len(full)), full)
    return np.where(rng.random(len(full)) < loss, 0.0, other)


def test_bounds_lie_below_what_they_bound_and_hold_for_buckets_together() -> None:
    rng = np.random.default_rng(4)
    full = ndcg(rng, 6000)
    routed = shallow(rng, full, 0.02)
    low = kept_at_least(full, routed, level=DELTA)
    assert 0.9 < low < routed.mean() / full.mean()
    assert 0.35 < at_least((full > 0) * 1.0, level=DELTA) < 0.4
    found = buckets(full, routed, {"length": np.arange(6000.0), "popularity": np.zeros(6000)}, level=DELTA)
    assert [each.users for each in found] == [2000, 2000, 2000, 6000]
    assert all(each.low < each.kept for each in found)
    assert found[-1].low < low


def certificate() -> Certificate:
    claims = (
        Claim((4, 8), "mixture", 0.05, 100, routing=Mixture("mixture", (4, 8), (0.5, 0.5)), kept=0.99, saved=0.3),
        Claim((4, 8), "mixture", 0.05, 100, needed=400, kind="agreement"),
    )
    quality = Promise(0.05, 0.05, "2026-01-01T00:00:00Z", "d" * 64, "test")
    promises = {"quality": quality, "agreement": replace(quality, floor=0.5, below=0.1)}
    return Certificate(SCHEMA_VERSION, promises, {"a": "1"}, {4: 1.0, 8: 2.0}, claims)


def test_it_reads_what_it_wrote_and_knows_its_files() -> None:
    loaded = Certificate.parse(json.dumps(certificate().to_json()).encode(), where="certificate.json")
    assert loaded == certificate()
    assert loaded.claim((4, 8)) == loaded.claims[0]
    assert loaded.claim((4, 8), kind="agreement") == loaded.claims[1]
    assert loaded.claim((4, 8, 12)) is None
    assert loaded.differing({"a": "1"}) is None
    assert loaded.differing({"a": "2"}) == "a"
    assert loaded.differing({"b": "1"}) == "b"


def test_a_certificate_of_an_older_schema_holds_what_it_held() -> None:
    claim = {"depths": [4, 8], "policy": "mixture", "level": 0.05, "users": 100, "kept": 0.99, "saved": 0.3}
    claim |= {"routing": {"policy": "mixture", "depths": [4, 8], "shares": [0.5, 0.5]}}
    promise = {"eps": 0.05, "delta": 0.05, "created": "2026-01-01T00:00:00Z", "dataset": "d" * 64, "part": "test"}
    rest = {"files": {"a": "1"}, "costs_ms": {"4": 1.0, "8": 2.0}, "claims": [claim], "metric": "ndcg@10", "seed": None}
    only_quality = replace(
        certificate(), promises={"quality": certificate().promises["quality"]}, claims=certificate().claims[:1]
    )
    for schema in (1, 2):
        data = json.dumps({"schema_version": schema, **promise, **rest}).encode()
        assert Certificate.parse(data, where="certificate.json") == only_quality


@pytest.mark.parametrize("policy", ["rule", "cascade"])
def test_a_claim_whose_routing_is_no_longer_served_is_left_out(policy: str) -> None:
    form = certificate().to_json()
    form["claims"][0] |= {"policy": policy, "routing": {"policy": policy, "depths": [4, 8], "threshold": 0.5}}
    found = Certificate.parse(json.dumps(form).encode(), where="certificate.json")
    assert found == replace(certificate(), claims=certificate().claims[1:])


def test_claims_of_a_kind_that_was_not_tested_again_stay() -> None:
    both = certificate()
    quality, agreement = (replace(both, promises={kind: both.promises[kind]}, claims=both.of(kind)) for kind in KINDS)
    assert quality.beside(agreement) == both
    assert both.beside(quality) == both
    newer = replace(quality, claims=(replace(quality.claims[0], saved=0.4),))
    assert newer.beside(both).claims == (*newer.claims, *agreement.claims)
    assert newer.beside() == newer


PROMISED = {"eps": 0.05, "delta": 0.05, "created": "2026", "dataset": "d", "part": "test"}


def claim_for(depths: tuple[int, ...], *, routed: tuple[int, ...]) -> dict[str, object]:
    routing = {"policy": "mixture", "depths": routed, "shares": [0.5, 0.5]}
    return {"depths": depths, "policy": "mixture", "level": 0.05, "users": 9, "routing": routing}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("promises", {}),
        ("promises", {"quality": {"eps": 1.5}}),
        ("promises", {"agreement": PROMISED, "quality": PROMISED}),
        ("promises", {"agreement": PROMISED | {"floor": 0.5, "below": 0.1}}),
        ("claims", [{"depths": [4]}]),
        ("claims", [{"depths": [8, 4], "policy": "mixture", "level": 0.05, "users": 9}]),
        ("claims", [claim_for((4, 16), routed=(4, 8))]),
        ("extra", 1),
        ("schema_version", 4),
        ("schema_version", 2),
    ],
)
def test_what_is_no_certificate_is_refused_in_one_line(key: str, value: object) -> None:
    data = json.dumps(certificate().to_json() | {key: value}).encode()
    with pytest.raises(ArtefactError, match=r"^certificate\.json: ") as caught:
        Certificate.parse(data, where="certificate.json")
    assert "\n" not in str(caught.value)
