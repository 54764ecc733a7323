"""The simplest learner ships that is not measurably worse than the best, at equal cost."""

from dataclasses import replace

import numpy as np
import pytest

from fathom.errors import DataError
from fathom.exporter.certification.hull import area_above, cost_of, hull
from fathom.exporter.certification.learners import learned_members, relative_costs
from fathom.exporter.certification.outcomes import Costs, Outcomes
from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.net import NetModel

DEPTHS = (4, 8, 16)
COSTS = Costs(DEPTHS, np.array([1, 200]), np.array([[1.0, 2.0, 4.0]] * 2))
COUNT = len(Features._fields)


def requests(disagreement: np.ndarray, features: np.ndarray) -> Outcomes:
    """Requests whose depths 4 and 8 give others than the deepest's items: so many, and half as many."""
    count = len(disagreement)
    best = np.tile(np.arange(10), (count, len(DEPTHS), 1))
    for column, share in enumerate((1.0, 0.5)):
        others = np.arange(10) >= 10 - np.rint(10 * share * disagreement)[:, None]
        best[:, column] += 100 * others
    told = np.tile(-np.arange(10.0), (count, len(DEPTHS), 1))
    no_quality, digests = np.full((count, len(DEPTHS)), np.nan), np.zeros(count, dtype="V32")
    users, lengths = np.arange(count) // 3, np.full(count, 50)
    return Outcomes(DEPTHS, users, lengths, features, np.zeros(count), no_quality, best, told, digests)


def features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, COUNT))


def test_a_straight_line_is_enough_where_losses_follow_one() -> None:
    rows = features(900)
    members = learned_members(requests(np.clip(0.5 + 0.3 * rows[:, 0], 0, 1), rows), COSTS, 20)
    assert {type(each.model) for each in members} == {LossModel}
    spent = [float((each.probabilities(rows) @ [1, 2, 4]).mean()) for each in members]
    assert spent == sorted(spent, reverse=True)


def test_what_only_a_net_can_tell_is_learned_by_a_net() -> None:
    rows = features(1500)
    members = learned_members(requests((rows[:, 0] * rows[:, 1] > 0).astype(float), rows), COSTS, 20)
    assert {type(each.model) for each in members} == {NetModel}


def test_costs_are_lines_by_length_that_never_cross() -> None:
    known = replace(requests(np.zeros(200), features(200)), lengths=np.repeat([50, 200], 100))
    straight = Costs(DEPTHS, np.array([0, 200]), np.array([[1.0, 2.0, 4.0], [3.0, 6.0, 12.0]]))
    found = relative_costs(known, straight)
    np.testing.assert_allclose(found.fixed, np.array([1, 2, 4]) / 9)
    np.testing.assert_allclose(found.per_item, np.array([0.01, 0.02, 0.04]) / 9)
    # These lines would lie below 0 for short histories.
    bent = Costs(DEPTHS, np.array([1, 50, 200]), np.array([[0.3, 0.5, 1.0], [0.4, 0.8, 1.5], [2.5, 5.0, 10.0]]))
    found = relative_costs(known, bent)
    assert found.fixed == [0, 0, 0]
    assert 0 < found.per_item[0] < found.per_item[1] < found.per_item[2]
    assert 125 * found.per_item[2] == pytest.approx(1.0)


def test_too_few_requests_teach_nothing() -> None:
    rows = features(20)
    with pytest.raises(DataError, match="20 requests are too few"):
        learned_members(requests(np.zeros(20), rows), COSTS, 20)


def test_area_is_the_mean_height_above_the_hull() -> None:
    static_cost, static_value = np.array([1.0, 2.0, 4.0]), np.array([0.4, 0.5, 1.0])
    corners, heights = hull(static_cost, static_value)
    assert corners.tolist() == [1.0, 4.0]
    assert heights.tolist() == [0.4, 1.0]
    assert area_above(static_cost[[0, 2]], static_value[[0, 2]], static_cost, static_value) == pytest.approx(0.0)
    # A triangle of height .2 over the whole range.
    cost, value = np.array([2.5]), np.array([0.9])
    assert area_above(cost, value, static_cost, static_value) == pytest.approx(0.1, abs=1e-3)


def test_the_cost_of_a_level_is_where_a_mixture_reaches_it() -> None:
    cost, value = np.array([1.0, 2.0, 4.0, 5.0]), np.array([0.4, 0.7, 1.0, 0.9])
    assert cost_of(0.85, cost, value) == pytest.approx(3.0)
    assert cost_of(0.1, cost, value) == pytest.approx(1.0)
    assert cost_of(1.0, cost, value) == pytest.approx(4.0)
    assert np.isnan(cost_of(1.1, cost, value))
