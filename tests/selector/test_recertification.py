"""Certifying again from second runs: the cheapest mixture that holds, wrong no more often than promised."""

import numpy as np
import pytest

from fathom.selector.recertification import FIRST_ATTEMPT, LARGEST_ATTEMPT, Recertification, certify_again

DEPTHS = (4, 8, 16)
COSTS = {4: 1.0, 8: 2.0, 16: 4.0}


def agreements(rng: np.random.Generator, count: int, *means: float) -> np.ndarray:
    """Shares of ten items, (count, depths), with these means."""
    return rng.binomial(10, means, (count, len(means))) / 10


def test_the_routing_that_saves_most_is_chosen_and_lacks_no_more_than_is_allowed() -> None:
    values = agreements(np.random.default_rng(0), 2000, 0.7, 0.95)
    found = certify_again(values, DEPTHS, COSTS, allowed=0.06, level=0.01)
    assert found is not None
    # Depth 8 gets nearly all (half of the cost saved), depth 4 could only have a fifth (three quarters of it).
    four, eight, sixteen = found.routing.shares
    assert (four, eight + sixteen) == (0.0, 1.0)
    assert eight * (1 - 0.95) <= 0.06
    assert eight > 0.9
    assert found.agreement == pytest.approx(1 - 0.06 / eight)
    assert found.saved == pytest.approx(eight / 2)


def test_a_depth_without_a_cost_is_not_chosen() -> None:
    values = agreements(np.random.default_rng(0), 500, 0.99, 0.99)
    found = certify_again(values, DEPTHS, {8: 2.0, 16: 4.0}, allowed=0.1, level=0.01)
    assert found is not None
    assert found.routing.shares == (0.0, 1.0, 0.0)


def test_a_share_that_cannot_lack_more_than_is_allowed_is_no_finding() -> None:
    nothing = np.zeros((500, 2))
    assert certify_again(nothing, DEPTHS, COSTS, allowed=0.1, level=0.01) is None
    assert certify_again(np.ones((500, 2)), DEPTHS, COSTS, allowed=0.0, level=0.01) is None


def test_what_is_certified_lacks_too_much_in_at_most_the_level_of_the_runs() -> None:
    rng, wrong, level = np.random.default_rng(1), 0, 0.1
    for _ in range(200):
        found = certify_again(agreements(rng, 200, 0.7, 0.8), DEPTHS, COSTS, allowed=0.1, level=level)
        assert found is not None
        four, eight, _ = found.routing.shares
        wrong += four * 0.3 + eight * 0.2 > 0.1
    assert wrong / 200 <= level


def test_each_attempt_takes_new_and_twice_as_much_evidence_at_its_own_level(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def certify(values: np.ndarray, *_: object, allowed: float, level: float) -> None:
        assert allowed == 0.05
        asked.append((len(values), level))

    monkeypatch.setattr("fathom.selector.recertification.certify_again", certify)
    again = Recertification(DEPTHS, COSTS, alpha=0.01)
    while again.attempts < 6:
        if again.add((1.0, 1.0)):
            assert again.attempt(0.05) is None
            assert again.gathered == 0
    assert [count for count, _ in asked] == [FIRST_ATTEMPT * 2**n for n in range(5)] + [LARGEST_ATTEMPT] == [
        500, 1000, 2000, 4000, 8000, 8000,
    ]  # fmt: skip
    assert [level for _, level in asked] == pytest.approx([0.01 / (n * (n + 1)) for n in range(1, 7)])
    assert again.succeeded == 0
