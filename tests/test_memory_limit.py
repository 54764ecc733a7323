"""A whole server for a phone stays within the 100 MB of its tier, by its own account and by the kernel's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fathom.client import Client
from fathom.edge_profiles.profile import TIER_LIMITS_MB
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.serving.memory import _unchanged, peak_mb

LIMIT_MB = TIER_LIMITS_MB["mobile"]
pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what a process takes")

# Joins a control group, then becomes the program that follows.
_JOIN = 'echo $$ > "$0" && exec "$@"'
SMAPS = """\
55d0-55d2 r-xp 00001000 08:01 7 /lib/code.so
Rss:                  80 kB
Anonymous:             0 kB
55d2-55d3 r--p 00002000 08:01 7 /lib/code.so
Anonymous:             4 kB
55d3-55d4 rw-p 00003000 08:01 7 /lib/code.so
Anonymous:             0 kB
55d4-55d5 r--s 00000000 08:01 9 /lib/shared
Anonymous:             0 kB
7f00-7f01 r--p 00000000 00:00 0
Anonymous:             0 kB
7f01-7f02 r--p 00000000 08:01 8 /lib/a name with spaces
Anonymous:             0 kB
"""


def ask_everything(path: Path, address: str) -> None:
    """Requests of all lengths at every depth that a phone runs."""
    rng = np.random.default_rng(0)
    with Bundle.open(path) as bundle:
        ids, longest = bundle.catalogue.ids, bundle.manifest.model.max_history
    with Client(address) as client:
        for depth in (0, 4, 8):
            for length in (1, longest // 2, longest):
                for _ in range(20):
                    assert client.recommend([ids[i] for i in rng.integers(len(ids), size=length)], depth=depth).items


def test_a_whole_server_for_a_phone_stays_below_the_limit_of_its_tier(synthetic_bundle: Path) -> None:
    with running_server(synthetic_bundle, "--profile", "phone-low") as server:
        ask_everything(synthetic_bundle, server.address)
        peak = peak_mb(server.pid)
    assert peak is not None
    assert 40 < peak < LIMIT_MB


@contextmanager
def control_group(limit_mb: int) -> Iterator[Path]:
    """A control group whose processes get no more memory than this; skips where none can be made."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in own:
        group = Path("/sys/fs/cgroup/memory", own["memory"].strip("/"), f"fathom-{os.getpid()}")
        limits = {"memory.limit_in_bytes": limit_mb << 20}
    else:
        group = Path("/sys/fs/cgroup", own.get("", "").strip("/"), f"fathom-{os.getpid()}")
        limits = {"memory.max": limit_mb << 20, "memory.swap.max": 0}
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        for name, value in limits.items():
            try:
                (group / name).write_text(str(value))
            except OSError as error:
                pytest.skip(f"no limit can be set here: {error.strerror}")
        yield group
    finally:
        group.rmdir()


def test_the_kernel_itself_holds_the_server_to_that_limit(synthetic_bundle: Path) -> None:
    serve = [sys.executable, "-m", "fathom", "serve", str(synthetic_bundle), "--profile", "phone-low", "--port", "0"]
    with control_group(LIMIT_MB) as group:
        command = ["sh", "-c", _JOIN, str(group / "cgroup.procs"), *serve, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                ask_everything(synthetic_bundle, json.loads(process.stdout.readline())["address"])
            finally:
                process.terminate()
        assert process.returncode == 0


def test_what_was_written_to_is_never_given_back() -> None:
    assert list(_unchanged(SMAPS)) == [(0x55D0, 0x55D2), (0x7F01, 0x7F02)]
