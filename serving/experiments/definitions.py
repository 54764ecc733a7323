"""The experiments of a server's file, and how each of them stands now."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fathom.experiments.assignment import Assigner
from fathom.experiments.canary import CanaryMonitor
from fathom.experiments.config import Experiment, Experiments, load_experiments
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.principal import Tenant
from fathom.serving.experiments.states import ExperimentState, Phase
from fathom.serving.experiments.treatment import Change


@dataclass(eq=False)
class RunningExperiment:
    """``changes``: of its arms and shadows. ``monitor``: of its canary, while it runs.

    ``requests`` and ``failures``: of this process, by arm.
    """

    name: str
    experiment: Experiment
    changes: Mapping[str, Change]
    state: ExperimentState = field(default_factory=ExperimentState)
    monitor: CanaryMonitor | None = None
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def runs(self) -> bool:
        """Whether units get its arms."""
        return self.state.phase is Phase.RUNNING

    def is_canary(self, arm: str) -> bool:
        """Whether an arm is watched."""
        canary = self.experiment.canary
        return canary is not None and canary.arm == arm

    def concerns(self, request: pb.RecommendRequest, tenant: Tenant) -> bool:
        """Whether a request may get one of its arms: with bundles of their own only where it names none."""
        bundles = {change.bundle for change in self.changes.values() if change.bundle}
        return not bundles or (not request.bundle and all(map(tenant.may_use, bundles)))

    def follow(self, state: ExperimentState, workers: int) -> None:
        """Stand as a state says; a canary is watched anew from its start on, by so many workers."""
        if state.phase is not Phase.RUNNING or self.experiment.canary is None:
            self.monitor = None
        elif self.monitor is None or state.since_s != self.state.since_s:
            # All workers together are to be as seldom wrong as the file says.
            canary = self.experiment.canary.model_copy(update={"alpha": self.experiment.canary.alpha / workers})
            self.monitor = CanaryMonitor(canary, time.monotonic())
        self.state = state

    def status(self) -> pb.ExperimentStatus:
        """For operators."""
        shares = {arm: each.share for arm, each in self.experiment.arms.items()}
        shares |= {shadow: each.share for shadow, each in self.experiment.shadows.items()}
        decision = None if self.monitor is None else self.monitor.decision
        return pb.ExperimentStatus(
            name=self.name,
            phase=self.state.phase.value,
            arm=self.state.arm,
            reason=self.state.reason,
            since=int(self.state.since_s),
            arms=[
                pb.ArmStatus(name=arm, share=share, requests=self.requests[arm], failed=self.failures[arm])
                for arm, share in shares.items()
            ],
            canary="" if decision is None else f"{decision.state.value}: {decision.reason}",
        )


@dataclass(frozen=True)
class Definitions:
    """What a file says; used by nobody before it is whole."""

    assigner: Assigner
    experiments: Mapping[str, RunningExperiment]

    @classmethod
    def read(cls, path: Path, before: Mapping[str, RunningExperiment]) -> "Definitions":
        """Read a file; raises ConfigError. ``before``: whose counts and monitors go on where they can."""
        file: Experiments = load_experiments(path)
        found = {}
        for name, experiment in file.experiments.items():
            given = {**experiment.arms, **experiment.shadows}
            changes = {arm: Change.of(f"{path}: {name}.{arm}", each) for arm, each in given.items()}
            running, old = RunningExperiment(name, experiment, changes), before.get(name)
            if old is not None:
                running.requests, running.failures, running.state = old.requests, old.failures, old.state
                if old.experiment.canary == experiment.canary:
                    running.monitor = old.monitor
            found[name] = running
        # Of the whole file: an experiment that does not run keeps its slice, so that nobody of the others moves.
        return cls(Assigner(file), found)


def promoted(experiments: Iterable[RunningExperiment], request: pb.RecommendRequest, tenant: Tenant) -> list[Change]:
    """What everybody gets, as far as it is for a request."""
    return [
        each.changes[each.state.arm]
        for each in experiments
        if each.state.phase is Phase.PROMOTED and each.state.arm in each.changes and each.concerns(request, tenant)
    ]
