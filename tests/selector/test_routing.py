"""Routings: what happens to one request online is what the certificate assumed for many."""

import math

import numpy as np
import pytest

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import Learned, Mixture, Rule, coin, neighbours_mixed, priced, thresholds

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
    chances = routing.probabilities(table, complexity)
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
    np.testing.assert_allclose(mixture.probabilities(rows(3), np.zeros(3)), [mixture.shares] * 3)
    assert mixture.words == "60 % depth 4, 25 % depth 8, 15 % depth 16"


def test_families_go_from_the_safest_to_the_cheapest() -> None:
    mixtures = neighbours_mixed(DEPTHS, 10)
    spent = [float(np.dot(each.shares, COSTS)) for each in mixtures]
    assert spent == sorted(spent, reverse=True)
    assert mixtures[0].shares == pytest.approx((0, 0, 0.1, 0.9))
    assert mixtures[-1].shares == (1, 0, 0, 0)
    table = rows()
    prices = priced(learned_model(), DEPTHS, COSTS, table, 20)
    spent = [float((each.probabilities(table, np.zeros(len(table))) @ np.array(COSTS)).mean()) for each in prices]
    assert spent == sorted(spent, reverse=True)
    assert prices[0].price == 0
    assert spent[-1] == pytest.approx(COSTS[0])


def test_what_cannot_be_a_routing_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", DEPTHS, (0.5, 0.5))
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", (4, 8), (0.5, 0.6))
    with pytest.raises(ValueError, match="fit together"):
        Learned("learned", (4, 8), 0.1, COSTS, learned_model())
