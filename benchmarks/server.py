"""A real server to measure: `fathom serve` on a free port, in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import IO, NamedTuple

import psutil

from fathom.errors import UnavailableError
from fathom.local import CORES as CORES
from fathom.local import on_core as on_core
from fathom.runtime.bundle import Bundle

#: Seconds that a server may take until it is ready, and to end.
READY_S, ENDS_S = 300.0, 20.0
METHOD = "/fathom.v1.Recommender/Recommend"


class ThreadTime(NamedTuple):
    """What the kernel calls a thread, and the processor time that it has had so far, in seconds."""

    name: str
    cpu_s: float


@dataclass(frozen=True)
class StartedServer:
    """A server that has just said that it is ready, ``ready_s`` seconds after its process was started."""

    address: str
    pid: int
    ready_s: float

    def cpu_s(self) -> float:
        """User and system time of its process so far, in seconds, and of those that it has started and still has."""
        process = psutil.Process(self.pid)
        return cpu_s(process) + sum(map(cpu_s, process.children(recursive=True)))

    def memory_mb(self) -> float:
        """Resident memory of the same processes, what they share counted once; where that is not told, each for itself.

        In MB of a million bytes.
        """
        process = psutil.Process(self.pid)
        return sum(map(_resident, [process, *process.children(recursive=True)])) / 1e6


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


@contextmanager
def started_module(
    module: str, *arguments: str, python: str = sys.executable, variables: Mapping[str, str] | None = None
) -> Iterator[StartedServer]:
    """Another server, which prints its port once it serves: ``python -m module``; none of its processes stays.

    ``python``, ``variables``: of another environment, whose server is quiet. Raises UnavailableError, with its last
    words, when it ends before.
    """
    with ExitStack() as stack:
        errors = None if variables is None else stack.enter_context(TemporaryFile("w+"))
        begin = time.perf_counter()
        process = stack.enter_context(
            subprocess.Popen(
                [python, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
            )
        )
        assert process.stdout is not None
        # Ends a server that neither serves nor ends, so that the line comes to its end.
        late = Timer(READY_S, process.kill)
        late.start()
        try:
            port = process.stdout.readline()
            late.cancel()
            if not port:
                raise UnavailableError(f"{module}: the server did not start; {_last_words(errors)}")
            yield StartedServer(f"127.0.0.1:{int(port)}", process.pid, time.perf_counter() - begin)
        finally:
            late.cancel()
            end(process)


def _last_words(errors: IO[str] | None) -> str:
    if errors is None:
        return "its error is above"
    errors.seek(0)
    return next((line.strip() for line in reversed(errors.readlines()) if line.strip()), "it said nothing")


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to a server; what is then left of it and of those that it has started, after a while, is killed."""
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_S)
        for each in psutil.wait_procs(started, timeout=1.0)[1]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.kill()


def catalogue_ids(bundle: Path) -> list[str]:
    """The ids of a bundle's items; raises BundleError when it cannot be opened."""
    with Bundle.open(bundle) as opened:
        return list(opened.catalogue.ids)


def cpu_s(process: psutil.Process) -> float:
    """User and system time of a process so far, in seconds; to the nanosecond on Linux, else in ticks of 10 ms."""
    if sys.platform == "linux":
        with suppress(OSError):  # It has ended.
            # Its clock, numbered as clock_getcpuclockid(3) does.
            return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


def _resident(process: psutil.Process) -> int:
    """Bytes; 0 where it has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):
        found = process.memory_full_info()
        return int(getattr(found, "pss", found.rss))
    return 0


def threads_of(pid: int) -> dict[int, ThreadTime]:
    """Of every thread of a process, by its id; the first thread has the process's. To the nanosecond on Linux."""
    found = {}
    for each in psutil.Process(pid).threads():
        task = Path(f"/proc/{pid}/task/{each.id}")
        try:
            name, ran_ns = (task / "comm").read_text().strip(), int((task / "schedstat").read_text().split()[0])
        except OSError:  # It has ended, or this is no Linux.
            name, ran_ns = "", int((each.user_time + each.system_time) * 1e9)
        found[each.id] = ThreadTime(name, ran_ns / 1e9)
    return found
