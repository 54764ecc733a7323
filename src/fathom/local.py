"""A server of one's own in a process of its own: for the demo, for checks, for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import UnavailableError

#: The cores that this process may use, before ``on_core`` keeps it on one of them.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []

# Sets a limit, then becomes the program that follows.
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Local:
    """A server that is ready; ``metrics_address``: where it opened a port for metrics."""

    address: str
    pid: int
    metrics_address: str | None = None


@contextmanager
def running_server(bundle: Path, *options: str, data_limit_mb: int | None = None) -> Iterator[Local]:
    """Serve a bundle on a free port, with these options of `fathom serve`; at the end it drains.

    ``data_limit_mb``: the kernel lets it set aside no more memory of its own than this (RLIMIT_DATA). Raises
    UnavailableError with the server's own words when it does not get ready.
    """
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--log-level", "warning", "--json"]
    command += options
    if data_limit_mb is not None:
        command = [sys.executable, "-c", _LIMITED, str(data_limit_mb << 20), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        if not ready:
            words = process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise UnavailableError(f"the server did not start: {words[-1]}")
        try:
            info = json.loads(ready)
            yield Local(info["address"], process.pid, info["metrics_address"])
        finally:
            process.terminate()


@contextmanager
def on_core(number: int, count: int = 1) -> Iterator[None]:
    """Keep this thread, and the processes that it starts, on ``count`` of CORES from a number on, also within another.

    On the last where there are not so many; anywhere, where the system cannot do that.
    """
    if not CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES[min(number, len(CORES) - 1) :][:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
