"""What a claim says of a routing is below zero where it holds, never above its bound, and shown when it should be."""

import numpy as np
import pytest

from fathom.exporter.certification.hypotheses import BELOW, FLOOR, Terms
from fathom.exporter.certification.outcomes import K, Outcomes
from fathom.selector.betting import log_evidence
from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import Learned, Mixture

DEPTHS = (4, 8, 16)
EPS, DELTA = 0.05, 0.05


def requests(quality: np.ndarray, shared: np.ndarray) -> Outcomes:
    """With this quality (n, 3), and so many of the deepest depth's ten items (n, 3)."""
    count, places = len(quality), np.arange(K)
    return Outcomes(
        DEPTHS,
        users=np.arange(count),
        lengths=np.ones(count, dtype=np.int64),
        features=np.tile(np.linspace(0, 1, count)[:, None], len(Features._fields)),
        complexity=np.linspace(0, 1, count),
        quality=quality,
        best=places + K * (places >= shared[:, :, None]),
        scores=np.zeros((count, 3, K)),
        digests=np.zeros(count, dtype="V32"),
    )


def ndcg(random: np.random.Generator, *size: int) -> np.ndarray:
    return np.where(random.random(size) < 0.4, 1 / np.log2(random.integers(0, 10, size) + 2), 0.0)


def mixture(*shares: float) -> Mixture:
    return Mixture("mixture", DEPTHS, shares)


FEATURES = len(Features._fields)
#: More is expected to be lost where the first feature is large.
LOSSES = LossModel(
    (0.5,) * FEATURES, (0.3,) * FEATURES, (0.1, 0.05), ((0.2, *(0.0,) * (2 * FEATURES - 1)), (0.0,) * (2 * FEATURES))
)
BY_FEATURE = Learned("learned", DEPTHS, 0.2, (0.25, 0.5, 1.0), LOSSES)
ROUTINGS = (mixture(0.3, 0.5, 0.2), mixture(0, 0.1, 0.9), mixture(1, 0, 0), BY_FEATURE)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_mean_is_below_zero_exactly_where_the_claim_holds(routing: Mixture | Learned) -> None:
    random = np.random.default_rng(0)
    shared = np.column_stack([random.integers(3, 11, (50, 2)), np.full(50, 10)])
    asked = requests(ndcg(random, 50, 3), shared)
    chances = routing.probabilities(asked.features)
    (quality,) = Terms("quality", EPS).shortfalls(routing, asked)
    full, routed = asked.quality[:, -1].mean(), (chances * asked.quality).sum(1).mean()
    assert quality.values.mean() == pytest.approx((1 - EPS) * full - routed)
    mean, *bad = Terms("agreement", EPS).shortfalls(routing, asked)
    assert mean.values.mean() == pytest.approx(1 - EPS - (chances * shared / 10).sum(1).mean())
    for each in bad:
        assert each.values.mean() == pytest.approx((chances * (shared < 10 * FLOOR)).sum(1).mean() - BELOW)
    # A tenth of the requests may hold more bad answers than are allowed, so that is to be shown.
    assert len(bad) == 1


@pytest.mark.parametrize("kind", ["quality", "agreement"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_no_value_is_above_its_bound_and_the_worst_answers_reach_it(routing: Mixture | Learned, kind: str) -> None:
    worst = requests(np.tile([0.0, 0.0, 1.0], (50, 1)), np.tile([0, 0, 10], (50, 1)))
    for values, largest in Terms(kind, EPS).shortfalls(routing, worst):  # type: ignore[arg-type]
        assert values.max() == pytest.approx(largest)


def test_with_fewer_elsewhere_than_may_be_bad_only_the_average_is_to_be_shown() -> None:
    asked = requests(np.zeros((5, 3)), np.full((5, 3), 10))
    few, more = mixture(0.05, 0, 0.95), mixture(0.1, 0, 0.9)
    assert [len(Terms("agreement", 0.01, below=0.05).shortfalls(each, asked)) for each in (few, more)] == [1, 2]
    assert Terms("agreement", 0.01).evidence(few, [asked], level=DELTA) > 0


def test_a_deepest_depth_that_has_nothing_to_give_agrees_with_itself() -> None:
    nothing = requests(np.zeros((5, 3)), np.zeros((5, 3), dtype=np.int64))
    nothing.best[:] = -1
    for values, largest in Terms("agreement", EPS).shortfalls(mixture(0.5, 0, 0.5), nothing):
        assert (values <= largest + 1e-12).all()


def test_evidence_is_a_p_value_whatever_level_the_stakes_suit() -> None:
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        full = ndcg(random, 400)
        # A third has luck of its own, and exactly eps is lost.
        other = np.where(random.random(400) < 1 / 3, ndcg(random, 400), full)
        lost = np.where(random.random(400) < EPS, 0.0, other)
        wrong += log_evidence((1 - EPS) * full - lost, largest=1 - EPS, delta=0.01) >= np.log(1 / DELTA)
    assert wrong / 500 <= DELTA


def test_both_promises_of_agreement_must_be_shown_and_however_requests_are_counted() -> None:
    shared = np.full((3000, 3), 10)
    shared[:, :2] = 9
    few_bad = requests(
        np.zeros((3000, 3)), np.where(np.arange(3000)[:, None] % 50 == 0, np.minimum(shared, [3, 3, 10]), 10)
    )
    terms, all_shallow = Terms("agreement", EPS), mixture(1, 0, 0)
    assert terms.evidence(all_shallow, [few_bad], level=DELTA) > np.log(1 / DELTA)
    low_mean = requests(np.zeros((3000, 3)), shared)
    assert terms.evidence(all_shallow, [low_mean], level=DELTA) < np.log(1 / DELTA)
    assert terms.evidence(all_shallow, [few_bad, low_mean], level=DELTA) < np.log(1 / DELTA)
    # On average enough, yet every fifteenth answer is bad.
    many_bad = np.where(np.arange(3000)[:, None] % 15 == 0, np.array([4, 4, 10]), 10)
    often = requests(np.zeros((3000, 3)), many_bad)
    assert terms.kept(all_shallow, often).mean() > 1 - EPS
    assert terms.evidence(all_shallow, [often], level=DELTA) < np.log(1 / DELTA)
    assert Terms("agreement", EPS, below=0.2).evidence(all_shallow, [often], level=DELTA) > np.log(1 / DELTA)


def test_too_few_users_are_told_how_many_are_needed() -> None:
    random = np.random.default_rng(3)
    full = ndcg(random, 300)
    other = np.where(random.random(300) < 1 / 3, ndcg(random, 300), full)
    asked = requests(np.column_stack([other - other.mean() + full.mean(), 0.9 * full, full]), np.full((300, 3), 10))
    needed = Terms("quality", EPS).needed(mixture(1, 0, 0), [asked], level=DELTA)
    assert needed is not None
    assert 300 < needed < 20_000
    assert Terms("quality", EPS).needed(mixture(0, 1, 0), [asked], level=DELTA) is None
