"""The benchmark of the selector measures every step of real decisions."""

import pytest

from fathom.benchmarks.systems.selector_latency import measure_latency


@pytest.mark.parametrize(("items", "history"), [(1_682, 10), (12_000, 200)])
def test_a_decision_is_timed_whole_and_in_its_steps(items: int, history: int) -> None:
    latency = measure_latency(items, history, decisions=300)
    assert (latency.items, latency.history) == (items, history)
    assert 0 < latency.median_us <= latency.p99_us <= latency.p999_us
    steps = (latency.features_us, latency.complexity_us, latency.policy_us)
    assert min(steps) > 0
    # As long in the median, so no less at its end; a machine that is busy meanwhile may say otherwise by half.
    assert latency.idle_p99_us > latency.median_us / 2
    assert sum(steps) == pytest.approx(latency.median_us, rel=0.5)
    assert latency.median_us < 1_000  # a guard against a slip of orders of magnitude, not the published figure
