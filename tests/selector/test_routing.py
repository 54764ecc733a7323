"""Routings: what happens to one request online is what the certificate assumed for many."""

import math

import numpy as np
import pytest

from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import (
    CONFIDENCE,
    SHARPNESS,
    Cascade,
    ExitAnswers,
    Learned,
    Mixture,
    RoutingInputs,
    Rule,
    coin,
    confidence,
    gated,
    mixed,
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
        *thresholds(DEPTHS, np.linspace(0, 1, 101), 4),
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
    mixtures = mixed(DEPTHS, 16, 8, 10)
    spent = [float(np.dot(each.shares, COSTS)) for each in mixtures]
    assert spent == sorted(spent, reverse=True)
    assert mixtures[0].shares == pytest.approx((0, 0.1, 0, 0.9))
    assert mixtures[-1].shares == (0, 1, 0, 0)
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


def answers(items: list[list[int]], scores: list[list[float]]) -> ExitAnswers:
    pairs = zip(items, scores, strict=True)
    return ExitAnswers.of([(np.array(best, np.int64), np.array(values, np.float32)) for best, values in pairs])


def test_confidence_is_what_an_exit_says_of_its_answer_and_of_what_changed_since_the_exit_before() -> None:
    first = answers([[3, 1, 2], [5]], [[0.9, 0.8, 0.5], [0.9]])
    told = confidence(first, None)
    np.testing.assert_allclose(told[0, :3], (0.9, 0.1, 0.4), rtol=1e-6)
    shares = np.exp(np.array([0, -0.1, -0.4]) / SHARPNESS)
    shares /= shares.sum()
    assert told[0, 3] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
    assert told[1, :4].tolist() == [0.0] * 4
    assert np.isnan(told[:, 4:]).all()
    second = answers([[3, 9, 1], [6, 5]], [[0.95, 0.7, 0.6], [0.4, 0.3]])
    np.testing.assert_allclose(confidence(second, first)[:, 4:], [(2 / 3, 0.05), (0.5, -0.5)], rtol=1e-5)
    assert confidence(second.select(np.array([1])), first.select(np.array([1])))[0].tolist() == (
        confidence(second, first)[1].tolist()
    )
    assert len(CONFIDENCE) == told.shape[1]


def test_an_answer_without_items_is_not_sure_of_anything() -> None:
    nothing = answers([[], [1, 2]], [[], [math.nan, math.nan]])
    assert confidence(nothing, nothing).shape == (2, len(CONFIDENCE))
    assert confidence(nothing, nothing)[0, :4].tolist() == [0.0] * 4


def test_gates_that_know_only_the_first_figures_of_the_confidence_decide_as_they_did() -> None:
    many = asked()
    wide = RoutingInputs(many.features, many.complexity, np.random.default_rng(6).random((400, len(DEPTHS), 6)))
    narrow = RoutingInputs(many.features, many.complexity, wide.confidence[:, :, :3])
    cascade = Cascade("cascade", DEPTHS, 0.05, COSTS, gates())
    np.testing.assert_array_equal(cascade.probabilities(wide), cascade.probabilities(narrow))


def test_what_cannot_be_a_routing_is_refused() -> None:
    with pytest.raises(ValueError, match="fit together"):
        Cascade("cascade", DEPTHS, 0.1, COSTS, gates()[:2])
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", DEPTHS, (0.5, 0.5))
    with pytest.raises(ValueError, match="share"):
        Mixture("mixture", (4, 8), (0.5, 0.6))
    with pytest.raises(ValueError, match="fit together"):
        Learned("learned", (4, 8), 0.1, COSTS, learned_model())
