"""Costs are what the clock said, and follow it when the machine changes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime.cost import CARE, DEMAND_S, ROUNDS, CostModel, Demand, Lag, Line, Quantile, measure


class FakeMachine:
    """A clock that only runs while the engine does: 1 ms and half a millisecond per depth x request."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.runs: list[tuple[int, int, int]] = []

    def run(self, depth: int, length: int, requests: int) -> None:
        self.runs.append((depth, length, requests))
        self.now_s += 0.001 + 0.0005 * depth * requests

    def clock(self) -> float:
        return self.now_s


def model(tail: float = 0.1) -> CostModel:
    lines = {(4, 16): Line(0.001, 0.002), (8, 16): Line(0.002, 0.004), (12, 16): Line(0.003, 0.006)}
    return CostModel(lines, tail=tail)


def test_measuring_finds_the_line_of_every_cell() -> None:
    machine = FakeMachine()
    cost = measure(
        machine.run,
        depths=(4, 8),
        lengths=(16, 200),
        batch_limit=lambda _: 32,
        budget_s=0.0,
        clock=machine.clock,
    )
    for depth in (4, 8):
        for length in (16, 200):
            for requests in (1, 2, 20):
                assert cost.p50_s(length, {depth: requests}) == pytest.approx(0.001 + 0.0005 * depth * requests)
    assert set(machine.runs) == {
        (d, length, n) for d in (4, 8) for length, n in ((16, 1), (16, 16), (200, 1), (200, 2))
    }


def test_a_disturbed_start_still_finds_the_lines() -> None:
    class Disturbed(FakeMachine):
        def run(self, depth: int, length: int, requests: int) -> None:
            super().run(depth, length, requests)
            # The second of three rounds is held up.
            if 9 <= len(self.runs) <= 12:
                self.now_s += 0.05

    machine = Disturbed()
    cost = measure(
        machine.run, depths=(4, 8), lengths=(16,), batch_limit=lambda _: 8, budget_s=0.0, clock=machine.clock
    )
    assert cost.p50_s(16, {8: 4}) == pytest.approx(0.001 + 0.0005 * 8 * 4)
    assert cost.p99_s(8, 16, 4) > 0.05


def test_a_cell_that_is_disturbed_every_time_is_no_dearer_than_a_larger_one() -> None:
    class Disturbed(FakeMachine):
        def run(self, depth: int, length: int, requests: int) -> None:
            super().run(depth, length, requests)
            self.now_s += 0.05 * (depth == 4)

    machine = Disturbed()
    cost = measure(
        machine.run, depths=(4, 8), lengths=(16,), batch_limit=lambda _: 8, budget_s=0.0, clock=machine.clock
    )
    for requests in (1, 8):
        assert cost.least_s(4, 16) <= cost.least_s(8, 16) == pytest.approx(0.005)
        assert cost.p50_s(16, {4: requests}) <= cost.p50_s(16, {8: requests})


def test_the_budget_buys_more_rounds() -> None:
    few, many = FakeMachine(), FakeMachine()
    for machine, budget_s in ((few, 0.0), (many, 1.0)):
        measure(
            machine.run,
            depths=(4,),
            lengths=(16,),
            batch_limit=lambda _: 2,
            budget_s=budget_s,
            clock=machine.clock,
        )
    assert len(few.runs) == 2 * (1 + ROUNDS)
    assert many.now_s == pytest.approx(1.0, abs=0.05)


def test_the_largest_batch_is_the_largest_whose_p99_fits() -> None:
    cost = model()
    for requests in (1, 2, 7, 100):
        time_s = cost.p99_s(8, 16, requests)
        assert cost.largest(8, 16, time_s) == requests
        assert cost.largest(8, 16, time_s * 0.999) == requests - 1
    assert cost.largest(8, 16, 0.0) == 0
    assert cost.largest(8, 16, -5.0) == 0


def test_with_little_care_one_request_may_run_that_is_as_likely_late_as_not_but_no_company_makes_it_late() -> None:
    cost = model(tail=1.0)
    p50_s, p99_s = cost.p50_s(16, {8: 1}), cost.p99_s(8, 16)
    assert cost.p99_s(8, 16, care=0.0) == pytest.approx(p50_s)
    assert cost.p99_s(8, 16, care=0.5) == pytest.approx((p50_s + p99_s) / 2)
    for care, least_s in ((0.0, p50_s), (0.5, (p50_s + p99_s) / 2), (1.0, p99_s)):
        cost.care = care
        assert cost.largest(8, 16, least_s * 1.001) == 1
        assert cost.largest(8, 16, least_s * 0.999) == 0
        assert cost.largest(8, 16, cost.p99_s(8, 16, 2) * 0.999) == 1


@given(share=st.floats(0.01, 3), gap_s=st.floats(1e-3, 0.02))
def test_demand_is_the_engine_time_that_is_asked_for_per_second(share: float, gap_s: float) -> None:
    demand, moments = Demand(), np.arange(0, 10 * DEMAND_S, gap_s).tolist()
    for now_s in moments:
        demand.add(share * gap_s, now_s)
    none, full = CARE
    assert demand.care(now_s) == pytest.approx(min(1, max(0, (share - none) / (full - none))), abs=0.1)
    assert demand.care(now_s + 10 * DEMAND_S) == 0


def test_without_any_demand_no_care_is_needed() -> None:
    assert Demand().care(now_s=5.0) == 0


def test_the_queue_is_the_sum_of_its_batches() -> None:
    queue_s = model().queue_s([(4, 16, 3), (8, 16, 1)], batch_limit=lambda _: 2)
    assert queue_s == pytest.approx(2 * 0.001 + 3 * 0.002 + 0.002 + 0.004)


@pytest.mark.parametrize("slowdown", [0.5, 1.0, 3.0])
def test_p50_and_p99_follow_the_machine(slowdown: float) -> None:
    cost = model(tail=0.5)
    rng = np.random.default_rng(0)
    taken = []
    for i in range(6_000):
        seconds = slowdown * 0.003 * float(np.exp(rng.normal(0, 0.3)))
        taken.append(seconds)
        cost.observe(16, {4: 1}, seconds, now_s=i / 200)
    assert cost.p50_s(16, {4: 1}) == pytest.approx(np.median(taken), rel=0.15)
    assert cost.p99_s(4, 16) == pytest.approx(np.quantile(taken, 0.99), rel=0.25)
    # The other depth was never run: it follows too.
    assert cost.p50_s(16, {8: 1}) == pytest.approx(2 * cost.p50_s(16, {4: 1}))


def test_one_stall_hardly_moves_the_estimate() -> None:
    cost = model()
    before = cost.p99_s(4, 16)
    cost.observe(16, {4: 1}, 60.0, now_s=0)
    assert cost.p99_s(4, 16) < 1.2 * before


@given(
    share=st.sampled_from([0.5, 0.99]),
    per_s=st.floats(10, 2_000),
    factor=st.one_of(st.floats(0.001, 0.9), st.floats(1.1, 1_000)),
    for_s=st.floats(0.1, 2),
    seed=st.integers(0, 1_000),
)
def test_a_second_after_a_disturbance_an_estimate_is_back_at_the_truth(
    share: float, per_s: float, factor: float, for_s: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    estimate = Quantile(1.0, share=share, step=0.05, least=1e-9, room=1.5)
    times = np.arange(0, 2 + for_s, 1 / per_s)
    for now_s, noise in zip(times, rng.lognormal(0, 0.2, len(times)), strict=True):
        disturbed = 1 <= now_s < 1 + for_s
        estimate.observe(noise * (factor if disturbed else 1.0), now_s)
    assert 0.4 < estimate.value < 1.5 * np.exp(0.2 * 4)


@given(before=st.floats(1.0, 1e6), seen=st.floats(0.001, 1.0))
def test_what_a_probe_shows_is_believed_at_once(before: float, seen: float) -> None:
    cost, lag = model(), Lag()
    for _ in range(500):
        cost.observe(16, {4: 1}, 0.003 * before, now_s=0)
        lag.observe(0.001 * before, now_s=0)
    cost.observe(16, {4: 1}, 0.003 * seen, now_s=10, probe=True)
    lag.observe(0.001 * seen, now_s=10, probe=True)
    assert cost.p50_s(16, {4: 1}) <= 1.01 * max(0.003 * seen, 0.01 * 0.003)
    assert lag.value <= 1.5 * max(0.001 * seen, 0.0002)


def test_a_probe_that_was_slow_itself_changes_no_more_than_any_other_run() -> None:
    one, other = model(), model()
    one.observe(16, {4: 1}, 60.0, now_s=0)
    other.observe(16, {4: 1}, 60.0, now_s=0, probe=True)
    assert one.p99_s(4, 16) == other.p99_s(4, 16)


def test_noise_makes_no_request_free() -> None:
    class Noisy(FakeMachine):
        def run(self, _depth: int, _length: int, requests: int) -> None:
            self.now_s += 0.001 / requests

    machine = Noisy()
    cost = measure(machine.run, depths=(4,), lengths=(16,), batch_limit=lambda _: 8, budget_s=0, clock=machine.clock)
    assert cost.p50_s(16, {4: 8}) > cost.p50_s(16, {4: 1}) > 0
    assert math.isfinite(cost.largest(4, 16, 10.0))


def test_the_lag_follows_what_all_but_one_in_a_hundred_answers_keep_to() -> None:
    lag = Lag()
    rng = np.random.default_rng(0)
    for i, seconds in enumerate(rng.exponential(0.002, 20_000)):
        lag.observe(seconds, now_s=i / 1_000)
    assert lag.value == pytest.approx(0.002 * np.log(100), rel=0.5)
    for i in range(1_000):
        lag.observe(0.0, now_s=20 + i / 1_000)
    assert lag.value < 0.0003


def test_of_the_fixed_parts_of_several_depths_half_is_saved_but_for_the_largest() -> None:
    cost = model(tail=0.0)
    assert cost.p50_s(16, {4: 3, 8: 2}) == pytest.approx(0.002 + 0.001 / 2 + 3 * 0.002 + 2 * 0.004)
    for time_s in (0.001, 0.011, 0.021, 0.051):
        for beside in ({8: 1}, {12: 2}, {8: 1, 12: 2}):
            most = cost.largest(4, 16, time_s, beside=beside)
            if most:
                assert 1.01 * cost.p50_s(16, {**beside, 4: most}) <= time_s
            assert 1.01 * cost.p50_s(16, {**beside, 4: most + 1}) + 1e-4 > time_s
