"""A server of one's own in a process of its own: for the demo, for checks, for tests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import UnavailableError

#: Bytes of a thread's stack where memory is short: by default 8 MB are set aside for each.
STACK_BYTES = 2 << 20

# Sets limits, then becomes the program that follows.
_LIMITED = """
import os, resource, sys
data, stack = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (data, data))
resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class Local:
    """A server that is ready."""

    address: str
    pid: int


@contextmanager
def running_server(bundle: Path, *options: str, data_limit_mb: int | None = None) -> Iterator[Local]:
    """Serve a bundle on a free port, with these options of `fathom serve`; at the end it drains.

    ``data_limit_mb``: the kernel refuses it more memory of its own than this (RLIMIT_DATA). Raises UnavailableError
    with the server's own words when it does not get ready.
    """
    command = [sys.executable, "-m", "fathom", "serve", str(bundle), "--port", "0", "--log-level", "warning", "--json"]
    command += options
    if data_limit_mb is not None:
        command = [sys.executable, "-c", _LIMITED, str(data_limit_mb << 20), str(STACK_BYTES), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = process.stdout.readline()
        if not ready:
            words = process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise UnavailableError(f"the server did not start: {words[-1]}")
        try:
            yield Local(json.loads(ready)["address"], process.pid)
        finally:
            process.terminate()
