"""Routings: what happens to one request online is what the certificate assumed for many."""

import math

import numpy as np
import pytest

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import (
    Cascade,
    Learned,
    Mixture,
    RoutingInputs,
    Rule,
    coin,
    confidence,
    gated,
    neighbours_mixed,
    priced,
    thresholds,
)

DEPTHS = (4, 8, 12, 16)
COSTS = (0.3, 0.5, 0.75, 1.0)
COUNT = len(Features._fields)


def rows(count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (count, COUNT))
    table[rng.random(table.shape) < 0.05] = math.nan
    return table


def learned_model() -> LossModel:
    table = rows(1000)
    losses = 0.1 * np.column_stack([np.nan_to_num(table[:, 0]) * share for share in (1.0, 0.5, 0.2)])
    return LossModel.fit(table, losses)


def asked(count: int = 400) -> RoutingInputs:
    rng = np.random.default_rng(3)
    return RoutingInputs(rows(count), rng.random(count), rng.random((count, len(DEPTHS), 3)))


def gates() -> tuple[LossModel, ...]:
    """Going on gains where the first feature is large and the exit is unsure of its answer."""
    many, rng = asked(1000), np.random.default_rng(4)
    found = []
    for place in range(len(DEPTHS) - 1):
        gain = 0.1 * np.nan_to_num(many.features[:, 0]) - 0.1 * many.confidence[:, place, 1]
        gains = np.column_stack([gain * share for share in (0.5, 0.8, 1.0)[: len(DEPTHS) - 1 - place]])
        found.append(LossModel.fit(many.at_exit(place), gains + rng.normal(0, 0.01, gains.shape)))
    return tuple(found)


@pytest.mark.parametrize(
    "routing",
    [
        *thresholds(DEPTHS, 4),
        *(Learned("learned", DEPTHS, price, COSTS, learned_model()) for price in (0.0, 0.05, 0.2, 5.0)),
    ],
)
def test_online_and_offline_choose_alike(routing: Rule | Learned) -> None:
    table = rows()
    complexity = np.random.default_rng(1).random(len(table))
    chances = routing.probabilities(RoutingInputs(table, complexity, np.empty(0)))
    for row, simple, chance in zip(table, complexity, chances, strict=True):
        depth = routing.depth(Features(*row.tolist()), float(simple), 0.5)
        assert chance[DEPTHS.index(depth)] == 1.0
        assert chance.sum() == 1.0


def test_a_mixture_gives_each_depth_its_share_and_equal_histories_the_same() -> None:
    mixture = Mixture("mixture", DEPTHS, (0.6, 0.25, 0.0, 0.15))
    rng = np.random.default_rng(2)
    histories = [rng.integers(0, 3000, rng.integers(1, 50)) for _ in range(4000)]
    features = Features(*[0.0] * COUNT)
    chosen = [mixture.depth(features, 0.5, coin(items)) for items in histories]
    for depth, share in zip(DEPTHS, mixture.shares, strict=True):
        sigma = math.sqrt(share * (1 - share) / len(chosen))
        assert abs(chosen.count(depth) / len(chosen) - share) <= 4 * sigma
    assert chosen == [mixture.depth(features, 0.5, coin(items.copy())) for items in histories]
    np.testing.assert_allclose(mixture.probabilities(asked(3)), [mixture.shares] * 3)
    assert mixture.words == "60 % depth 4, 25 % depth 8, 15 % depth 16"


def test_families_go_from_the_safest_to_the_cheapest() -> None:
    mixtures = neighbours_mixed(DEPTHS, 10)
    spent = [float(np.dot(each.shares, COSTS)) for each in mixtures]
    assert spent == sorted(spent, reverse=True)
    assert mixtures[0].shares == pytest.approx((0, 0, 0.1, 0.9))
    assert mixtures[-1].shares == (1, 0, 0, 0)
    for prices in (priced(learned_model(), DEPTHS, COSTS, asked(), 20), gated(gates(), DEPTHS, COSTS, asked(), 20)):
        spent = [float((each.probabilities(asked()) @ np.array(COSTS)).mean()) for each in prices]
        assert spent == sorted(spent, reverse=True)
        assert prices[0].price == 0
        assert spent[-1] == pytest.approx(COSTS[0])


def test_a_cascade_goes_on_exit_by_exit_while_a_deeper_depth_is_worth_its_price() -> None:
    cascade = Cascade("cascade", DEPTHS, 0.05, COSTS, gates())
    many = asked()
    chances = cascade.probabilities(many)
    for row in range(len(many.features)):
        place = 0
        while place < 3 and cascade.goes_on(place, many.at_exit(place)[row]):
            place += 1
        assert chances[row, place] == 1.0
    assert 0 < chances[:, 0].mean() < 1
    assert cascade.depth(Features(*[0.0] * COUNT), 0.5, 0.5) == 16
    assert cascade.words == "on from exit to exit while the expected gain exceeds 0.05 x cost"


def test_confidence_is_the_best_score_and_its_distance_to_the_second_and_the_last() -> None:
    assert confidence([0.9, 0.8, 0.5]) == pytest.approx((0.9, 0.1, 0.4))
    assert confidence([0.9]) == (0.0, 0.0, 0.0)


def test_what_cannot_be_a_routing_is_refused() -> None:
    with pytest.raises(ValueError, match="fit together"):
        Cascade("cascade", DEPTHS, 0.1, COSTS, gates()[:2])
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", DEPTHS, (0.5, 0.5))
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", (4, 8), (0.5, 0.6))
    with pytest.raises(ValueError, match="fit together"):
        Learned("learned", (4, 8), 0.1, COSTS, learned_model())
