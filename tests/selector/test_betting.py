"""Tests by betting: never wrong more often than promised, and right soon enough."""

import math

import numpy as np
import pytest

from fathom.selector.betting import Evidence, is_negative, largest_shown, log_capital, values_needed


def noisy(rng: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """Values in [-1, 0.95] with many zeros and rare large ones, as differences of NDCG are."""
    return np.where(rng.random(count) < 0.2, rng.choice([-0.6, 0.6], count), 0.0) + mean


def test_capital_grows_as_a_gambler_would_count_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-0.5, 0.4, 50)
    largest, delta = 0.5, 0.1
    wealth, total, squares, variance = 1.0, 0.0, 0.0, largest**2 / 4
    path = []
    for count, value in enumerate(values, 1):
        stake = min(math.sqrt(2 * math.log(1 / delta) / (len(values) * variance)), 0.75 / largest)
        wealth *= 1 - stake * value
        total += value
        squares += (value - total / (count + 1)) ** 2
        variance = (largest**2 / 4 + squares) / (count + 1)
        path.append(math.log(wealth))
    np.testing.assert_allclose(log_capital(values, largest=largest, delta=delta), path, rtol=1e-12)


def test_a_mean_of_exactly_zero_is_shown_negative_in_at_most_delta_of_the_runs() -> None:
    rng = np.random.default_rng(1)
    wrong = sum(is_negative(noisy(rng, 0.0, 500), largest=0.95, delta=0.05) for _ in range(1000))
    assert wrong / 1000 <= 0.05


def test_a_mean_clearly_below_zero_is_shown_and_one_above_never() -> None:
    rng = np.random.default_rng(2)
    assert is_negative(noisy(rng, -0.05, 2000), largest=0.95, delta=0.05)
    assert not is_negative(noisy(rng, 0.05, 2000), largest=0.95, delta=0.05)
    assert not is_negative(np.empty(0), largest=0.95, delta=0.05)


def test_as_many_values_as_are_said_to_be_needed_do() -> None:
    rng = np.random.default_rng(3)
    few = noisy(rng, -0.02, 200)
    needed = values_needed(few - few.mean() - 0.02, largest=0.95, delta=0.05)
    assert needed is not None
    shown = [is_negative(noisy(rng, -0.02, needed), largest=0.95, delta=0.05) for _ in range(100)]
    assert np.mean(shown) > 0.5
    assert values_needed(few - few.mean() + 0.01, largest=0.95, delta=0.05) is None


def test_values_that_hardly_differ_are_still_needed_in_numbers_as_stakes_are_bounded() -> None:
    rng = np.random.default_rng(5)

    def values(count: int) -> np.ndarray:
        return -0.01 * (rng.random(count) < 0.2) * rng.random(count)

    needed = values_needed(values(1_000), largest=0.99, delta=0.05)
    assert needed is not None
    assert not is_negative(values(needed // 4), largest=0.99, delta=0.05)
    assert is_negative(values(needed), largest=0.99, delta=0.05)


def test_the_largest_shown_is_found_by_bisection() -> None:
    assert largest_shown(lambda x: x <= 0.3) == pytest.approx(0.3, abs=1e-5)
    assert largest_shown(lambda _: False) == 0.0


@pytest.mark.parametrize("expected", [0.75, 0.9])
def test_a_stream_as_good_as_expected_seldom_raises_suspicion(expected: float) -> None:
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(500):
        evidence = Evidence(expected)
        richest = 1.0
        for value in rng.binomial(10, expected, 300) / 10:
            evidence.add(value)
            richest = max(richest, evidence.capital)
        alarms += richest >= 1 / 0.05
    assert alarms / 500 <= 0.05


def test_a_fall_is_noticed_soon_however_long_all_was_well() -> None:
    rng = np.random.default_rng(5)
    for before in (10, 20_000):
        evidence = Evidence(0.74)
        for value in rng.binomial(10, 0.75, before) / 10:
            evidence.add(value)
        assert evidence.capital < 100
        count = 0
        while evidence.capital < 100:
            evidence.add(rng.binomial(10, 0.6) / 10)
            count += 1
        assert count < 300
    assert evidence.count == before + count
    assert 0 < evidence.mean < 1
