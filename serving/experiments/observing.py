"""Takes note of what became of requests in experiments: logs them, runs their shadows, and watches canaries."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fathom.errors import brief
from fathom.experiments.canary import Observation, State
from fathom.experiments.exposures import Exposure
from fathom.runtime.query import Answer
from fathom.serving.deployment import Deployment
from fathom.serving.experiments.definitions import RunningExperiment
from fathom.serving.experiments.log import ExperimentLogs
from fathom.serving.experiments.registry import ExperimentRegistry
from fathom.serving.experiments.shadows import ShadowAnswer, Shadows, agreement_of, ids_of
from fathom.serving.experiments.trial import Trial
from fathom.serving.experiments.units import events_before
from fathom.serving.logs import Seldom

log = Seldom("fathom.serving")


class ExperimentObserver:
    """See ``trial.Observer``."""

    def __init__(self, registry: ExperimentRegistry, logs: ExperimentLogs, shadows: Shadows) -> None:
        self._registry = registry
        self._logs = logs
        self._shadows = shadows

    def answered(self, trial: Trial, deployment: Deployment, answer: Answer, ms: float) -> None:
        """It was answered by its arms."""
        given = ids_of(deployment, answer)
        for running, arm in self._arms(trial):
            running.requests[arm] += 1
            self._logs.expose(_given(_row(trial, running, arm, ms), deployment, given, answer.choice.depth))
            self._watch(trial, running, arm, deployment, given, ms)
        for name, shadow in trial.shadows:
            of = self._registry.experiments.get(name)
            if of is not None and of.runs and shadow in of.changes:
                on_answer = partial(self._shadow_answered, trial, of, shadow, given)
                self._shadows.send(trial, deployment.name, of.changes[shadow], on_answer)

    def failed(self, trial: Trial, error: Exception, ms: float) -> None:
        """Its arms could not answer it, although it can be answered without them."""
        for running, arm in self._arms(trial):
            log.warning("experiment %s: arm %s gave no answer: %s", running.name, arm, brief(str(error), 200))
            running.requests[arm] += 1
            running.failures[arm] += 1
            self._logs.expose(replace(_row(trial, running, arm, ms), error=True))
            self._observe(running, Observation(running.is_canary(arm), ms, error=True))

    def missed(self, trial: Trial, ms: float) -> None:
        """There was no time for it, which may be the arm's fault or not: reports compare arms, no canary is judged."""
        for running, arm in self._arms(trial):
            running.requests[arm] += 1
            running.failures[arm] += 1
            self._logs.expose(replace(_row(trial, running, arm, ms), error=True))

    def _arms(self, trial: Trial) -> list[tuple[RunningExperiment, str]]:
        """Those of its arms whose experiments still run."""
        found = [(self._registry.experiments.get(each.experiment), each.arm) for each in trial.arms]
        return [(running, arm) for running, arm in found if running is not None and running.runs]

    def _watch(
        self,
        trial: Trial,
        running: RunningExperiment,
        arm: str,
        deployment: Deployment,
        given: Sequence[str],
        ms: float,
    ) -> None:
        """Tell a canary's monitor, with the agreement with the control's answer where that is watched."""
        canary, is_canary = running.experiment.canary, running.is_canary(arm)
        if canary is None or not (is_canary or arm == running.experiment.control):
            return
        if not is_canary or canary.min_agreement is None:
            self._observe(running, Observation(is_canary, ms))
            return

        def compared(found: ShadowAnswer | None) -> None:
            agreement = None if found is None or found.error else agreement_of(given, found.given)
            self._observe(running, Observation(True, ms, agreement=agreement))

        # The answer's bundle is the canary's where it has one of its own; the control answers from the request's.
        own = "" if running.changes[arm].bundle else deployment.name
        self._shadows.send(trial, own, running.changes[running.experiment.control], compared)

    def _shadow_answered(
        self, trial: Trial, running: RunningExperiment, shadow: str, given: Sequence[str], found: ShadowAnswer | None
    ) -> None:
        """A shadow has answered, or there was no time for it."""
        if found is None or not running.runs:
            return
        running.requests[shadow] += 1
        running.failures[shadow] += found.error
        agreement = None if found.error else agreement_of(found.given, given)
        row = replace(_row(trial, running, shadow, found.ms), error=found.error, agreement=agreement)
        self._logs.expose(row if found.deployment is None else _given(row, found.deployment, found.given, found.depth))
        self._observe(running, Observation(running.is_canary(shadow), found.ms, found.error, agreement))

    def _observe(self, running: RunningExperiment, seen: Observation) -> None:
        """Tell a canary's monitor, and do as it says."""
        if running.monitor is None or not running.runs:
            return
        decision = running.monitor.observe(seen, time.monotonic())
        if decision.state is State.ROLL_BACK:
            self._registry.roll_back(running, decision.reason)


def _row(trial: Trial, running: RunningExperiment, arm: str, ms: float) -> Exposure:
    """What is logged of a request, before it is known what it was given."""
    mine = [each for each in trial.arms if (each.experiment, each.arm) == (running.name, arm)]
    return Exposure(
        time_s=round(time.time(), 3),
        experiment=running.name,
        layer=mine[0].layer if mine else "",
        arm=arm,
        propensity=mine[0].propensity if mine else running.experiment.shadows[arm].share,
        unit=mine[0].unit_hash if mine else trial.unit_hash,
        request_id=trial.request_id,
        bundle="",
        version="",
        depth=None,
        items=(),
        latency_ms=round(ms, 3),
        covariate=events_before(trial.request, running.state.since_s),
    )


def _given(row: Exposure, deployment: Deployment, given: Sequence[str], depth: int | None) -> Exposure:
    return replace(row, bundle=deployment.name, version=deployment.version, depth=depth, items=given)
