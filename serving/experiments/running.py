"""Runs the experiments of a server: follows their file and their states, and gives requests their arms."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fathom.errors import FathomError, NotFoundError, brief
from fathom.experiments.assignment import Assigner
from fathom.experiments.exposures import Outcome
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.prefix_cache import Owner
from fathom.serving.access.principal import Principal
from fathom.serving.experiments.definitions import Definitions, RunningExperiment, promoted
from fathom.serving.experiments.log import ExperimentLogs
from fathom.serving.experiments.observing import ExperimentObserver
from fathom.serving.experiments.shadows import Shadows
from fathom.serving.experiments.states import ExperimentState, Phase, States
from fathom.serving.experiments.treatment import NO_CHANGE, Change
from fathom.serving.experiments.trial import Trial
from fathom.serving.experiments.units import kinds_of, units_of
from fathom.serving.files_watch import Stamp, stamp_of

LOOK_EVERY_S = 1.0

log = logging.getLogger("fathom.serving")


class RunningExperiments:
    """Belongs to one event loop; files are read and written in threads.

    ``logs``: folder of a log for each experiment, shared by servers. ``workers``: processes that watch the same canary,
    each for itself.
    """

    def __init__(self, file: Path, logs: Path, shadows: Shadows, *, workers: int = 1) -> None:
        self._file = file
        self._states = States(logs)
        self.logs = ExperimentLogs(logs)
        self.shadows = shadows
        self._workers = workers
        self._all: Mapping[str, RunningExperiment] = {}
        self._assigner: Assigner | None = None
        self._stamps: Sequence[Stamp] = ()
        self._observer = ExperimentObserver(self._get, self.logs, shadows, self._roll_back)
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Read the file and the states; raises FathomError, and then changes nothing."""
        definitions = await asyncio.to_thread(Definitions.read, self._file, self._all)
        states = await asyncio.to_thread(self._read_states, definitions.experiments)
        opened = [definitions.experiments[name] for name, state in states.items() if state.phase is Phase.RUNNING]
        await asyncio.to_thread(self._open, opened)
        self._all, self._assigner = definitions.experiments, definitions.assigner
        for name, state in states.items():
            self._all[name].follow(state, self._workers)

    async def run(self) -> None:
        """Follow the file and the states until cancelled; what cannot be used is logged, and that stays as it was."""
        self._stamps = await asyncio.to_thread(self._stamped)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                now = await asyncio.to_thread(self._stamped)
                if now != self._stamps:
                    changed, self._stamps = now[0] != self._stamps[0], now
                    # A file with a mistake keeps nobody from stopping an experiment.
                    await (self._load_or_follow() if changed else self._follow_states())
            except (FathomError, OSError) as error:
                log.error("experiments stay as they were: %s", error)
            except Exception:
                # The next look may succeed; if this ended, nothing could be stopped any more.
                log.exception("experiments stay as they were")

    async def _load_or_follow(self) -> None:
        try:
            await self.load()
        except FathomError:
            await self._follow_states()
            raise

    async def _follow_states(self) -> None:
        states = await asyncio.to_thread(self._read_states, self._all)
        opened = [self._all[name] for name, state in states.items() if state.phase is Phase.RUNNING]
        await asyncio.to_thread(self._open, opened)
        for name, state in states.items():
            if name in self._all:
                self._all[name].follow(state, self._workers)

    def _stamped(self) -> list[Stamp]:
        return [stamp_of(self._file), *self._states.stamps(self._all)]

    def _read_states(self, names: Iterable[str]) -> dict[str, ExperimentState]:
        return {name: self._states.read(name) for name in list(names)}

    def _open(self, running: Iterable[RunningExperiment]) -> None:
        for each in running:
            self.logs.open(each.name, each.experiment)

    async def change(self, name: str, phase: Phase, arm: str = "") -> pb.ExperimentStatus:
        """Start, stop or promote; raises NotFoundError for what is not in the file."""
        running = self._get(name)
        if running is None:
            there = ", ".join(self._all)
            raise NotFoundError(f"experiment {brief(name)!r} is not in the server's file; there: {there}")
        if phase is Phase.PROMOTED and arm not in running.experiment.arms:
            arms = ", ".join(running.experiment.arms)
            raise NotFoundError(f"experiment {name} has no arm {brief(arm)!r}; it has {arms}")
        if phase is Phase.RUNNING:
            await asyncio.to_thread(self._open, [running])
        state = await asyncio.to_thread(self._states.write, name, phase, arm if phase is Phase.PROMOTED else "")
        running.follow(state, self._workers)
        return running.status()

    def _roll_back(self, running: RunningExperiment, reason: str) -> None:
        """Here at once, and for all others as soon as it is written."""
        canary, since_s = running.experiment.canary, running.state.since_s
        arm = "" if canary is None else canary.arm
        log.error("experiment %s: %s is rolled back: %s", running.name, arm, reason)
        running.follow(ExperimentState(Phase.ROLLED_BACK, arm, reason, since_s), self._workers)
        task = asyncio.create_task(self._write_rollback(running, arm, reason, since_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_rollback(self, running: RunningExperiment, arm: str, reason: str, since_s: float) -> None:
        try:
            state = await asyncio.to_thread(self._states.roll_back, running.name, arm, reason, since_s)
            running.follow(state, self._workers)
        except (FathomError, OSError) as error:
            log.error("experiment %s is rolled back in this process only: %s", running.name, error)

    def _get(self, name: str) -> RunningExperiment | None:
        return self._all.get(name)

    def begin(self, request: pb.RecommendRequest, principal: Principal, owner: Owner | None) -> Trial | None:
        """What experiments make of a request, which gets a ``request_id``; None where they have no part in it.

        One that asks for a depth has none.
        """
        if self._assigner is None or request.HasField("depth"):
            return None
        tenant = principal.tenant
        everybody = promoted(self._all.values(), request, tenant)
        concerned = {name for name, each in self._all.items() if each.runs and each.concerns(request, tenant)}
        if not everybody and not concerned:
            return None
        trial = Trial(self._observer, request, Change.together(everybody), owner, principal.scope)
        if concerned:
            self._assign(trial, self._assigner, concerned, principal)
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
            arms = [self._all[each.experiment].changes[each.arm] for each in trial.arms]
            trial.change = Change.together([*arms, trial.change])

    def report(self, outcomes: Sequence[Outcome]) -> int:
        """Log what users did; returns how many of it some experiment is judged by."""
        noted = 0
        for outcome in outcomes:
            running = {name: each for name, each in self._all.items() if each.runs}
            judged = [name for name, each in running.items() if outcome.kind in kinds_of(each.experiment)]
            noted += sum(self.logs.report(name, outcome) for name in judged) > 0
        return noted

    def statuses(self) -> list[pb.ExperimentStatus]:
        """How every experiment of the file stands."""
        return [each.status() for each in self._all.values()]

    async def close(self) -> None:
        """Write what waits."""
        self.shadows.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.logs.flush()
