"""The graphical procedure: rejects what it should, in whatever order, and wrongly no more often than its level."""

import math

import numpy as np
import pytest

from fathom.exporter.certification.families import mixtures
from fathom.exporter.certification.graphical import rejected
from fathom.selector.schema import Floats

LEVEL = 0.05


def count(p_values: list[list[float]], weights: Floats, transitions: Floats, level: float = LEVEL) -> list[int]:
    def evidence(p_value: float) -> float:
        return -math.log(p_value)

    return rejected(p_values, evidence, weights=weights, transitions=transitions, level=level)


def in_turn(size: int) -> Floats:
    """Each passes its share on to all others alike."""
    return (1 - np.eye(size)) / max(size - 1, 1)


def test_one_sequence_ends_at_its_first_failure() -> None:
    assert count([[0.01, 0.049, 0.06, 0.001]], np.ones(1), np.zeros((1, 1))) == [2]


def test_with_one_hypothesis_each_it_is_holms_procedure() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        p_values = np.exp(-random.exponential(3, 5))
        ordered = np.sort(p_values)
        holm = np.cumprod(ordered <= LEVEL / np.arange(5, 0, -1)).sum()
        found = count([[p] for p in p_values], np.full(5, 0.2), in_turn(5))
        assert sum(found) == holm
        assert all(p_values[each] <= ordered[holm - 1] for each in np.flatnonzero(found))


def test_a_sequence_that_is_finished_gives_its_level_to_the_others() -> None:
    # Alone .04 is not below half of the level; with the other's half it is below the whole.
    assert count([[0.04, 0.04], [0.01]], np.full(2, 0.5), in_turn(2)) == [2, 1]
    assert count([[0.04, 0.04], [0.03]], np.full(2, 0.5), in_turn(2)) == [0, 0]


def test_what_would_go_to_a_finished_sequence_goes_where_that_one_gave_its_own() -> None:
    # A chain: the first gives all to the second, that one to the third.
    chain = np.eye(3, k=1)
    assert count([[0.01], [0.001], [0.05]], np.array([0.5, 0.5, 0.0]), chain) == [1, 1, 1]
    assert count([[0.001], [0.3], [0.001]], np.array([1.0, 0.0, 0.0]), chain) == [1, 0, 0]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_mixtures_never_hold_more_than_the_level_and_all_fall_where_nothing_is_lost(size: int) -> None:
    depths = (0, 4, 8, 12, 16)[-size:]
    sequences, weights, transitions = mixtures(depths, 0.05)
    assert weights.sum() == pytest.approx(1)
    assert (transitions.sum(1) <= 1 + 1e-9).all()
    assert (np.diag(transitions) == 0).all()
    p_values = [[1e-9] * len(each) for each in sequences]
    assert count(p_values, weights, transitions) == [len(each) for each in sequences]


def test_no_mixture_is_tested_that_could_not_lose_more_than_eps_whatever_a_depth_loses() -> None:
    for eps, first in ((0.05, 0.1), (0.01, 0.05), (0.3, 0.35)):
        sequences, _, _ = mixtures((4, 16), eps)
        assert [each.shares[0] for each in sequences[0]][:1] == [pytest.approx(first)]
        assert sequences[0][-1].shares == (1.0, 0.0)


def test_a_dip_on_the_way_does_not_keep_a_shallower_depth_from_being_certified() -> None:
    sequences, weights, transitions = mixtures((4, 8, 12, 16), 0.05)
    to_12, to_8, to_4, *_ = (len(each) for each in sequences)
    p_values = [[0.9] * to_12, [1e-6] * to_8, [1e-6] * to_4, *([1e-6] * len(each) for each in sequences[3:])]
    found = count(p_values, weights, transitions)
    assert found[:3] == [0, to_8, to_4]
    assert found[4] == len(sequences[4])


def test_any_true_hypothesis_is_rejected_no_more_often_than_the_level() -> None:
    random = np.random.default_rng(1)
    sequences, weights, transitions = mixtures((4, 8, 12, 16), 0.05)
    wrong, replications, level = 0, 2000, 0.1
    for _ in range(replications):
        # From a random place on every sequence is of true hypotheses, all with p-values of their own.
        false = [int(random.integers(0, len(each) + 1)) for each in sequences]
        p_values = [
            np.where(np.arange(len(each)) < bound, 1e-12, random.random(len(each))).tolist()
            for each, bound in zip(sequences, false, strict=True)
        ]
        found = count(p_values, weights, transitions, level)
        wrong += any(number > bound for number, bound in zip(found, false, strict=True))
    assert 0.3 * level < wrong / replications < 1.3 * level
