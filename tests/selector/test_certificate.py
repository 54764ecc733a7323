"""The certificate: wrong no more often than promised, powerful where nothing is lost, refused when it is not one."""

import json

import numpy as np
import pytest

from fathom.errors import ArtefactError
from fathom.selector.certificate import (
    SCHEMA_VERSION,
    Certificate,
    Claim,
    at_least,
    buckets,
    certified,
    kept_at_least,
    users_needed,
)
from fathom.selector.routing import Mixture

EPS, DELTA = 0.05, 0.05


def ndcg(rng: np.random.Generator, count: int) -> np.ndarray:
    """Qualities as they come: mostly zero, else 1 / log2(place + 2)."""
    found = rng.random(count) < 0.4
    return np.where(found, 1 / np.log2(rng.integers(0, 10, count) + 2), 0.0)


def shallow(rng: np.random.Generator, full: np.ndarray, loss: float) -> np.ndarray:
    """A depth that answers a third of the users independently, and loses exactly ``loss`` of the mean."""
    other = np.where(rng.random(len(full)) < 1 / 3, ndcg(rng, len(full)), full)
    return np.where(rng.random(len(full)) < loss, 0.0, other)


def test_a_loss_of_exactly_eps_is_certified_in_at_most_delta_of_a_thousand_runs() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        full = ndcg(rng, 1000)
        wrong += certified(full, [shallow(rng, full, EPS)], eps=EPS, level=DELTA)
    assert wrong / 1000 <= DELTA


def test_no_loss_is_certified_by_ten_thousand_users() -> None:
    rng = np.random.default_rng(1)
    full = ndcg(rng, 10_000)
    assert certified(full, [shallow(rng, full, 0.0)], eps=EPS, level=DELTA) == 1


def test_the_first_failure_ends_the_sequence() -> None:
    rng = np.random.default_rng(2)
    full = ndcg(rng, 5000)
    assert certified(full, [full, full, 0 * full, full], eps=EPS, level=DELTA) == 2
    assert certified(full[:20], [full[:20]], eps=EPS, level=DELTA) == 0


def test_too_few_users_are_told_how_many_are_needed() -> None:
    rng = np.random.default_rng(3)
    full = ndcg(rng, 300)
    routed = shallow(rng, full, 0.0)
    needed = users_needed(full, routed - routed.mean() + full.mean(), eps=EPS, level=DELTA)
    assert needed is not None
    assert 300 < needed < 20_000
    assert users_needed(full, 0.9 * full, eps=EPS, level=DELTA) is None


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
    claim = Claim((4, 8), "mixture", 0.05, 100, routing=Mixture("mixture", (4, 8), (0.5, 0.5)), kept=0.99, saved=0.3)
    costs = {4: 1.0, 8: 2.0}
    return Certificate(
        SCHEMA_VERSION, "ndcg@10", 0.05, 0.05, "2026-01-01T00:00:00Z", 0, "d" * 64, "test", {"a": "1"}, costs, (claim,)
    )


def test_it_reads_what_it_wrote_and_knows_its_files() -> None:
    loaded = Certificate.parse(json.dumps(certificate().to_json()).encode(), where="certificate.json")
    assert loaded == certificate()
    assert loaded.claim((4, 8)) == loaded.claims[0]
    assert loaded.claim((4, 8, 12)) is None
    assert loaded.differing({"a": "1"}) is None
    assert loaded.differing({"a": "2"}) == "a"
    assert loaded.differing({"b": "1"}) == "b"


def claim_for(depths: tuple[int, ...], *, routed: tuple[int, ...]) -> dict[str, object]:
    routing = {"policy": "mixture", "depths": routed, "shares": [0.5, 0.5]}
    return {"depths": depths, "policy": "mixture", "level": 0.05, "users": 9, "routing": routing}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eps", 1.5),
        ("claims", [{"depths": [4]}]),
        ("claims", [{"depths": [8, 4], "policy": "mixture", "level": 0.05, "users": 9}]),
        ("claims", [claim_for((4, 16), routed=(4, 8))]),
        ("extra", 1),
        ("schema_version", 3),
    ],
)
def test_what_is_no_certificate_is_refused_in_one_line(key: str, value: object) -> None:
    data = json.dumps(certificate().to_json() | {key: value}).encode()
    with pytest.raises(ArtefactError, match=r"^certificate\.json: ") as caught:
        Certificate.parse(data, where="certificate.json")
    assert "\n" not in str(caught.value)
