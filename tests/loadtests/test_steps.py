from types import SimpleNamespace

import pytest

from fathom.errors import ConfigError
from fathom.loadtests.steps import ANSWER, CALL, StepMeter, StepResult, Steps, Totals, table_of


def test_steps_follow_one_another_and_end() -> None:
    steps = Steps.parse("8,16,4", 10.0, None)
    assert [steps.at(elapsed_s) for elapsed_s in (0, 9.9, 10, 19.9, 20, 29.9, 30)] == [8, 8, 16, 16, 4, 4, None]


def test_without_a_spawn_rate_half_a_second_reaches_the_largest_step() -> None:
    assert Steps.parse("8,16,64", 10.0, None).rate == 96
    assert Steps.parse("8,16,64", 10.0, 12.0).rate == 12


@pytest.mark.parametrize(
    ("text", "step_s", "rate", "why"),
    [
        ("8,x", 10.0, None, "--steps 8,x: give numbers of users, as 8,16,32,64"),
        ("8,-1", 10.0, None, "give numbers of users"),
        ("8,8", 10.0, None, "two steps in a row have the same number of users"),
        ("8,16", 0.5, None, "--step-s 0.5: give at least 1 second"),
        ("8,16", float("nan"), None, "--step-s nan"),
        ("8,64", 10.0, 4.0, "--spawn-rate 4: 56 more users take 14 s, and a step lasts 10 s"),
    ],
)
def test_what_is_no_series_of_steps_is_refused_in_one_line(text: str, step_s: float, rate: float, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("(", r"\(")) as error:
        Steps.parse(text, step_s, rate)
    assert "\n" not in str(error.value)


def entry(method: str, name: str, times_ms: dict[int, int], failures: int = 0) -> SimpleNamespace:
    requests = sum(times_ms.values())
    return SimpleNamespace(
        method=method, name=name, num_requests=requests, num_failures=failures, response_times=times_ms
    )


def test_a_step_counts_calls_once_and_every_recommendation() -> None:
    before = Totals.of([entry(CALL, "Recommend depth 4", {5: 90, 9: 10})], 10.0)
    after = Totals.of(
        [
            entry(CALL, "Recommend depth 4", {5: 188, 9: 10}),
            entry(CALL, "Recommend NOT_FOUND", {7: 1}, failures=1),
            entry(CALL, "RecommendBatch OK", {40: 1}),
            entry(ANSWER, "RecommendBatch depth 8", {40: 30}),
            entry(ANSWER, "RecommendBatch DEADLINE_EXCEEDED", {40: 2}, failures=2),
        ],
        12.0,
    )
    found = StepResult.between(8, before, after)
    assert (found.users, found.seconds) == (8, 2.0)
    assert (found.calls_per_s, found.failures_per_s, found.recommendations_per_s) == (50.0, 0.5, 64.0)
    assert (found.p50_ms, found.p99_ms) == (5, 7)


def test_a_step_without_calls_has_no_percentiles() -> None:
    empty = StepResult.between(1, Totals(0.0), Totals(1.0))
    assert (empty.p50_ms, empty.p99_ms) == (None, None)
    assert table_of([empty])[1] == ["1", "1.0", "0.0", "0.0", "0.0", "", ""]


def test_a_step_that_never_had_all_its_users_or_was_broken_off_is_not_noted() -> None:
    meter = StepMeter()
    meter.end(Totals(0.0))
    meter.begin(8, Totals(1.0))
    meter.drop()
    meter.end(Totals(2.0))
    assert meter.results == []
    meter.begin(16, Totals(2.0))
    meter.end(Totals(3.0))
    assert [each.users for each in meter.results] == [16]
