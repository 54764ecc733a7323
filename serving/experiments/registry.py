"""The experiments of a server's file as they stand now: follows the file, and the states that servers share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from fathom.errors import FathomError, NotFoundError, brief
from fathom.experiments.assignment import Assigner
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.experiments.definitions import Definitions, RunningExperiment
from fathom.serving.experiments.log import ExperimentLogs
from fathom.serving.experiments.states import ExperimentState, Phase, States
from fathom.serving.files_watch import Stamp, stamp_of

LOOK_EVERY_S = 1.0
#: Says to the other workers what has changed, and its name; returns how many do not know it.
TellWorkers = Callable[[Literal["experiments"], str], Awaitable[int]]

log = logging.getLogger("fathom.serving")


class ExperimentRegistry:
    """Belongs to one event loop; files are read and written in threads.

    ``experiments``, by name, and their ``assigner``: None before the file has been read. ``logs``: of those that run.
    ``workers``: processes that watch the same canary, each for itself; ``tell_workers``: the others follow at once.
    """

    def __init__(
        self, file: Path, states: States, logs: ExperimentLogs, workers: int, tell_workers: TellWorkers
    ) -> None:
        self._file = file
        self._states = states
        self._logs = logs
        self._workers = workers
        self._tell_workers = tell_workers
        self.experiments: Mapping[str, RunningExperiment] = {}
        self.assigner: Assigner | None = None
        self._stamps: Sequence[Stamp] = ()
        #: What this process has rolled back, since when it had run.
        self._rolled_back: dict[str, ExperimentState] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Read the file and the states; raises FathomError, and then changes nothing."""
        definitions = await asyncio.to_thread(Definitions.read, self._file, self.experiments)
        states = await asyncio.to_thread(self._read_states, definitions.experiments)
        opened = [definitions.experiments[name] for name, state in states.items() if state.phase is Phase.RUNNING]
        await asyncio.to_thread(self._open, opened)
        self.experiments, self.assigner = definitions.experiments, definitions.assigner
        self._follow(states)

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
                    await (self._load_or_follow() if changed else self.follow())
            except (FathomError, OSError) as error:
                log.error("experiments stay as they were: %s", error)
            except Exception:
                # The next look may succeed; if this ended, nothing could be stopped any more.
                log.exception("experiments stay as they were")

    async def _load_or_follow(self) -> None:
        try:
            await self.load()
        except FathomError:
            await self.follow()
            raise

    async def follow(self) -> None:
        """Read the states, and stand as they say; raises FathomError."""
        states = await asyncio.to_thread(self._read_states, self.experiments)
        opened = [self.experiments[name] for name, state in states.items() if state.phase is Phase.RUNNING]
        await asyncio.to_thread(self._open, opened)
        self._follow(states)

    def _follow(self, states: Mapping[str, ExperimentState]) -> None:
        """Let experiments stand as their files say. What was read before a rollback here does not undo it."""
        for name, state in states.items():
            ended = self._rolled_back.get(name)
            if ended is not None and (state.phase, state.since_s) == (Phase.RUNNING, ended.since_s):
                state = ended
            # It may have been taken out of the file while it was changed.
            if name in self.experiments:
                self.experiments[name].follow(state, self._workers)

    def _stamped(self) -> list[Stamp]:
        return [stamp_of(self._file), *self._states.stamps(self.experiments)]

    def _read_states(self, names: Iterable[str]) -> dict[str, ExperimentState]:
        return {name: self._states.read(name) for name in list(names)}

    def _open(self, running: Iterable[RunningExperiment]) -> None:
        for each in running:
            self._logs.open(each.name, each.experiment)

    async def change(self, name: str, phase: Phase, arm: str = "") -> pb.ExperimentStatus:
        """Start, stop or promote; raises NotFoundError for what is not in the file."""
        running = self.experiments.get(name)
        if running is None:
            there = ", ".join(self.experiments)
            raise NotFoundError(f"experiment {brief(name)!r} is not in the server's file; there: {there}")
        if phase is Phase.PROMOTED and arm not in running.experiment.arms:
            arms = ", ".join(running.experiment.arms)
            raise NotFoundError(f"experiment {name} has no arm {brief(arm)!r}; it has {arms}")
        if phase is Phase.RUNNING:
            await asyncio.to_thread(self._open, [running])
        state = await asyncio.to_thread(self._states.write, name, phase, arm if phase is Phase.PROMOTED else "")
        self._follow({name: state})
        await self._tell_workers("experiments", name)
        return self.experiments.get(name, running).status()

    def roll_back(self, running: RunningExperiment, reason: str) -> None:
        """Here at once, and for all others as soon as it is written; unless it was changed meanwhile."""
        name, canary = running.name, running.experiment.canary
        now = self.experiments.get(name)
        if now is None or (now.state.phase, now.state.since_s) != (Phase.RUNNING, running.state.since_s):
            return
        ended = ExperimentState(Phase.ROLLED_BACK, "" if canary is None else canary.arm, reason, running.state.since_s)
        log.error("experiment %s: %s is rolled back: %s", name, ended.arm, reason)
        self._rolled_back[name] = ended
        self._follow({name: ended})
        task = asyncio.create_task(self._write_rollback(name, ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_rollback(self, name: str, ended: ExperimentState) -> None:
        try:
            state = await asyncio.to_thread(self._states.roll_back, name, ended.arm, ended.reason, ended.since_s)
        except (FathomError, OSError) as error:
            log.error("experiment %s is rolled back in this process only: %s", name, error)
        else:
            self._follow({name: state})
            await self._tell_workers("experiments", name)

    def statuses(self) -> list[pb.ExperimentStatus]:
        """How every experiment of the file stands."""
        return [each.status() for each in self.experiments.values()]

    async def close(self) -> None:
        """Write what is to be written."""
        if self._tasks:
            await asyncio.wait(self._tasks)
