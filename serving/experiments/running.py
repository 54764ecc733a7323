"""The experiments of a server: follows their file and their states, assigns arms, logs, and watches canaries."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fathom.errors import FathomError, NotFoundError, brief
from fathom.experiments.assignment import Assigner
from fathom.experiments.canary import CanaryMonitor, Observation, State
from fathom.experiments.config import Experiment, Experiments, load_experiments
from fathom.experiments.exposures import Exposure, Outcome
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.query import Answer
from fathom.serving.access.principal import Principal
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.log import ExperimentLogs
from fathom.serving.experiments.shadows import Copied, Shadows, agreement_of, ids_of
from fathom.serving.experiments.states import ExperimentState, Phase, States
from fathom.serving.experiments.treatment import NO_CHANGE, Change
from fathom.serving.experiments.trial import Trial
from fathom.serving.experiments.units import events_before, kinds_of, units_of
from fathom.serving.files_watch import Stamp, stamp_of

LOOK_EVERY_S = 1.0

log = logging.getLogger("fathom.serving")


@dataclass(eq=False)
class _Running:
    """One experiment of the file. ``changes``: of its arms and shadows. ``monitor``: of its canary, while it runs."""

    experiment: Experiment
    changes: Mapping[str, Change]
    state: ExperimentState
    monitor: CanaryMonitor | None = None
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def runs(self) -> bool:
        """Whether units get its arms."""
        return self.state.phase is Phase.RUNNING

    @property
    def bundles(self) -> set[str]:
        """Those that its arms name."""
        return {change.bundle for change in self.changes.values() if change.bundle}

    def is_canary(self, arm: str) -> bool:
        """Whether an arm is watched."""
        canary = self.experiment.canary
        return canary is not None and canary.arm == arm


class RunningExperiments:
    """Belongs to one event loop. ``logs``: folder of a log for each experiment, shared by servers.

    ``workers``: processes that watch the same canary, each for itself.
    """

    def __init__(self, file: Path, logs: Path, shadows: Shadows, *, workers: int = 1) -> None:
        self._file = file
        self._states = States(logs)
        self.logs = ExperimentLogs(logs)
        self.shadows = shadows
        self._workers = workers
        self._all: dict[str, _Running] = {}
        self._assigner: Assigner | None = None
        self._promoted = NO_CHANGE
        self._stamps: Sequence[Stamp] = ()

    # The file, and how its experiments stand.

    def load(self) -> None:
        """Read the file and the states; raises FathomError, and then changes nothing."""
        stamp = stamp_of(self._file)
        file = load_experiments(self._file)
        found = {name: self._opened(name, experiment) for name, experiment in file.experiments.items()}
        self._follow(file, found)
        self._stamps = [stamp, *self._states.stamps(found)]

    def _opened(self, name: str, experiment: Experiment) -> _Running:
        given = {**experiment.arms, **experiment.shadows}
        changes = {arm: Change.of(f"{self._file}: {name}.{arm}", each) for arm, each in given.items()}
        running, before = _Running(experiment, changes, self._states.read(name)), self._all.get(name)
        if before is not None:
            running.requests, running.failures = before.requests, before.failures
        if running.runs:
            if before is None or not before.runs or before.experiment != experiment:
                self.logs.open(name, experiment)
            running.monitor = self._monitor(experiment, before)
        return running

    def _monitor(self, experiment: Experiment, before: _Running | None) -> CanaryMonitor | None:
        """Of a canary: the one there is, unless it has other limits now."""
        canary = experiment.canary
        if canary is None:
            return None
        if before is not None and before.monitor is not None and before.experiment.canary == canary:
            return before.monitor
        # All workers together are to be as seldom wrong as the file says.
        return CanaryMonitor(canary.model_copy(update={"alpha": canary.alpha / self._workers}), time.monotonic())

    def _follow(self, file: Experiments, found: dict[str, _Running]) -> None:
        promoted = [each.changes.get(each.state.arm) for each in found.values() if each.state.phase is Phase.PROMOTED]
        self._promoted = Change.together(filter(None, promoted))
        # Of the whole file: one that does not run keeps its slice, so that nobody else moves.
        self._assigner = Assigner(file) if any(each.runs for each in found.values()) else None
        self._all = found

    async def run(self) -> None:
        """Follow the file and the states until cancelled; what cannot be used is logged, and all stays as it was."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = [stamp_of(self._file), *self._states.stamps(self._all)]
            if now != self._stamps:
                self._stamps = now
                try:
                    self.load()
                except (FathomError, OSError) as error:
                    log.error("experiments stay as they were: %s", error)

    def change(self, name: str, phase: Phase, arm: str = "", reason: str = "") -> pb.ExperimentStatus:
        """Start, stop, promote or roll back; raises NotFoundError for what is not in the file."""
        running = self._all.get(name)
        if running is None:
            raise NotFoundError(
                f"experiment {brief(name)!r} is not in the server's file; there: {', '.join(self._all)}"
            )
        if phase is Phase.PROMOTED and arm not in running.experiment.arms:
            arms = ", ".join(running.experiment.arms)
            raise NotFoundError(f"experiment {name} has no arm {brief(arm)!r}; it has {arms}")
        self._states.write(name, phase, arm, reason)
        self.load()
        return self.status(name)

    def statuses(self) -> list[pb.ExperimentStatus]:
        """How every experiment of the file stands."""
        return [self.status(name) for name in self._all]

    def status(self, name: str) -> pb.ExperimentStatus:
        """How one stands."""
        running = self._all[name]
        state, monitor = running.state, running.monitor
        shares = {arm: each.share for arm, each in running.experiment.arms.items()}
        shares |= {shadow: each.share for shadow, each in running.experiment.shadows.items()}
        return pb.ExperimentStatus(
            name=name,
            phase=state.phase.value,
            arm=state.arm,
            reason=state.reason,
            since=int(state.since_s),
            arms=[
                pb.ArmStatus(name=arm, share=share, requests=running.requests[arm], failed=running.failures[arm])
                for arm, share in shares.items()
            ],
            canary="" if monitor is None else f"{monitor.decision.state.value}: {monitor.decision.reason}",
        )

    # One request.

    def begin(self, request: pb.RecommendRequest, principal: Principal) -> Trial | None:
        """What experiments make of a request; None where they have no part in it.

        One that asks for a depth has none, and arms with a bundle are not for requests that name one.
        """
        if request.HasField("depth") or (self._assigner is None and self._promoted == NO_CHANGE):
            return None
        trial = Trial(self, request, self._promoted)
        if self._assigner is None:
            return trial
        units = units_of(request, principal.tenant)
        trial.arms = [e for e in self._assigner.assign(units) if self._takes(e.experiment, request, principal)]
        trial.shadows = [e for e in self._assigner.shadows(units) if self._takes(e[0], request, principal)]
        if trial.arms or trial.shadows:
            trial.unit_hash = self._assigner.unit_hash(units.get("user") or units.get("session") or units["request"])
            # What outcomes are reported with.
            request.request_id = units["request"]
            trial.request_id = principal.tenant.key_of(units["request"])
            trial.change = Change.together(
                [*(self._all[each.experiment].changes[each.arm] for each in trial.arms), self._promoted]
            )
        return trial

    def _takes(self, name: str, request: pb.RecommendRequest, principal: Principal) -> bool:
        """Whether a request takes part in an experiment."""
        running = self._all[name]
        mine = all(map(principal.tenant.may_use, running.bundles))
        return running.runs and mine and not (running.bundles and request.bundle)

    def answered(self, trial: Trial, deployment: Deployment, answer: Answer, ms: float) -> None:
        """A request has its answer."""
        given = ids_of(deployment, answer)
        for each in trial.arms:
            running = self._all[each.experiment]
            running.requests[each.arm] += 1
            row = self._row(trial, each.experiment, each.arm, ms)
            self.logs.expose(_given(row, deployment, given, answer.choice.depth))
            self._watch(trial, each.experiment, each.arm, deployment, given, ms)
        for name, shadow in trial.shadows:
            told = partial(self._copied, trial, name, shadow, given)
            self.shadows.copy(trial.request, deployment.name, self._all[name].changes[shadow], told)

    def failed(self, trial: Trial, error: Exception, ms: float) -> None:
        """An arm gave no answer, and the request gets one without it."""
        for each in trial.arms:
            running = self._all[each.experiment]
            running.requests[each.arm] += 1
            running.failures[each.arm] += 1
            self.logs.expose(replace(self._row(trial, each.experiment, each.arm, ms), error=True))
            log.warning("experiment %s: arm %s gave no answer: %s", each.experiment, each.arm, brief(str(error), 200))
            self._observe(each.experiment, Observation(running.is_canary(each.arm), ms, error=True))

    def _watch(
        self, trial: Trial, name: str, arm: str, deployment: Deployment, given: Sequence[str], ms: float
    ) -> None:
        """Tell a canary's monitor, with the agreement with the control's answer where that is watched."""
        running = self._all[name]
        canary, is_canary = running.experiment.canary, running.is_canary(arm)
        if canary is None or not (is_canary or arm == running.experiment.control):
            return
        if not is_canary or canary.min_agreement is None:
            self._observe(name, Observation(is_canary, ms))
            return

        def compared(found: Copied | None) -> None:
            agreement = None if found is None or found.error else agreement_of(given, found.given)
            self._observe(name, Observation(True, ms, agreement=agreement))

        # The bundle of the answer is the canary's, if it has one; the control answers from the request's own.
        own = "" if running.changes[arm].bundle else deployment.name
        self.shadows.copy(trial.request, own, running.changes[running.experiment.control], compared)

    def _copied(self, trial: Trial, name: str, shadow: str, given: Sequence[str], found: Copied | None) -> None:
        """A shadow has answered its copy, or there was no time for it."""
        running = self._all.get(name)
        if found is None or running is None:
            return
        running.requests[shadow] += 1
        running.failures[shadow] += found.error
        agreement = None if found.error else agreement_of(found.given, given)
        row = replace(self._row(trial, name, shadow, found.ms), error=found.error, agreement=agreement)
        self.logs.expose(row if found.deployment is None else _given(row, found.deployment, found.given, found.depth))
        self._observe(name, Observation(running.is_canary(shadow), found.ms, found.error, agreement))

    def _observe(self, name: str, seen: Observation) -> None:
        """Tell a canary's monitor, and do as it says."""
        running = self._all.get(name)
        if running is None or not running.runs or running.monitor is None or running.experiment.canary is None:
            return
        decision = running.monitor.observe(seen, time.monotonic())
        if decision.state is State.ROLL_BACK:
            arm = running.experiment.canary.arm
            log.error("experiment %s: %s is rolled back: %s", name, arm, decision.reason)
            self.change(name, Phase.ROLLED_BACK, arm, decision.reason)

    def _row(self, trial: Trial, name: str, arm: str, ms: float) -> Exposure:
        """What is logged of a request, before it is known what it was given."""
        running = self._all[name]
        assigned = next((each for each in trial.arms if (each.experiment, each.arm) == (name, arm)), None)
        return Exposure(
            time_s=round(time.time(), 3),
            experiment=name,
            layer="" if assigned is None else assigned.layer,
            arm=arm,
            propensity=running.experiment.shadows[arm].share if assigned is None else assigned.propensity,
            unit=trial.unit_hash if assigned is None else assigned.unit_hash,
            request_id=trial.request_id,
            bundle="",
            version="",
            depth=None,
            items=(),
            latency_ms=round(ms, 3),
            covariate=events_before(trial.request, running.state.since_s),
        )

    def report(self, outcomes: Sequence[Outcome]) -> int:
        """Log what users did; returns how many of it some experiment is judged by."""
        noted = 0
        for outcome in outcomes:
            running = {name: each for name, each in self._all.items() if each.runs}
            judged = [name for name, each in running.items() if outcome.kind in kinds_of(each.experiment)]
            noted += sum(self.logs.report(name, outcome) for name in judged) > 0
        return noted

    async def close(self) -> None:
        """Write what waits."""
        self.shadows.close()
        await self.logs.flush()


def _given(row: Exposure, deployment: Deployment, given: Sequence[str], depth: int | None) -> Exposure:
    return replace(row, bundle=deployment.name, version=deployment.version, depth=depth, items=given)
