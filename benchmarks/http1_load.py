"""The loads of ``http2_load`` over HTTP/1.1, for servers that speak no gRPC: POST of a message to ``path``.

A connection carries one call at a time, so there are as many as calls in flight.
"""

import select
import socket
from collections.abc import Iterable
from time import perf_counter, thread_time

from fathom.benchmarks.http2 import DEADLINE_EXCEEDED, OK, UNAVAILABLE
from fathom.benchmarks.http2_load import LAST_S, Calls, Report, arrivals
from fathom.errors import ConnectError

PATH = "/inference"
#: Calls that may be open at once in an open loop.
MOST = 512
_LENGTH = b"content-length:"
_READ = 1 << 16


def closed(
    address: str, messages: Iterable[bytes], outstanding: int, *, seconds: float, path: str = PATH, keep: bool = False
) -> Report:
    """``outstanding`` calls at any moment; raises ConnectError where there is no server."""
    load = _Load(address, messages, outstanding, path, keep=keep)
    while (now := load.now()) < seconds:
        while load.room:
            load.start(now)
        load.turn(seconds - now)
    return load.report(seconds)


def open(
    address: str,
    messages: Iterable[bytes],
    per_second: float,
    *,
    seconds: float,
    deadline_ms: float,
    path: str = PATH,
    keep: bool = False,
    seed: int = 0,
) -> Report:
    """Poisson arrivals; what finds no room within ``deadline_ms`` is not sent. The server is not told it."""
    moments = arrivals(per_second, seconds, seed)
    load = _Load(address, messages, MOST, path, keep=keep)
    while moments:
        now = load.now()
        while moments and moments[0] <= now and (load.room or now > moments[0] + deadline_ms / 1e3):
            load.start(moments.popleft())
        load.turn(moments[0] - now if moments and load.room else deadline_ms / 1e3)
    return load.report(seconds)


class _Load:
    """Connections, and what became of each call."""

    def __init__(
        self, address: str, messages: Iterable[bytes], connections: int, path: str, *, keep: bool = False
    ) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: ".encode()
        self._messages = [head + str(len(each)).encode() + b"\r\n\r\n" + each for each in messages]
        self._address, self._most = address, connections
        self._idle: list[socket.socket] = []
        self._by_number: dict[int, socket.socket] = {}
        self._open: dict[socket.socket, tuple[int, bytes]] = {}
        self._keep, self._calls = keep, Calls(keep=keep)
        self._poll = select.epoll()
        self._idle.append(self._connect())
        self._begin, self._cpu_s = perf_counter(), thread_time()

    def _connect(self) -> socket.socket:
        host, _, port = self._address.rpartition(":")
        try:
            new = socket.create_connection((host, int(port)), 5)
        except OSError as error:
            raise ConnectError(f"{self._address}: {error}; is the server running?") from None
        new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._by_number[new.fileno()] = new
        self._poll.register(new, select.EPOLLIN)
        return new

    @property
    def room(self) -> bool:
        """Whether a call can be sent now."""
        return len(self._open) < self._most

    def now(self) -> float:
        """Seconds from the start."""
        return perf_counter() - self._begin

    def start(self, due_s: float) -> None:
        """A call on a connection of its own; without room it ends at once."""
        now, number = self.now(), self._calls.add(due_s)
        if not self.room:
            self._calls.end(number, DEADLINE_EXCEEDED, now)
            return
        self._calls.sent_s[number] = now
        connection = self._idle.pop() if self._idle else self._connect()
        self._open[connection] = number, b""
        try:
            connection.sendall(self._messages[number % len(self._messages)])
        except OSError:
            self._lost(connection)

    def turn(self, wait_s: float) -> None:
        """Receive, for at most ``wait_s``."""
        for descriptor, _ in self._poll.poll(max(0.0, wait_s)):
            connection = self._by_number[descriptor]
            try:
                read = connection.recv(_READ)
            except OSError:
                read = b""
            if not read:
                self._lost(connection)
                continue
            number, before = self._open[connection]
            answer = before + read
            if not _is_whole(answer):
                self._open[connection] = number, answer
                continue
            status, body = OK if answer[9:12] == b"200" else UNAVAILABLE, b""
            if self._keep and status == OK:
                body = answer.partition(b"\r\n\r\n")[2]
            self._calls.end(number, status, self.now(), body)
            del self._open[connection]
            self._idle.append(connection)

    def _lost(self, connection: socket.socket) -> None:
        """The server has closed a connection; a call that was open on it is not answered."""
        if connection in self._open:
            self._calls.end(self._open.pop(connection)[0], UNAVAILABLE, self.now())
        else:
            self._idle.remove(connection)
        del self._by_number[connection.fileno()]
        self._poll.unregister(connection)
        connection.close()

    def report(self, seconds: float) -> Report:
        """Wait for what is open, for at most LAST_S; then what became of the calls."""
        last = self.now() + LAST_S
        while self._open and self.now() < last:
            self.turn(1.0)
        for number, _ in self._open.values():
            self._calls.end(number, DEADLINE_EXCEEDED, self.now())
        cpu_s = thread_time() - self._cpu_s
        self._poll.close()
        for connection in self._by_number.values():
            connection.close()
        return self._calls.report(seconds, cpu_s)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(_LENGTH)]
    return len(body) >= int(lines[0].removeprefix(_LENGTH)) if lines else False
