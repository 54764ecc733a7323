"""A real server to measure: `fathom serve` on a free port, in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from fathom.errors import UnavailableError
from fathom.runtime.bundle import Bundle

METHOD = "/fathom.v1.Recommender/Recommend"


@dataclass(frozen=True)
class StartedServer:
    """A server that has just said that it is ready, ``ready_s`` seconds after its process was started."""

    address: str
    pid: int
    ready_s: float

    def cpu_s(self) -> float:
        """User and system time of its process so far, in seconds."""
        return cpu_s(psutil.Process(self.pid))


@contextmanager
def started(bundle: Path, *options: str, log: Path | None = None) -> Iterator[StartedServer]:
    """Serve a bundle; ``log``: where to write what it logs, else only errors come, and on this terminal.

    Raises UnavailableError when it does not get ready.
    """
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--json", *options]
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("w")) if log else None
        level = [] if log else ["--log-level", "error"]
        begin = time.perf_counter()
        process = stack.enter_context(
            subprocess.Popen([*command, *level], stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise UnavailableError(f"{bundle}: the server did not start; its error is above")
        try:
            yield StartedServer(json.loads(ready)["address"], process.pid, time.perf_counter() - begin)
        finally:
            process.terminate()


def catalogue_ids(bundle: Path) -> list[str]:
    """The ids of a bundle's items; raises BundleError when it cannot be opened."""
    with Bundle.open(bundle) as opened:
        return list(opened.catalogue.ids)


def cpu_s(process: psutil.Process) -> float:
    """User and system time of a process so far, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)
