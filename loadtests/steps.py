"""Steps of users, and what was answered in each; where throughput stops growing, something is at its limit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.errors import ConfigError, brief

#: Types of what locust lists: a call as a whole, one of many answers within a call, and the first one of a stream.
CALL, ANSWER, FIRST_ANSWER = "gRPC", "answer", "first answer"
MOST_USERS = 100_000
#: Locust looks at a shape once a second, a little early or late.
LOOKS_EVERY_S, TOLERANCE_S = 1.0, 0.05


@dataclass(frozen=True)
class Steps:
    """Numbers of users, each kept for ``step_s`` seconds; users are added or stopped at ``rate`` per second."""

    users: tuple[int, ...]
    step_s: float
    rate: float

    @classmethod
    def parse(cls, text: str, step_s: float, rate: float | None) -> "Steps":
        """Of options such as ``8,16,32``; without a ``rate``, each step is reached in half a second.

        Raises ConfigError for what is no series of steps, or leaves no time to measure one.
        """
        try:
            users = tuple(int(part) for part in text.split(","))
        except ValueError:
            users = ()
        if not users or not all(0 < each <= MOST_USERS for each in users):
            raise ConfigError(f"--steps {brief(text)}: give numbers of users, as 8,16,32,64")
        changes = [abs(after - before) for before, after in zip((0, *users), users, strict=False)]
        if not all(changes):
            raise ConfigError(f"--steps {brief(text)}: two steps in a row have the same number of users")
        if not LOOKS_EVERY_S <= step_s < 86_400:
            raise ConfigError(f"--step-s {step_s:g}: give at least {LOOKS_EVERY_S:g} second, and less than a day")
        rate = rate or 2.0 * max(changes)
        if max(changes) / rate >= step_s:
            raise ConfigError(
                f"--spawn-rate {rate:g}: {max(changes)} more users take {max(changes) / rate:g} s, and a step lasts"
                f" {step_s:g} s; raise --spawn-rate or --step-s"
            )
        return cls(users, step_s, rate)

    def at(self, elapsed_s: float) -> int | None:
        """The users of this moment, in seconds since the start; None after the end."""
        step = int((elapsed_s + TOLERANCE_S) / self.step_s)
        return self.users[step] if step < len(self.users) else None


@dataclass(frozen=True)
class Totals:
    """What has been answered until a moment (seconds): ``times_ms`` counts calls by their milliseconds."""

    at_s: float
    calls: int = 0
    failures: int = 0
    recommendations: int = 0
    times_ms: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Any], at_s: float) -> "Totals":
        """Of locust's ``StatsEntry``s."""
        calls = failures = recommendations = 0
        times_ms: Counter[int] = Counter()
        for entry in entries:
            if entry.method == CALL:
                calls += entry.num_requests
                failures += entry.num_failures
                times_ms.update(entry.response_times)
            if " depth " in entry.name:
                recommendations += entry.num_requests
        return cls(at_s, calls, failures, recommendations, times_ms)


@dataclass(frozen=True)
class StepResult:
    """What a number of users was answered while all of them were there, for ``seconds``.

    ``recommendations_per_s``: each history that was answered, alone, in a batch or in a stream. Percentiles are of
    calls, in milliseconds as locust rounds them; None without calls.
    """

    users: int
    seconds: float
    calls_per_s: float
    failures_per_s: float
    recommendations_per_s: float
    p50_ms: int | None
    p99_ms: int | None

    @classmethod
    def between(cls, users: int, before: Totals, after: Totals) -> "StepResult":
        """Of the counters at the beginning and at the end."""
        seconds = max(after.at_s - before.at_s, 1e-9)
        times = Counter(after.times_ms)
        times.subtract(before.times_ms)
        return cls(
            users,
            seconds,
            (after.calls - before.calls) / seconds,
            (after.failures - before.failures) / seconds,
            (after.recommendations - before.recommendations) / seconds,
            _percentile(times, 0.5),
            _percentile(times, 0.99),
        )


def _percentile(counts: Mapping[int, int], share: float) -> int | None:
    """The nearest-rank percentile of values that were counted."""
    left = share * sum(counts.values())
    for value in sorted(value for value, count in counts.items() if count > 0):
        left -= counts[value]
        if left <= 1e-9:
            return value
    return None


class StepMeter:
    """Notes each step from when all its users are there until it ends."""

    def __init__(self) -> None:
        self.results: list[StepResult] = []
        self._begun: tuple[int, Totals] | None = None

    def begin(self, users: int, totals: Totals) -> None:
        """All users of a step are there."""
        self._begun = (users, totals)

    def end(self, totals: Totals) -> None:
        """The step is over; nothing is noted of one that never had all its users."""
        if self._begun is not None:
            self.results.append(StepResult.between(*self._begun, totals))
            self._begun = None

    def drop(self) -> None:
        """The step was broken off."""
        self._begun = None


def table_of(results: Sequence[StepResult]) -> list[list[str]]:
    """Rows of text, the first one the head."""
    head = ["users", "seconds", "calls/s", "failed calls/s", "recommendations/s", "p50 ms", "p99 ms"]
    return [head, *(_row(each) for each in results)]


def _row(result: StepResult) -> list[str]:
    rates = (result.seconds, result.calls_per_s, result.failures_per_s, result.recommendations_per_s)
    percentiles = (result.p50_ms, result.p99_ms)
    return [
        str(result.users),
        *(f"{each:.1f}" for each in rates),
        *("" if each is None else str(each) for each in percentiles),
    ]
