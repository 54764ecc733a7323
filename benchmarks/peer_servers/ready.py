"""How a server that takes a port says that it serves: it prints the port once it answers there."""

import os
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import TextIO

from fathom.benchmarks.ports import accepts

EVERY_S = 0.05


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


def answers_http(path: str) -> Callable[[int], bool]:
    """Whether a GET of this path is answered with 200."""

    def ready(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return ready
