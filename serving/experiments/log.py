"""The logs of the experiments that run: rows are noted at once, and written by a thread."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fathom.experiments.config import Experiment
from fathom.experiments.exposures import ROWS_PER_PART, Exposure, LogWriter, Outcome
from fathom.serving.logs import Seldom

#: How often what was noted is written, if there is no reason to do it sooner.
WRITE_EVERY_S = 5.0
#: Rows that may wait while nothing can be written; what is beyond them is counted as lost.
MOST_WAITING = 20 * ROWS_PER_PART

log = Seldom("fathom.serving")


class ExperimentLogs:
    """A writer for each experiment; used from one event loop. ``lost``: rows that found no room."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, LogWriter] = {}
        self._waiting: dict[str, int] = {}
        self.lost = 0

    def open(self, name: str, experiment: Experiment) -> None:
        """Begin or go on with an experiment's log; raises FathomError where that cannot be. In any thread."""
        if name in self._writers:
            self._writers[name].define(experiment)
            return
        # It says what was shown to whom.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A process may begin again with the number of one that has ended.
        writer = f"{os.getpid()}_{time.time_ns() // 1_000_000}"
        opened = LogWriter(self._folder / name, name, experiment, writer=writer)
        self._waiting[name] = 0
        self._writers[name] = opened

    def expose(self, row: Exposure) -> None:
        """Note an answered request."""
        self._note(row.experiment, lambda writer: writer.expose(row))

    def report(self, name: str, row: Outcome) -> bool:
        """Note an outcome; whether there was room."""
        return self._note(name, lambda writer: writer.report(row))

    def _note(self, name: str, note: Callable[[LogWriter], None]) -> bool:
        writer = self._writers.get(name)
        if writer is None or self._waiting[name] >= MOST_WAITING:
            self.lost += writer is not None
            return False
        self._waiting[name] += 1
        note(writer)
        return True

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.flush()

    async def flush(self, names: Iterable[str] | None = None) -> None:
        """Write what waits; what cannot be written waits on, and is logged."""
        for name in list(self._writers if names is None else names):
            noted = self._waiting[name]
            if not noted:
                continue
            try:
                await asyncio.to_thread(self._writers[name].flush)
            except Exception as error:
                # Disks recover; if this ended, nothing would be logged any more.
                log.warning("the log of experiment %s cannot be written: %s", name, error)
            else:
                self._waiting[name] -= noted
