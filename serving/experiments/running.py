"""The experiments of a server: gives requests their arms, and takes note of what users did."""

from collections.abc import Sequence
from pathlib import Path

from fathom.experiments.assignment import Assigner
from fathom.experiments.exposures import Outcome
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.prefix_cache import Owner
from fathom.serving.access.principal import Principal
from fathom.serving.experiments.definitions import promoted
from fathom.serving.experiments.log import ExperimentLogs
from fathom.serving.experiments.observing import ExperimentObserver
from fathom.serving.experiments.registry import ExperimentRegistry, TellWorkers
from fathom.serving.experiments.shadows import Shadows
from fathom.serving.experiments.states import States
from fathom.serving.experiments.treatment import NO_CHANGE, Change
from fathom.serving.experiments.trial import Trial
from fathom.serving.experiments.units import kinds_of, units_of


class RunningExperiments:
    """Belongs to one event loop.

    ``logs``: folder of a log for each experiment, shared by servers. ``workers``, ``tell_workers``: see
    ``ExperimentRegistry``.
    """

    def __init__(
        self, file: Path, logs: Path, shadows: Shadows, *, tell_workers: TellWorkers, workers: int = 1
    ) -> None:
        self.logs = ExperimentLogs(logs)
        self.shadows = shadows
        self.registry = ExperimentRegistry(file, States(logs), self.logs, workers, tell_workers)
        self._observer = ExperimentObserver(self.registry, self.logs, shadows)

    def begin(self, request: pb.RecommendRequest, principal: Principal, owner: Owner | None) -> Trial | None:
        """What experiments make of a request, which gets a ``request_id``; None where they have no part in it.

        One that asks for a depth has none.
        """
        assigner, experiments = self.registry.assigner, self.registry.experiments
        if assigner is None or request.HasField("depth"):
            return None
        tenant = principal.tenant
        everybody = promoted(experiments.values(), request, tenant)
        concerned = {name for name, each in experiments.items() if each.runs and each.concerns(request, tenant)}
        if not everybody and not concerned:
            return None
        trial = Trial(self._observer, request, Change.together(everybody), owner, principal.scope)
        if concerned:
            self._assign(trial, assigner, concerned, principal)
        return trial if trial.arms or trial.shadows or trial.change != NO_CHANGE else None

    def _assign(self, trial: Trial, assigner: Assigner, concerned: set[str], principal: Principal) -> None:
        units = units_of(trial.request, principal.tenant)
        trial.arms = [each for each in assigner.assign(units) if each.experiment in concerned]
        trial.shadows = [each for each in assigner.shadows(units) if each[0] in concerned]
        if trial.arms or trial.shadows:
            trial.unit_hash = assigner.unit_hash(units.get("user") or units.get("session") or units["request"])
            # What outcomes are reported with.
            trial.request.request_id = units["request"]
            trial.request_id = principal.tenant.key_of(units["request"], "request_id")
            arms = [self.registry.experiments[each.experiment].changes[each.arm] for each in trial.arms]
            trial.change = Change.together([*arms, trial.change])

    def report(self, outcomes: Sequence[Outcome]) -> int:
        """Log what users did; returns how many of it some experiment is judged by."""
        noted = 0
        for outcome in outcomes:
            running = {name: each for name, each in self.registry.experiments.items() if each.runs}
            judged = [name for name, each in running.items() if outcome.kind in kinds_of(each.experiment)]
            noted += sum(self.logs.report(name, outcome) for name in judged) > 0
        return noted

    async def close(self) -> None:
        """Write what waits."""
        self.shadows.close()
        await self.registry.close()
        await self.logs.flush()
