"""Ports of loopback: a free one, and whether somebody listens on one. Nothing but the standard library."""

import socket
import time

#: Seconds between two attempts to connect.
EVERY_S = 0.02


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether a connection is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def accepts_within(port: int, seconds: float) -> bool:
    """Whether one is, at the latest after so long."""
    end = time.monotonic() + seconds
    while not accepts(port):
        if time.monotonic() > end:
            return False
        time.sleep(EVERY_S)
    return True
