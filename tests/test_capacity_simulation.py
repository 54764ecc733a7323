"""The simulated core: against closed forms where there are any, and as the server's own rules say where not."""

import math

import numpy as np
import pytest

from fathom.edge_profiles.profile import load_profile
from fathom.runtime.cost import Line
from fathom.tools.capacity.simulation import Core, Outcome, Rules, Traffic, most_per_s, simulate

SERVICE_S = 0.004
RULES = Rules(load_profile("cloud"), (0, 4, 16), fixed=True)
COUNT = 25_000


def alone(depth: int = 4, count: int = COUNT, seed: int = 1) -> Traffic:
    return Traffic.drawn(count, {depth: 1.0}, {16: 1.0}, seed)


def single_server(jitter: tuple[float, ...], load: float, count: int = COUNT) -> Outcome:
    """A core that never runs two requests together."""
    core = Core({(4, 16): Line(0.001, 0.003)}, 1e-4, jitter=jitter, max_batch=1, max_queue=count, patience_s=1e6)
    return simulate(core, RULES, alone(count=count), load / SERVICE_S)


def test_batches_of_one_wait_exactly_as_lindley_s_recursion_says() -> None:
    """Lindley, 1952: a wait is the wait before it and its service, less the time between the two arrivals."""
    count, per_s = 3_000, 0.9 / SERVICE_S
    gaps_s, wait_s, expected = alone(count=count).gaps / per_s, 0.0, []
    for gap_s in gaps_s:
        wait_s = max(0.0, wait_s + SERVICE_S - gap_s) if expected else 0.0
        expected.append(wait_s + SERVICE_S)
    outcome = single_server((1.0,), 0.9, count)
    np.testing.assert_allclose(outcome.took_s, expected[count - len(outcome.took_s) :], rtol=1e-9)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_batches_of_one_that_take_equally_long_wait_as_in_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is rho s / (2 (1 - rho))."""
    outcome = single_server((1.0,), load)
    expected_s = SERVICE_S * (1 + load / (2 * (1 - load)))
    assert np.nanmean(outcome.took_s) == pytest.approx(expected_s, rel=0.04)
    assert outcome.busy == pytest.approx(load, rel=0.02)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_batches_of_one_of_exponential_length_take_as_long_as_in_m_m_1(load: float) -> None:
    """The time in M/M/1 is exponential: its mean is s / (1 - rho), and its quantile p that times -log(1 - p)."""
    exponential = -np.log1p(-(np.arange(4000) + 0.5) / 4000)
    outcome = single_server(tuple(exponential.tolist()), load)
    mean_s = SERVICE_S / (1 - load)
    assert np.nanmean(outcome.took_s) == pytest.approx(mean_s, rel=0.06)
    assert outcome.quantile_s(0.99) == pytest.approx(mean_s * -math.log(0.01), rel=0.12)


def test_batches_bear_a_load_that_single_requests_could_not() -> None:
    core = Core({(4, 16): Line(0.003, 0.001)}, 1e-4)
    outcome = simulate(core, RULES, alone(count=6_000), 2 / 0.004)
    assert outcome.quantile_s(0.99) < 0.03
    assert outcome.in_time(0.03) > 0.99


def test_the_parts_that_are_done_at_arrival_and_afterwards_are_work_too() -> None:
    whole, split = (
        simulate(Core({(4, 16): Line(0.001, 0.001)}, 1e-4, **parts), RULES, alone(count=6_000), 400.0)
        for parts in ({}, {"around": {(4, 16): 0.5}})
    )
    # The same work at smaller batches, since what is read early does not delay its own batch.
    assert split.busy == pytest.approx(whole.busy, rel=0.15)


def test_a_deadline_makes_depths_fall_before_requests_are_refused() -> None:
    lines = {(4, 16): Line(0.0005, 0.0005), (16, 16): Line(0.001, 0.002)}
    core, rules = Core(lines, 2e-4), Rules(load_profile("cloud"), (0, 4, 16), deadline_s=0.05)
    mixed = Traffic.drawn(6_000, {4: 0.5, 16: 0.5}, {16: 1.0}, 1)
    calm, busy, flooded = (simulate(core, rules, mixed, per_s) for per_s in (100.0, 900.0, 3000.0))
    assert calm.shallower() < 0.01
    assert set(calm.depths.tolist()) == {4, 16}
    assert 0.05 < busy.shallower() < flooded.shallower()
    assert 0 in flooded.depths
    assert min(each.in_time(0.05) for each in (calm, busy, flooded)) > 0.95


@pytest.mark.parametrize(("fixed", "mix", "busy"), [(True, {0: 1.0}, 0.1), (False, {0: 0.5, 4: 0.5}, 0.55)])
def test_depth_0_takes_the_time_of_its_answer_and_no_more(fixed: bool, mix: dict[int, float], busy: float) -> None:
    core = Core({(4, 16): Line(0.0, 0.002)}, 2e-4, around={(4, 16): 0.5})
    mixed = Traffic.drawn(6_000, mix, {16: 1.0}, 1)
    outcome = simulate(core, Rules(load_profile("cloud"), (0, 4), fixed=fixed), mixed, 500.0)
    assert outcome.busy == pytest.approx(busy, rel=0.05)
    assert set(outcome.depths.tolist()) == set(mix)


def test_a_core_that_is_taken_away_answers_later() -> None:
    quiet, disturbed = (
        simulate(Core({(4, 16): Line(0.001, 0.001)}, 1e-4, **stalls), RULES, alone(count=6_000), 200.0)
        for stalls in ({}, {"stalls_per_s": 50.0, "stalls_s": (0.02,)})
    )
    assert disturbed.quantile_s(0.99) > quiet.quantile_s(0.99) + 0.02
    assert disturbed.busy > 1.5 * quiet.busy


def test_a_thread_that_waits_for_the_core_answers_later_without_more_work() -> None:
    prompt, late = (
        simulate(
            Core({(4, 16): Line(0.004, 0.004)}, 1e-4, around={(4, 16): 0.3}, delays_s=delays),
            RULES,
            alone(count=6_000),
            100.0,
        )
        for delays in ((0.0,), (0.0, 0.004))
    )
    assert late.quantile_s(0.99) > 1.1 * prompt.quantile_s(0.99)
    assert late.busy == pytest.approx(prompt.busy, rel=0.05)


def test_without_depth_0_what_cannot_be_in_time_is_refused() -> None:
    core, rules = Core({(4, 16): Line(0.0005, 0.002)}, 1e-4), Rules(load_profile("cloud"), (4,), deadline_s=0.05)
    outcome = simulate(core, rules, alone(count=6_000), 1000.0)
    refused = float(np.mean(np.isnan(outcome.took_s)))
    assert refused > 0.4
    assert outcome.quantile_s(1.0) <= 0.05


def test_the_most_that_is_sustained_is_found_within_the_last_step() -> None:
    assert most_per_s(lambda per_s: per_s <= 300.0, 1024.0) == pytest.approx(300.0, abs=2.0)
    assert most_per_s(lambda _: False, 1024.0) == 0.0
