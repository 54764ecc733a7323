"""Costs are what the clock said, and follow it when the machine changes."""

import math

import numpy as np
import pytest

from fathom.runtime.cost import DOUBT_AFTER_S, ROUNDS, CostModel, Lag, Line, measure


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
    return CostModel({(4, 16): Line(0.001, 0.002), (8, 16): Line(0.002, 0.004)}, tail=tail)


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
                assert cost.p50_s(depth, length, requests) == pytest.approx(0.001 + 0.0005 * depth * requests)
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
    assert cost.p50_s(8, 16, 4) == pytest.approx(0.001 + 0.0005 * 8 * 4)
    assert cost.p99_s(8, 16, 4) > 0.05


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
        cost.observe(4, 16, 1, seconds, now_s=i)
    assert cost.p50_s(4, 16) == pytest.approx(np.median(taken), rel=0.15)
    assert cost.p99_s(4, 16) == pytest.approx(np.quantile(taken, 0.99), rel=0.25)
    # The other depth was never run: it follows too.
    assert cost.p50_s(8, 16) == pytest.approx(2 * cost.p50_s(4, 16))


def test_one_stall_hardly_moves_the_estimate() -> None:
    cost = model()
    before = cost.p99_s(4, 16)
    cost.observe(4, 16, 1, 60.0, now_s=0)
    assert cost.p99_s(4, 16) < 1.2 * before


def test_refusals_alone_make_the_estimate_doubt_itself_slowly() -> None:
    cost = model()
    cost.observe(4, 16, 1, 0.003, now_s=0)
    before = cost.p50_s(4, 16)
    for now_s in (0.1, 0.5, DOUBT_AFTER_S):
        cost.refused(now_s)
    assert cost.p50_s(4, 16) == before
    for i in range(1_000):
        cost.refused(DOUBT_AFTER_S + 0.001 + i * 1e-4)
    assert cost.p50_s(4, 16) == pytest.approx(before / 2)


def test_noise_makes_no_request_free() -> None:
    class Noisy(FakeMachine):
        def run(self, _depth: int, _length: int, requests: int) -> None:
            self.now_s += 0.001 / requests

    machine = Noisy()
    cost = measure(machine.run, depths=(4,), lengths=(16,), batch_limit=lambda _: 8, budget_s=0, clock=machine.clock)
    assert cost.p50_s(4, 16, 8) > cost.p50_s(4, 16, 1) > 0
    assert math.isfinite(cost.largest(4, 16, 10.0))


def test_the_lag_follows_what_all_but_one_in_a_hundred_answers_keep_to() -> None:
    lag = Lag()
    rng = np.random.default_rng(0)
    for seconds in rng.exponential(0.002, 20_000):
        lag.observe(seconds)
    assert lag.p99_s == pytest.approx(0.002 * np.log(100), rel=0.5)
    for _ in range(2_000):
        lag.observe(0.0)
    assert lag.p99_s < 0.002
