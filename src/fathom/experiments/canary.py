"""Whether a canary goes on, is rolled back, or is ready: a state machine that is told every request's outcome.

Every limit is tested by betting (``selector.betting.Evidence``), for both answers: exactly valid at every request, from
the first one on, whatever the distribution. Both promises are about each request given those before it: while none is
expected to break a limit, a rollback ever happens with probability at most ``alpha``, over all limits together; while
all are expected to break one, the canary is ever called ready with probability at most ``alpha``.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from fathom.experiments.config import Canary
from fathom.selector.betting import Evidence


class State(Enum):
    """What to do with a canary."""

    CONTINUE = "continue"
    ROLL_BACK = "roll back"
    PROMOTE_READY = "ready to promote"


@dataclass(frozen=True)
class Decision:
    """A state, and why, in a sentence."""

    state: State
    reason: str


@dataclass(frozen=True)
class Observation:
    """One request of the canary or of the control. ``agreement``: share of the control's answer that it gave too."""

    is_canary: bool
    latency_ms: float | None = None
    error: bool = False
    agreement: float | None = None


class Limit:
    """A limit on the expectation of a value in [0, 1] that should be small; ``text`` says what has happened."""

    def __init__(self, text: str, most: float) -> None:
        self.text = text
        self.most = most
        self._broken, self._kept = Evidence(1 - most), Evidence(most)

    def add(self, value: float) -> None:
        """Take the value of one request."""
        self._broken.add(1 - value)
        self._kept.add(value)

    def is_broken(self, alpha: float) -> bool:
        """Whether values are shown to be above the limit."""
        return self._broken.capital >= 1 / alpha

    def is_kept(self, alpha: float) -> bool:
        """Whether values are shown to be below the limit."""
        return self._kept.capital >= 1 / alpha

    @property
    def mean(self) -> float:
        """Of all values."""
        return self._kept.mean


class Slowdown:
    """Compares what canary and control took, a block of neighbouring requests after the other.

    A block ends as soon as it has LEAST of each. Its value is the share of its pairs in which the canary took more than
    ``most`` times as long as the control (Mann and Whitney, 1947, "On a test of whether one of two random variables is
    stochastically larger than the other"). Every request is in one block only, so that no slow one decides several.
    """

    #: Requests of each in a block: more say more together, but later; of the NEWEST of each.
    LEAST, NEWEST = 2, 32

    def __init__(self, most: float) -> None:
        self._most = most
        self._took_ms: dict[bool, deque[float]] = {side: deque(maxlen=self.NEWEST) for side in (False, True)}

    def add(self, is_canary: bool, ms: float) -> float | None:
        """Take one request; the value of the block that ends with it."""
        self._took_ms[is_canary].append(ms)
        if min(map(len, self._took_ms.values())) < self.LEAST:
            return None
        allowed_ms = [self._most * each for each in self._took_ms[False]]
        slower = [each > most for each in self._took_ms[True] for most in allowed_ms]
        for side in self._took_ms.values():
            side.clear()
        return sum(slower) / len(slower)


class CanaryMonitor:
    """Judges one canary from its start; ``now_s`` is any clock that does not run backwards."""

    def __init__(self, limits: Canary, started_s: float) -> None:
        self._config = limits
        self._started_s = started_s
        self._slowdown: Slowdown | None = None
        self._limits: dict[str, Limit] = {}
        self.requests = 0
        self.decision = Decision(State.CONTINUE, "no request yet")
        if limits.max_error_rate is not None:
            self._limits["error"] = Limit("{mean:.2%} of its requests failed", limits.max_error_rate)
        if limits.max_latency_ms is not None:
            text = f"{{mean:.2%}} of its requests took longer than {limits.max_latency_ms:g} ms"
            self._limits["latency"] = Limit(text, limits.slow_share)
        if limits.max_slowdown is not None:
            text = f"{{mean:.0%}} of its requests took over {limits.max_slowdown:g} times as long as the control's"
            self._limits["slowdown"] = Limit(text, 0.5)
            self._slowdown = Slowdown(limits.max_slowdown)
        if limits.min_agreement is not None:
            self._limits["agreement"] = Limit("it lacks {mean:.1%} of the control's answers", 1 - limits.min_agreement)

    def observe(self, seen: Observation, now_s: float) -> Decision:
        """Take one request; once the canary is to be rolled back, that does not change."""
        if self.decision.state is State.ROLL_BACK:
            return self.decision
        self.requests += seen.is_canary
        for name, value in self._values(seen).items():
            self._limits[name].add(value)
        self.decision = self._decide(now_s)
        return self.decision

    def _values(self, seen: Observation) -> dict[str, float]:
        """What a request says of each limit, 0 to 1."""
        values: dict[str, float] = {}
        if self._slowdown is not None and seen.latency_ms is not None:
            slower = self._slowdown.add(seen.is_canary, seen.latency_ms)
            if slower is not None:
                values["slowdown"] = slower
        if not seen.is_canary:
            return values
        values["error"] = float(seen.error)
        if self._config.max_latency_ms is not None and seen.latency_ms is not None:
            values["latency"] = float(seen.latency_ms > self._config.max_latency_ms)
        if seen.agreement is not None:
            values["agreement"] = 1 - seen.agreement
        return {name: value for name, value in values.items() if name in self._limits}

    def _decide(self, now_s: float) -> Decision:
        config = self._config
        for limit in self._limits.values():
            if limit.is_broken(config.alpha / len(self._limits)):
                text = limit.text.format(mean=limit.mean)
                return Decision(State.ROLL_BACK, f"{text}; the limit is {limit.most:.2%}")
        if self.requests < config.min_requests or now_s - self._started_s < 60 * config.min_minutes:
            return Decision(State.CONTINUE, f"{self.requests} requests; too early")
        # All have to be shown, so each may be with the whole alpha.
        if unsure := [name for name, limit in self._limits.items() if not limit.is_kept(config.alpha)]:
            return Decision(State.CONTINUE, f"{self.requests} requests; not shown yet: {', '.join(unsure)}")
        return Decision(State.PROMOTE_READY, f"every limit is shown to be kept, over {self.requests} requests")
