"""Routings: what happens to one request online is what the certificate assumed for many."""

import math

import numpy as np
import pytest

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import LENGTH, DepthCosts, Learned, Mixture, coin, learned_routings, least_total, mixed

DEPTHS = (4, 8, 12, 16)
COSTS = (0.3, 0.5, 0.75, 1.0)
PER_ITEM = (0.01, 0.02, 0.03, 0.04)
SPENT = DepthCosts(COSTS, PER_ITEM)
COUNT = len(Features._fields)


def rows(count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, (count, COUNT))
    unknown = rng.random(table.shape) < 0.05
    unknown[:, LENGTH] = False
    table[unknown] = math.nan
    return table


def learned_model() -> LossModel:
    table = rows(1000)
    losses = 0.1 * np.column_stack([np.nan_to_num(table[:, 0]) * share for share in (1.0, 0.5, 0.2)])
    return LossModel.fit(table, losses)


@pytest.mark.parametrize(
    "routing",
    [
        *(Learned("learned", DEPTHS, price, COSTS, learned_model()) for price in (0.0, 0.05, 0.2, 5.0)),
        *(Learned("learned", DEPTHS, price, COSTS, learned_model(), PER_ITEM) for price in (0.0, 0.05, 0.2, 5.0)),
    ],
)
def test_online_and_offline_choose_alike(routing: Learned) -> None:
    table = rows()
    for row, chance in zip(table, routing.probabilities(table), strict=True):
        depth = routing.depth(Features(*row.tolist()))
        assert chance[DEPTHS.index(depth)] == 1.0
        assert chance.sum() == 1.0


def test_a_mixture_gives_each_depth_its_share_and_equal_histories_the_same() -> None:
    mixture = Mixture("mixture", DEPTHS, (0.6, 0.25, 0.0, 0.15))
    rng = np.random.default_rng(2)
    histories = [rng.integers(0, 3000, rng.integers(1, 50)) for _ in range(4000)]
    chosen = [mixture.depth(coin(items)) for items in histories]
    for depth, share in zip(DEPTHS, mixture.shares, strict=True):
        sigma = math.sqrt(share * (1 - share) / len(chosen))
        assert abs(chosen.count(depth) / len(chosen) - share) <= 4 * sigma
    assert chosen == [mixture.depth(coin(items.copy())) for items in histories]
    np.testing.assert_allclose(mixture.probabilities(rows(3)), [mixture.shares] * 3)
    assert mixture.words == "60 % depth 4, 25 % depth 8, 15 % depth 16"


def test_families_go_from_the_safest_to_the_cheapest() -> None:
    mixtures = mixed(DEPTHS, 16, 8, 10)
    spent = [float(np.dot(each.shares, COSTS)) for each in mixtures]
    assert spent == sorted(spent, reverse=True)
    assert mixtures[0].shares == pytest.approx((0, 0.1, 0, 0.9))
    assert mixtures[-1].shares == (0, 1, 0, 0)
    costs = SPENT.of(rows())
    prices = learned_routings(learned_model(), DEPTHS, SPENT, rows(), 20)
    spent = [float((each.probabilities(rows()) * costs).sum(1).mean()) for each in prices]
    assert spent == sorted(spent, reverse=True)
    assert prices[0].price == 0
    assert spent[-1] == pytest.approx(costs[:, 0].mean())


def test_of_two_requests_that_lose_as_much_the_more_expensive_one_goes_shallower() -> None:
    """A long history costs more at the deepest depth, so the same price sends it to a shallower one."""
    losses = np.array([[0.1, 0.05, 0.02]] * 2)
    table = np.zeros((2, COUNT))
    table[:, LENGTH] = (10, 200)
    costs = DepthCosts((0.1, 0.2, 0.3, 0.4), (0.001, 0.002, 0.003, 0.004)).of(table)
    np.testing.assert_allclose(costs, [(0.11, 0.22, 0.33, 0.44), (0.3, 0.6, 0.9, 1.2)])
    assert least_total(losses, costs, 0.15).tolist() == [3, 1]


def test_what_cannot_be_a_routing_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", DEPTHS, (0.5, 0.5))
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", (4, 8), (0.5, 0.6))
    with pytest.raises(ValueError, match="fit together"):
        Learned("learned", (4, 8), 0.1, COSTS, learned_model())
    with pytest.raises(ValueError, match="fit together"):
        Learned("learned", DEPTHS, 0.1, COSTS, learned_model(), PER_ITEM[1:])
