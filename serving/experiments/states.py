"""Whether each experiment runs: a small file beside its log, which all servers that share the folder follow."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from fathom.errors import ArtefactError
from fathom.files import locked, read_json, write_json
from fathom.serving.files_watch import Stamp, stamp_of

SCHEMA_VERSION = 1


class Phase(StrEnum):
    """Nobody gets an arm; units get arms; everybody gets one arm; a canary has broken its limits."""

    STOPPED = "stopped"
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class ExperimentState:
    """``arm``: that was promoted or rolled back. ``reason``: why. ``since_s``: seconds since 1970."""

    phase: Phase = Phase.STOPPED
    arm: str = ""
    reason: str = ""
    since_s: float = 0.0


class States:
    """Of the experiments of one folder of logs. ``clock``: seconds since 1970."""

    def __init__(self, logs: Path, clock: Callable[[], float] = time.time) -> None:
        self._logs = logs
        self._clock = clock

    def read(self, name: str) -> ExperimentState:
        """How an experiment stands; raises ArtefactError for a file that does not say it."""
        path = self._path(name)
        if not path.exists():
            return ExperimentState()
        found = read_json(path, kind="experiment's state", schema_version=SCHEMA_VERSION)
        try:
            return ExperimentState(Phase(found["phase"]), found["arm"], found["reason"], float(found["since_s"]))
        except (KeyError, TypeError, ValueError):
            raise ArtefactError(
                f"{path}: not an experiment's state; remove it, and start the experiment again"
            ) from None

    def write(self, name: str, phase: Phase, arm: str = "", reason: str = "") -> ExperimentState:
        """Change how it stands; raises OSError."""
        with self._locked():
            return self._write(name, phase, arm, reason)

    def roll_back(self, name: str, arm: str, reason: str, since_s: float) -> ExperimentState:
        """Roll back what has run since then, unless it was changed meanwhile; returns how it stands. Raises OSError."""
        # Whoever else changes it waits, or its change would be lost.
        with self._locked():
            now = self.read(name)
            if now.phase is not Phase.RUNNING or now.since_s != since_s:
                return now
            return self._write(name, Phase.ROLLED_BACK, arm, reason)

    def _write(self, name: str, phase: Phase, arm: str, reason: str) -> ExperimentState:
        state = ExperimentState(phase, arm, reason, round(self._clock(), 3))
        write_json(self._path(name), {"schema_version": SCHEMA_VERSION, **asdict(state)})
        return state

    def _locked(self) -> AbstractContextManager[None]:
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return locked(self._logs)

    def stamps(self, names: Mapping[str, object]) -> list[Stamp]:
        """What the files of some experiments are now."""
        return [stamp_of(self._path(name)) for name in names]

    def _path(self, name: str) -> Path:
        return self._logs / f"{name}.state.json"
