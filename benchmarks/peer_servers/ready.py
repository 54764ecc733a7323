"""How a server that takes a port says that it serves: it prints the port once it answers there."""

import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import TextIO

EVERY_S = 0.05


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def own_stdout() -> TextIO:
    """The standard output, for the port; what else this process and its children print goes to the standard error."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return told


def tell_when_ready(port: int, ready: Callable[[int], bool] | None = None) -> None:
    """Print the port, from a thread, once ``ready`` says so: by default once a connection is accepted."""
    threading.Thread(target=_tell, args=(port, ready or accepts, own_stdout()), daemon=True).start()


def _tell(port: int, ready: Callable[[int], bool], told: TextIO) -> None:
    while not ready(port):
        time.sleep(EVERY_S)
    print(port, file=told, flush=True)


def accepts(port: int) -> bool:
    """Whether a connection is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def answers_http(path: str) -> Callable[[int], bool]:
    """Whether a GET of this path is answered with 200."""

    def ready(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return ready
