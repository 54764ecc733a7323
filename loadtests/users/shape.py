"""The shape of a run whose users grow in steps."""

import time
from typing import Any

from locust import LoadTestShape

from fathom.loadtests.steps import StepMeter, Steps, Totals


class StepShape(LoadTestShape):
    """Steps of users; inactive unless ``--steps`` is given."""

    # Locust would warn that options have no effect with a shape, before it can know that there is none.
    use_common_options = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: Steps | None = None
        self.meter = StepMeter()
        self._users: int | None = None

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate of this moment; None at the end."""
        if self.steps is None:
            return None
        elapsed_s: float = self.get_run_time()  # type: ignore[no-untyped-call]
        users = self.steps.at(elapsed_s)
        if self._users is None:
            self.meter = StepMeter()
        if users != self._users:
            self.meter.end(self._totals())
            self._users = users
        return None if users is None else (users, self.steps.rate)

    def all_there(self, users: int) -> None:
        """The users of a step have been started."""
        self.meter.begin(users, self._totals())

    def stopped(self) -> None:
        """The test has ended, maybe in the middle of a step, of which nothing is noted."""
        self.meter.drop()
        self._users = None

    def _totals(self) -> Totals:
        runner: Any = self.runner
        return Totals.of(runner.stats.entries.values(), time.perf_counter())
