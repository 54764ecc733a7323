"""What a server spends is read from its own clock."""

import subprocess
import sys
import time

import psutil

from fathom.benchmarks.server import cpu_s


def test_the_time_of_another_process_is_exact() -> None:
    code = "import time, sys; sum(range(200_000)); print(time.process_time(), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        own = float(process.stdout.readline())
        told = cpu_s(psutil.Process(process.pid))
        # It has written since, and ends: far less than the tick of the system's accounts.
        assert own <= told < own + 0.009
        process.communicate()
    before = time.process_time()
    assert before <= cpu_s(psutil.Process()) <= time.process_time()
