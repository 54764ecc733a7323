"""The sockets behind a port of gRPC's: to stop listening, to see what is not sent yet, to hang up.

gRPC's own shutdown ends with CANCELLED, which nobody tries again, all calls that come before their client knows of it,
and those that wait to be accepted. They get UNAVAILABLE when their connection ends instead.
"""

import array
import fcntl
import os
import socket
import stat
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: This process's open files, on Linux and macOS.
_FILES = Path("/dev/fd")


def stop_listening(port: int) -> None:
    """Take no new connections; those that there are go on. From now on the kernel gives them to other processes."""
    for number, each in _sockets(port):
        if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # gRPC goes on watching its descriptor, on which nobody will ever come.
            with socket.socket(each.family) as nobody:
                os.dup2(nobody.fileno(), number, inheritable=False)


def unsent(port: int) -> set[str]:
    """The other sides of connections on which bytes have been written that they have not received."""
    found = set()
    for _, each in _sockets(port):
        waiting = array.array("i", [0])
        with suppress(OSError):  # it only listens, or the other side has gone
            fcntl.ioctl(each.fileno(), termios.TIOCOUTQ, waiting)
            if waiting[0]:
                found.add(str(each.getpeername()))
    return found


def hang_up(port: int) -> None:
    """End all connections, after what has been written to them."""
    for _, each in _sockets(port):
        with suppress(OSError):  # the other side has gone, or it only listens
            each.getpeername()
            each.shutdown(socket.SHUT_RDWR)


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    """The descriptor of each socket of this process that is bound to the port, and the socket, until the next one."""
    for number in [int(each.name) for each in _FILES.iterdir()]:
        with suppress(OSError):  # closed by now
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as each:
                    if each.family in (socket.AF_INET, socket.AF_INET6) and each.getsockname()[1] == port:
                        yield number, each
