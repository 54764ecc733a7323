"""Certificates keep their word, from histories to claims, whatever part of the users are copies or alike.

Populations whose loss is known: each replication draws users with histories of their own, asks for a certificate, and
counts how often one is given at a loss of exactly eps. It must not be more often than delta, but for what simulating
it a finite number of times explains.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from fathom.exporter.bundle.teachers import case_digests
from fathom.exporter.certification import families
from fathom.exporter.certification.certify import CertificationData, certify
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.runtime.bundle import Bundle
from fathom.selector.features import Features
from fathom.training.dataset import Sequences
from fathom.training.splits import Cases

DEPTHS = (4, 16)
EPS, DELTA = 0.05, 0.1
#: A count of wrong certificates is too high, or shown to be high, where it had this probability or less at delta.
UNLIKELY = 1e-4
LONGEST, ITEMS = 5, 10_000

Draw = Callable[[np.random.Generator, int], tuple[Cases, np.ndarray]]
Seen = Callable[[Outcomes], Outcomes]


@pytest.fixture(autouse=True)
def _all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only mixture that is tested sends every request to depth 4."""
    monkeypatch.setattr(families, "STEPS", 1)


def cases(histories: np.ndarray) -> Cases:
    """One case per row of items (n, LONGEST + 1), the last of which is the target."""
    count = len(histories)
    offsets = np.arange(count + 1) * LONGEST
    items = Sequences(histories[:, :-1].ravel().astype(np.int32), offsets)
    return Cases(items, histories[:, -1].astype(np.int32), np.arange(count, dtype=np.int32))


def ndcg(random: np.random.Generator, count: int) -> np.ndarray:
    """Half of the users find their item among the ten, at any place."""
    return np.where(random.random(count) < 0.5, 1 / np.log2(random.integers(0, 10, count) + 2), 0.0)


def users(random: np.random.Generator, count: int) -> tuple[Cases, np.ndarray]:
    """Users with histories of their own, and their quality (n, 2): depth 4 loses eps of depth 16's mean.

    A quarter of the users have luck of their own at depth 4.
    """
    full = ndcg(random, count)
    shallow = np.where(random.random(count) < 0.25, ndcg(random, count), full)
    shallow = np.where(random.random(count) < EPS, 0.0, shallow)
    return cases(random.integers(0, ITEMS, (count, LONGEST + 1))), np.column_stack([shallow, full])


def alike(random: np.random.Generator, count: int) -> tuple[Cases, np.ndarray]:
    """As ``users``, but all that is lost is lost by those many who have one and the same case."""
    common = 0.2
    full = np.repeat(ndcg(random, count)[:, None], 2, axis=1)
    histories = random.integers(0, ITEMS, (count, LONGEST + 1))
    same = random.random(count) < common
    mean = 0.5 * np.mean(1 / np.log2(np.arange(10) + 2))
    # The mean over all users is (1 - common) mean + common mean; eps of it is lost by the share ``common``.
    full[same], histories[same] = mean, 1
    full[same, 0] = mean - EPS * mean / common
    return cases(histories), full


def outcomes(found: Cases, quality: np.ndarray) -> Outcomes:
    count = len(quality)
    return Outcomes(
        DEPTHS,
        users=found.users.astype(np.int64),
        lengths=np.full(count, LONGEST),
        features=np.zeros((count, len(Features._fields))),
        complexity=np.zeros(count),
        quality=quality,
        best=np.tile(np.arange(10), (count, 2, 1)),
        scores=np.tile(-np.arange(10.0), (count, 2, 1)),
        digests=case_digests(found, LONGEST),
    )


def as_they_are(test: Outcomes) -> Outcomes:
    return test


def told_apart(test: Outcomes) -> Outcomes:
    """As if every user had a case of their own."""
    return replace(test, digests=np.arange(4 * len(test)).reshape(-1, 4).view("V32")[:, 0])


def once_each(test: Outcomes) -> Outcomes:
    """As if a case were asked for once, however many users have it."""
    return test.select(np.unique([int.from_bytes(each) for each in test.digests.tolist()], return_index=True)[1])


def certificates(
    bundle: Bundle, draw: Draw, *, count: int, copies: int = 1, replications: int, seen: Seen = as_they_are
) -> int:
    """How many are given, each wrongly. ``seen``: what is done to the requests before they are judged."""
    random = np.random.default_rng([count, copies])
    costs = Costs(DEPTHS, np.array([1, LONGEST]), np.array([[1.0, 4.0]] * 2))
    given = 0
    for _ in range(replications):
        found, quality = draw(random, count)
        rows = random.permutation(np.tile(np.arange(count), copies))
        found = Cases(found.histories.select(rows), found.targets[rows], np.arange(len(rows), dtype=np.int32))
        test = seen(outcomes(found, quality[rows]))
        measured = CertificationData(test.select(np.arange(1)), test, costs, "simulated", "d" * 64)
        certificate = certify(bundle, measured, eps=EPS, delta=DELTA, depth_sets=[DEPTHS])
        given += certificate.certified
    return given


def too_many(given: int, replications: int) -> bool:
    """Whether so many, or more, are unlikely where each is wrong with probability delta."""
    return bool(binom.sf(given - 1, replications, DELTA) <= UNLIKELY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "copies", "replications"), [(200, 1, 600), (200, 2, 400), (200, 10, 150), (60, 50, 60)]
)
def test_copies_of_users_do_not_make_certificates_wrong_more_often_than_delta(
    bundle_path: Path, count: int, copies: int, replications: int
) -> None:
    bundle = Bundle.open(bundle_path)
    given = certificates(bundle, users, count=count, copies=copies, replications=replications)
    assert not too_many(given, replications)
    if copies >= 10:
        # The test can fail: copies taken for users of their own are certified wrongly far too often.
        given = certificates(bundle, users, count=count, copies=copies, replications=100, seen=told_apart)
        assert too_many(given, 100)


@pytest.mark.slow
def test_users_who_are_alike_and_badly_served_are_not_overlooked(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    assert not too_many(certificates(bundle, alike, count=1000, replications=200), 200)
    # Each case counted once, and nothing else, would not see them.
    assert too_many(certificates(bundle, alike, count=1000, replications=40, seen=once_each), 40)
