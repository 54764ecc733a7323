"""A canary is rolled back for what it breaks, seldom for nothing, and is ready once every limit is shown to be kept."""

import numpy as np
import pytest

from fathom.experiments.canary import CanaryMonitor, Observation, Slowdown, State
from fathom.experiments.config import Canary

LIMITS = Canary(arm="new", max_error_rate=0.01, max_latency_ms=100, max_slowdown=1.2, min_agreement=0.8)


def run(random: np.random.Generator, requests: int, *, limits: Canary = LIMITS, **change: float) -> CanaryMonitor:
    """A canary of so many requests; the control's go on beside it. ``change``: what is wrong with it."""
    monitor = CanaryMonitor(limits, 0.0)
    failed = random.random(requests) < change.get("errors", 0.001)
    slow = change.get("slower", 1.0)
    latencies = np.exp(random.normal(3, 0.4, (requests, 2))) * [1.0, slow]
    agreement = random.binomial(10, change.get("agreement", 0.95), requests) / 10
    for number in range(requests):
        monitor.observe(Observation(False, float(latencies[number, 0])), float(number))
        seen = Observation(True, float(latencies[number, 1]), bool(failed[number]), float(agreement[number]))
        if monitor.observe(seen, float(number)).state is State.ROLL_BACK:
            break
    return monitor


@pytest.mark.parametrize(
    ("change", "word", "within"),
    [
        ({"errors": 0.5}, "failed", 60),
        ({"errors": 0.05}, "failed", 1_500),
        ({"slower": 4.0}, "took", 150),
        ({"slower": 1.6}, "1.2 times as long as the control's", 400),
        ({"agreement": 0.6}, "lacks", 300),
    ],
)
def test_what_breaks_a_limit_is_rolled_back_soon_with_the_reason(
    change: dict[str, float], word: str, within: int
) -> None:
    monitor = run(np.random.default_rng(1), 5_000, **change)
    assert monitor.decision.state is State.ROLL_BACK
    assert word in monitor.decision.reason
    assert monitor.requests <= within


def test_a_rollback_is_final() -> None:
    monitor = run(np.random.default_rng(1), 5_000, errors=0.5)
    before = monitor.decision
    for number in range(2_000):
        assert monitor.observe(Observation(True, 1.0), 1e6 + number) is before


def test_a_good_canary_is_ready_when_all_is_shown_and_not_before_its_time() -> None:
    monitor = run(np.random.default_rng(2), 3_000)
    assert monitor.decision.state is State.PROMOTE_READY
    assert run(np.random.default_rng(2), 900).decision.state is State.CONTINUE
    slow = CanaryMonitor(LIMITS, 0.0)
    for _ in range(3_000):
        slow.observe(Observation(True, 10.0, agreement=1.0), 1.0)
    assert slow.decision.state is State.CONTINUE
    assert "too early" in slow.decision.reason


def test_what_was_not_measured_is_not_taken_for_good() -> None:
    monitor = CanaryMonitor(LIMITS, 0.0)
    for number in range(3_000):
        monitor.observe(Observation(True), float(number))
    assert monitor.decision.state is State.CONTINUE
    assert "not shown yet: latency, slowdown, agreement" in monitor.decision.reason


def test_at_its_limits_a_canary_is_seldom_rolled_back_or_called_ready() -> None:
    limits = Canary(arm="new", max_error_rate=0.02, alpha=0.05, min_requests=1, min_minutes=0)
    random, ended = np.random.default_rng(3), dict.fromkeys(State, 0)
    for _ in range(200):
        monitor, seen = CanaryMonitor(limits, 0.0), set()
        for failed in random.random(800) < 0.02:
            seen.add(monitor.observe(Observation(True, error=bool(failed)), 0.0).state)
        for state in seen:
            ended[state] += 1
    # 200 times 5 %, and the luck of the draw.
    assert ended[State.ROLL_BACK] <= 18
    assert ended[State.PROMOTE_READY] <= 18


def slowed(random: np.random.Generator, requests: int, *, slower: float, share: float = 0.5) -> CanaryMonitor:
    """A canary whose every request takes ``slower`` times as long, on a server whose load comes and goes.

    ``share``: of the canary among all ``requests``; every fiftieth of them meets a pause of the server.
    """
    limits = Canary(arm="new", max_error_rate=None, max_slowdown=1.3, min_requests=1, min_minutes=0)
    monitor, load = CanaryMonitor(limits, 0.0), 0.0
    canaries, steps = random.random(requests) < share, random.normal(0, 0.1, requests)
    own_ms = np.exp(random.normal(0, 0.15, requests)) + 3 * (random.random(requests) < 0.02)
    for is_canary, step, ms in zip(canaries.tolist(), steps.tolist(), own_ms.tolist(), strict=True):
        load = 0.95 * load + step
        took_ms = ms * float(np.exp(load)) * (slower if is_canary else 1.0)
        if monitor.observe(Observation(is_canary, took_ms), 0.0).state is State.ROLL_BACK:
            break
    return monitor


def test_of_1000_canaries_just_as_slow_as_allowed_no_more_than_alpha_are_rolled_back() -> None:
    random = np.random.default_rng(4)
    ended = [slowed(random, 600, slower=1.3).decision.state for _ in range(1_000)]
    assert sum(state is State.ROLL_BACK for state in ended) <= 50


@pytest.mark.parametrize(("share", "within"), [(0.5, 500), (0.1, 350)])
def test_a_canary_a_little_slower_than_allowed_is_rolled_back(share: float, within: int) -> None:
    random = np.random.default_rng(5)
    ended = [slowed(random, 10_000, slower=1.37, share=share) for _ in range(15)]
    assert sum(each.decision.state is State.ROLL_BACK for each in ended) >= 13
    assert float(np.median([each.requests for each in ended])) <= within


def test_every_request_is_compared_in_one_block_only() -> None:
    slowdown = Slowdown(2.0)
    assert [slowdown.add(is_canary, ms) for is_canary, ms in ((False, 1.0), (True, 3.0), (True, 1.0))] == [None] * 3
    assert slowdown.add(False, 1.4) == 0.5
    assert slowdown.add(False, 1.4) is None
